"""What every ``Transport`` promises. A transport's tests give the fixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List

import pytest

from tests.fakes.fake_gateway import (
    FakeGateway,
    body,
    chunked,
    drop,
    drop_unanswered,
    header,
    refuse,
    stall,
)
from vision_o3.errors import TransportError

if TYPE_CHECKING:
    from vision_o3.sdk.transport import Response, Transport


def read_all(response: Response, size: int = 1 << 16) -> bytes:
    """Return the rest of an answer, read by buffers of ``size``; close it."""
    buffer = memoryview(bytearray(size))
    read = bytearray()
    try:
        while True:
            count = response.readinto(buffer)
            if not count:
                return bytes(read)
            read += buffer[:count]
    finally:
        response.close()


class TransportConformance:
    """Give fixtures ``gateway`` and ``transport``, which reaches it."""

    @pytest.mark.parametrize("size", [1, 7, 1 << 16, 1 << 21])
    def test_reads_a_body_whatever_the_buffer(
        self, gateway: FakeGateway, transport: Transport, size: int
    ) -> None:
        content = bytes(range(256)) * (4 if size < 100 else 5000)
        gateway.publish("m", content)
        response = transport.request("GET", f"{gateway.url}/models/m/download", {})
        assert response.status == 200
        assert response.headers["content-length"] == str(len(content))
        assert read_all(response, size) == content

    def test_reads_a_body_of_unknown_length(
        self, gateway: FakeGateway, transport: Transport
    ) -> None:
        gateway.publish("m", b"abc" * 9)
        gateway.lie("/download", chunked)
        response = transport.request("GET", f"{gateway.url}/models/m/download", {})
        assert "content-length" not in response.headers
        assert read_all(response) == b"abc" * 9

    def test_reads_an_empty_body(
        self, gateway: FakeGateway, transport: Transport
    ) -> None:
        gateway.publish("m", b"x")
        gateway.lie("/download", body(b""))
        response = transport.request("GET", f"{gateway.url}/models/m/download", {})
        assert read_all(response) == b""

    def test_gives_any_status_as_an_answer(
        self, gateway: FakeGateway, transport: Transport
    ) -> None:
        for status in (404, 429, 500, 503):
            gateway.lie("/models", refuse(status, "x"))
            response = transport.request("GET", f"{gateway.url}/models", {})
            assert response.status == status
            assert b"It was x" in read_all(response)

    def test_follows_no_redirect(
        self, gateway: FakeGateway, transport: Transport
    ) -> None:
        gateway.lie("/models", refuse(302, "x", Location="/elsewhere"))
        response = transport.request("GET", f"{gateway.url}/models", {})
        assert (response.status, response.headers["location"]) == (302, "/elsewhere")
        response.close()
        assert gateway.count("/elsewhere") == 0

    def test_sends_headers_and_query(
        self, gateway: FakeGateway, transport: Transport
    ) -> None:
        url = f"{gateway.url}/models?page=1&page_size=2&q=a%20b"
        transport.request("GET", url, {"X-Own": "1"}).close()
        (seen,) = gateway.seen
        assert seen.headers["x-own"] == "1"
        assert seen.query["q"] == ["a b"]

    def test_sends_bytes(self, gateway: FakeGateway, transport: Transport) -> None:
        transport.request("POST", f"{gateway.url}/x", {}, b"some bytes").close()
        assert gateway.seen[0].body == b"some bytes"

    def test_sends_pieces(self, gateway: FakeGateway, transport: Transport) -> None:
        pieces: List[Any] = [b"some ", memoryview(b"pieces")]
        headers = {"Content-Length": "11"}
        transport.request("POST", f"{gateway.url}/x", headers, pieces).close()
        assert gateway.seen[0].body == b"some pieces"

    def test_says_that_there_is_no_answer(
        self, gateway: FakeGateway, transport: Transport
    ) -> None:
        gateway.lie("/models", drop_unanswered, times=2)
        with pytest.raises(TransportError) as caught:
            transport.request("GET", f"{gateway.url}/models", {})
        assert caught.value.retryable

    def test_never_ends_a_broken_body_as_if_it_were_whole(
        self, gateway: FakeGateway, transport: Transport
    ) -> None:
        gateway.publish("m", b"x" * 1000)
        for lie in (drop(10), drop(0), stall(500)):
            gateway.lie("/download", lie)
            response = transport.request("GET", f"{gateway.url}/models/m/download", {})
            announced = int(response.headers["content-length"])
            try:
                assert len(read_all(response)) < announced
            except TransportError:
                continue

    def test_says_that_a_body_of_unknown_length_broke(
        self, gateway: FakeGateway, transport: Transport
    ) -> None:
        gateway.publish("m", b"x" * 1000)

        def broken(answer: object) -> None:
            chunked(answer)  # type: ignore[arg-type] # a lie, as the next one
            drop(10)(answer)  # type: ignore[arg-type] # as above

        gateway.lie("/download", broken)
        response = transport.request("GET", f"{gateway.url}/models/m/download", {})
        with pytest.raises(TransportError):
            read_all(response)

    def test_answer_may_be_left_unread(
        self, gateway: FakeGateway, transport: Transport
    ) -> None:
        gateway.publish("m", b"x" * 100_000)
        url = f"{gateway.url}/models/m/download"
        for _ in range(3):
            response = transport.request("GET", url, {})
            response.readinto(memoryview(bytearray(10)))
            response.close()
            response.close()
        assert read_all(transport.request("GET", url, {})) == b"x" * 100_000

    def test_can_be_used_after_close(
        self, gateway: FakeGateway, transport: Transport
    ) -> None:
        for _ in range(2):
            read_all(transport.request("GET", f"{gateway.url}/nothing", {}))
            transport.close()
        assert gateway.count("/nothing") == 2

    def test_headers_are_by_lower_case_name(
        self, gateway: FakeGateway, transport: Transport
    ) -> None:
        gateway.lie("/x", header("X-MiXed", "Value"))
        response = transport.request("GET", f"{gateway.url}/x", {})
        response.close()
        assert response.headers["x-mixed"] == "Value"
