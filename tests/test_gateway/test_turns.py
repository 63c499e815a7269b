from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vision_o3.gateway import turns
from vision_o3.gateway.turns import Courtesy, Turns


def scope(method: str = "GET") -> dict[str, Any]:
    return {"type": "http", "method": method}


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LONGEST_S", 3600)


@pytest.mark.usefixtures("patient")
def test_a_download_waits_until_every_request_has_its_answer() -> None:
    async def run() -> None:
        order, download = Turns(), scope()
        with order.before_answer(download) as begun:
            begun()
            with (
                order.before_answer(scope()) as first,
                order.before_answer(scope("HEAD")) as second,
            ):
                waiting = asyncio.ensure_future(Courtesy(download).give_way())
                await asyncio.sleep(0)
                first()
                first()  # twice counts once
                await asyncio.sleep(0)
                assert not waiting.done()
                second()
                await waiting

    asyncio.run(run())


@pytest.mark.usefixtures("patient")
def test_a_request_that_ends_without_an_answer_holds_nobody_up() -> None:
    async def run() -> None:
        order, download = Turns(), scope()
        with order.before_answer(download) as begun:
            begun()
            with pytest.raises(OSError, match="gone"), order.before_answer(scope()):
                raise OSError("gone")
            await Courtesy(download).give_way()

    asyncio.run(run())


@pytest.mark.usefixtures("patient")
def test_an_upload_holds_nobody_up() -> None:
    async def run() -> None:
        order, download = Turns(), scope()
        with (
            order.before_answer(download) as begun,
            order.before_answer(scope("POST")),
        ):
            begun()
            await Courtesy(download).give_way()

    asyncio.run(run())


def test_a_request_that_takes_long_stops_counting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "LONGEST_S", 0.001)

    async def run() -> None:
        order = Turns()
        with order.before_answer(scope()):
            while not await order.quiet():
                pass

    asyncio.run(run())


def test_a_download_goes_on_though_new_requests_keep_coming() -> None:
    class NeverQuiet(Turns):
        asked = 0

        async def quiet(self) -> bool:
            self.asked += 1
            return False

    async def run() -> None:
        order, download = NeverQuiet(), scope()
        with order.before_answer(download):
            courtesy = Courtesy(download)
            for _ in range(2 * (turns.CREDIT + 1)):
                await courtesy.give_way()
        assert order.asked == 2

    asyncio.run(run())
