"""The end of a call: its deadline, or somebody who cancels it."""

from __future__ import annotations

import threading
from typing import List

import pytest

from tests.fakes.fake_gateway import FakeGateway, drop, nothing, refuse, stall
from tests.test_sdk.conftest import MIB, FakeClock, MakeClient, content_of
from vision_o3.errors import (
    CancelledError,
    DeadlineExceededError,
    TransportError,
    VisionO3Error,
)
from vision_o3.sdk.bounds import AnyOf, Bounds
from vision_o3.sdk.retry import RetryPolicy


def test_waits_as_long_as_asked(clock: FakeClock) -> None:
    Bounds(clock).sleep(7)
    assert clock.slept == [7]


def test_ends_a_wait_at_the_deadline(clock: FakeClock) -> None:
    bounds = Bounds(clock, 3)
    with pytest.raises(DeadlineExceededError, match="3 s") as caught:
        bounds.sleep(7)
    assert sum(clock.slept) == pytest.approx(3)
    assert caught.value.values["deadline_s"] == 3
    assert not caught.value.retryable


def test_looks_now_and_then_whether_it_was_cancelled(clock: FakeClock) -> None:
    flag = threading.Event()
    bounds = Bounds(clock, cancelled=AnyOf(None, flag))
    bounds.sleep(1)
    assert max(clock.slept) <= 0.25
    flag.set()
    with pytest.raises(CancelledError):
        bounds.sleep(0)


def test_another_flag_may_end_it_too(clock: FakeClock) -> None:
    first, second = threading.Event(), threading.Event()
    bounds = Bounds(clock, 5, first).also(second)
    bounds.check()
    assert bounds.left_s() == 5
    second.set()
    with pytest.raises(CancelledError):
        bounds.check()
    assert not first.is_set()


def test_no_attempt_is_made_that_would_come_too_late(
    gateway: FakeGateway, make_client: MakeClient, clock: FakeClock
) -> None:
    gateway.lie("/m", refuse(503, None, Retry_After="60"), times=9)
    with pytest.raises(TransportError, match="503"):
        make_client(deadline=10).get_model_info("m")
    assert sum(clock.slept) == 0
    assert gateway.count("/m") == 1


@pytest.mark.parametrize("connections", [1, 4])
def test_a_deadline_ends_a_download_that_can_go_on(
    gateway: FakeGateway, make_client: MakeClient, clock: FakeClock, connections: int
) -> None:
    content = content_of(9 * MIB)
    gateway.publish("m", content)
    gateway.lie("/download", nothing, *[drop(5)] * 99)
    policy = RetryPolicy(attempts=1000, total_s=1e6, base_s=5)
    client = make_client(retries=policy, connections=connections)
    with pytest.raises(VisionO3Error), client.bounded(deadline=60):
        client.download_model("m")
    assert sum(clock.slept) <= 61 * connections
    gateway._lies.clear()
    gateway.seen.clear()
    assert client.download_model("m").read_bytes() == content
    assert all("bytes=0-" not in s.headers.get("range", "") for s in gateway.seen)


@pytest.mark.parametrize("connections", [1, 4])
def test_cancelling_ends_a_stalled_download(
    gateway: FakeGateway, make_client: MakeClient, connections: int
) -> None:
    content = content_of(9 * MIB)
    gateway.publish("m", content)
    gateway.lie("/download", nothing, *[stall(7)] * 99)
    ended: List[BaseException] = []
    with gateway.serving():
        client = make_client(transport=None, timeout=60, connections=connections)

        def download() -> None:
            try:
                client.download_model("m")
            except CancelledError as error:
                ended.append(error)

        thread = threading.Thread(target=download)
        thread.start()
        while gateway.count("/download") < 2:
            thread.join(0.01)
        client.cancel()
        thread.join(30)  # the fake ends a stall after 5 s, the client after 60
        assert not thread.is_alive()
        assert [error.code for error in ended if isinstance(error, CancelledError)]
        gateway._lies.clear()
        assert client.download_model("m").read_bytes() == content


def test_a_call_that_was_not_running_is_not_cancelled(
    gateway: FakeGateway, make_client: MakeClient
) -> None:
    gateway.publish("m", b"abc")
    client = make_client()
    client.cancel()
    assert client.download_model("m").read_bytes() == b"abc"
    flag = threading.Event()
    flag.set()
    with pytest.raises(CancelledError), client.bounded(cancelled=flag):
        client.list_models()
    assert len(client.list_models()) == 1
