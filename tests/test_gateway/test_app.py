"""The composition root, and what surrounds every request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.testing import capture_logs

from tests.fakes.model_files import tflite
from tests.test_gateway.running import OpenGateway
from vision_o3.db.engine import Database
from vision_o3.errors import DatabaseUnavailableError
from vision_o3.gateway.main import create_app, sweep_for_ever
from vision_o3.gateway.middleware import EarlyEnd, RequestLog
from vision_o3.gateway.problems import LastResort
from vision_o3.registry.maintenance import Swept
from vision_o3.settings import Settings
from vision_o3.storage.local import LocalStore


class Counting(Database):
    """A database that counts how often it was closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1
        super().close()


def test_given_database_and_store_are_used_and_not_closed(
    make_settings: Callable[..., Settings], tmp_path: Any
) -> None:
    settings = make_settings(store=str(tmp_path / "unused"))
    database = Counting(settings.database_url.get_secret_value())
    store = LocalStore(tmp_path / "used")
    app = create_app(settings, store=store, database=database)

    async def run() -> None:
        async with app.router.lifespan_context(app):
            assert app.state.gateway.database is database
            app.state.gateway.store.put("a", b"x")
            assert store.get("a", max_size=1) == b"x"

    asyncio.run(run())
    assert not (tmp_path / "unused").exists()
    assert database.closed == 0
    database.close()


class FailingSweeper:
    """Fails in every way, then finds something, then is idle."""

    def __init__(self) -> None:
        self.outcomes: list[Exception | Swept] = [
            Swept(claims=1),
            RuntimeError("bug"),
            DatabaseUnavailableError("down"),
        ]
        self.idle = threading.Event()

    def sweep(self) -> Swept:
        if not self.outcomes:
            self.idle.set()
            return Swept()
        outcome = self.outcomes.pop()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def test_sweeping_goes_on_whatever_happens() -> None:
    sweeper = FailingSweeper()

    async def run() -> None:
        task = asyncio.create_task(sweep_for_ever(sweeper, 0.001))  # type: ignore[arg-type]  # a fake
        await asyncio.to_thread(sweeper.idle.wait)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with capture_logs() as lines:
        asyncio.run(run())
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("sweep.failed", "warning"),
        ("sweep.failed", "error"),
        ("sweep.done", "info"),
    ]


def test_gateway_sweeps_what_a_killed_one_left(
    open_gateway: OpenGateway, make_settings: Callable[..., Settings]
) -> None:
    spool = make_settings().spool_directory
    spool.mkdir()
    (spool / "dead.upload").write_bytes(b"x")
    with open_gateway(sweep_interval_s=0.01) as running:
        running.publish(tflite())
        while list(spool.iterdir()):
            running.get("/health")


@pytest.mark.parametrize("middleware", [RequestLog, EarlyEnd, LastResort])
def test_middleware_lets_other_than_requests_through(
    middleware: Callable[[ASGIApp], ASGIApp],
) -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope, receive, send))

    async def nothing(*_: Any) -> Any:
        """Neither receive nor send."""

    scope = {"type": "lifespan"}
    asyncio.run(middleware(app)(scope, nothing, nothing))  # type: ignore[arg-type]  # a coroutine
    assert seen == [(scope, nothing, nothing)]


def test_concurrent_publishes_are_bounded_and_all_served(
    open_gateway: OpenGateway,
) -> None:
    with open_gateway(max_concurrent_publishes=1) as running:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(running.publish, map(tflite, range(8))))
        assert [answer.status_code for answer in answers] == [201] * 8
        versions = sorted(answer.json()["version"] for answer in answers)
        assert versions == list(range(1, 9))
