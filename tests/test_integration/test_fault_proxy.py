"""The fault proxy does what its faults say: what the store sees, and the client."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.fakes.fault_proxy import STALLS, Fault, FaultProxy
from tests.fakes.s3_servers import S3Server, running

pytestmark = pytest.mark.integration

CONTENT = bytes(range(256)) * 40
ANSWERED = {
    Fault.INTERNAL_ERROR: 500,
    Fault.SLOW_DOWN: 503,
    Fault.CLOCK_SKEW: 403,
    Fault.EXPIRED: 403,
    Fault.ROTATED: 403,
}
DONE = {
    Fault.PASS,
    Fault.LOSE_ANSWER,
    Fault.STALL_ANSWER,
    Fault.RESET_IN_ANSWER,
    Fault.STALL_IN_ANSWER,
    Fault.RESET_AFTER_ANSWER,
    Fault.TRUNCATE,
    Fault.CORRUPT,
    Fault.WRONG_ETAG,
    Fault.DUPLICATE,
}
"""After these the store has done what was asked for."""
WHOLE = {Fault.PASS, Fault.WRONG_ETAG, Fault.DUPLICATE}
"""The client gets the answer as the store gave it, but for the ETag."""


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running("moto") as server:
        yield server


@pytest.fixture(scope="module")
def bucket(server: S3Server) -> str:
    return server.make_bucket()


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(server.endpoint) as proxy:
        yield proxy


def ask(
    proxy: FaultProxy,
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    timeout_s: float = 30,
) -> tuple[http.client.HTTPResponse, bytes]:
    url = urlsplit(proxy.endpoint)
    connection = http.client.HTTPConnection(url.netloc, timeout=timeout_s)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def time_for(fault: Fault) -> float:
    """Return how long to wait for a byte: not long where none will come."""
    return 0.5 if fault in STALLS else 30


@pytest.mark.parametrize("fault", Fault)
def test_put(server: S3Server, bucket: str, proxy: FaultProxy, fault: Fault) -> None:
    key = fault.name.lower()
    if fault is not Fault.PASS:
        proxy.fail(fault, "PutObject", key)
    status = None
    try:
        answer, _ = ask(
            proxy, "PUT", f"/{bucket}/{key}", CONTENT, timeout_s=time_for(fault)
        )
        status = answer.status
    except (OSError, http.client.HTTPException):
        assert fault not in WHOLE | ANSWERED.keys()
    assert status == ANSWERED.get(fault, status)
    deadline = time.monotonic() + 60
    while fault in DONE and proxy.exchanges[0].status is None:
        assert time.monotonic() < deadline, "the store did not answer"
        time.sleep(0.01)
    assert (key in server.keys(bucket)) == (fault in DONE)
    assert [e.fault for e in proxy.exchanges] == [fault]
    if fault is Fault.LATE:
        assert proxy.deliver_late() == 1
        assert key in server.keys(bucket)


@pytest.mark.parametrize("fault", Fault)
def test_get(server: S3Server, bucket: str, proxy: FaultProxy, fault: Fault) -> None:
    server.client.put_object(Bucket=bucket, Key="a/b", Body=CONTENT, ACL="public-read")
    proxy.fail(fault, key="a/*", nth=2)
    for number in (1, 2, 3):
        try:
            timeout_s = time_for(fault) if number == 2 else 30
            answer, body = ask(proxy, "GET", f"/{bucket}/a/b", timeout_s=timeout_s)
        except (OSError, http.client.HTTPException):
            assert number == 2
            assert fault not in WHOLE | ANSWERED.keys()
            continue
        if number != 2 or fault in WHOLE:
            assert (answer.status, body) == (200, CONTENT)
        elif fault is Fault.CORRUPT:
            assert len(body) == len(CONTENT)
            assert sum(a != b for a, b in zip(body, CONTENT, strict=True)) == 1
        elif fault is not Fault.RESET_AFTER_ANSWER:
            assert answer.status == ANSWERED[fault]
    assert [e.fault for e in proxy.exchanges] == [Fault.PASS, fault, Fault.PASS]
    assert proxy.count("GetObject", "a/b") == 3
    assert proxy.bytes_read()["a/b"] >= 2 * len(CONTENT)


def test_rules_are_counted_and_cleared(bucket: str, proxy: FaultProxy) -> None:
    def statuses(count: int) -> list[int]:
        return [ask(proxy, "HEAD", f"/{bucket}/absent")[0].status for _ in range(count)]

    proxy.fail(Fault.SLOW_DOWN, "HeadObject", nth=2, times=2)
    assert statuses(4) == [404, 503, 503, 404]
    proxy.fail(Fault.INTERNAL_ERROR, "*", times=None)
    assert statuses(3) == [500, 500, 500]
    proxy.clear()
    assert statuses(1) == [404]
