from __future__ import annotations

import socket
import threading
from typing import Any, Iterator, List

import pytest

from tests.conformance.transport import TransportConformance, read_all
from tests.fakes.fake_gateway import (
    FakeGateway,
    InMemoryTransport,
    body,
    drop,
    drop_unanswered,
    nothing,
    stall,
)
from vision_o3.errors import InputError, TransportError
from vision_o3.sdk.transport import HTTPTransport, Transport, origin_of


def kept_alive(transport: HTTPTransport, url: str) -> Any:
    """Return the one connection that is kept after a request."""
    read_all(transport.request("GET", url, {}))
    ((idle,),) = transport._idle.values()
    return idle.link


class TestInMemoryTransport(TransportConformance):
    @pytest.fixture
    def transport(self, gateway: FakeGateway) -> Transport:
        return InMemoryTransport({gateway.url: gateway})


class TestHTTPTransport(TransportConformance):
    @pytest.fixture
    def gateway(self) -> Iterator[FakeGateway]:
        with FakeGateway().serving() as gateway:
            yield gateway

    @pytest.fixture
    def transport(self) -> Iterator[HTTPTransport]:
        transport = HTTPTransport(read_timeout_s=0.2, connect_timeout_s=1)
        yield transport
        transport.close()

    def test_keeps_a_connection_alive(
        self, gateway: FakeGateway, transport: HTTPTransport
    ) -> None:
        url = f"{gateway.url}/x"
        kept = kept_alive(transport, url)
        again = kept_alive(transport, url)
        assert again is kept

    def test_does_not_use_what_waited_for_long(
        self,
        gateway: FakeGateway,
        transport: HTTPTransport,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        url = f"{gateway.url}/x"
        kept = kept_alive(transport, url)
        monkeypatch.setattr("vision_o3.sdk.transport._IDLE_FOR_S", -1.0)
        other = kept_alive(transport, url)
        assert other is not kept

    def test_a_child_has_connections_of_its_own(
        self,
        gateway: FakeGateway,
        transport: HTTPTransport,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        url = f"{gateway.url}/x"
        kept = kept_alive(transport, url)
        monkeypatch.setattr("os.getpid", lambda: -1)
        other = kept_alive(transport, url)
        assert other is not kept
        kept.connection.close()

    def test_a_closed_idle_connection_is_no_failure(
        self, gateway: FakeGateway, transport: HTTPTransport
    ) -> None:
        url = f"{gateway.url}/x"
        read_all(transport.request("GET", url, {}))
        gateway.lie("/x", drop_unanswered, nothing)
        assert read_all(transport.request("GET", url, {}))

    def test_keeps_no_more_idle_connections_than_it_may(
        self, gateway: FakeGateway
    ) -> None:
        transport = HTTPTransport(max_idle=1)
        url = f"{gateway.url}/x"
        open_answers = [transport.request("GET", url, {}) for _ in range(3)]
        for answer in open_answers:
            read_all(answer)
        assert [len(idle) for idle in transport._idle.values()] == [1]
        transport.close()

    def test_serves_threads_at_once(
        self, gateway: FakeGateway, transport: HTTPTransport
    ) -> None:
        gateway.publish("m", b"x" * 300_000)
        sizes: List[int] = []

        def work() -> None:
            for _ in range(5):
                url = f"{gateway.url}/models/m/download"
                sizes.append(len(read_all(transport.request("GET", url, {}))))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sizes == [300_000] * 20

    def test_nothing_for_too_long_is_an_error(
        self, gateway: FakeGateway, transport: HTTPTransport
    ) -> None:
        gateway.lie("/x", body(b"x" * 100), stall(50))
        gateway.lie("/y", stall(0))
        read_all(transport.request("GET", f"{gateway.url}/x", {}))
        response = transport.request("GET", f"{gateway.url}/y", {})
        with pytest.raises(TransportError, match="nothing came for too long"):
            read_all(response)

    @pytest.mark.parametrize("answer_timeout_s", [5.0, 0.0])
    def test_waits_longer_for_the_answer_to_an_upload(
        self, answer_timeout_s: float
    ) -> None:
        """The gateway looks into a file before it answers."""
        answer = b"HTTP/1.1 201 Made\r\nContent-Length: 2\r\n\r\nok"
        given_up = threading.Event()
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()

            def serve() -> None:
                connection, _ = listener.accept()
                with connection:
                    given_up.wait(0.5)  # far over the read time-out below
                    connection.recv(10_000)
                    connection.sendall(answer)

            server = threading.Thread(target=serve)
            server.start()
            transport = HTTPTransport(
                read_timeout_s=0.05, answer_timeout_s=answer_timeout_s
            )
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/models"
            headers = {"Content-Length": "4"}
            try:
                if answer_timeout_s:
                    response = transport.request("POST", url, headers, [b"file"])
                    assert read_all(response) == b"ok"
                else:
                    with pytest.raises(TransportError, match="too long"):
                        transport.request("POST", url, headers, [b"file"])
            finally:
                given_up.set()
                server.join()
                transport.close()

    def test_takes_a_refusal_that_comes_before_all_was_sent(self) -> None:
        refusal = b"HTTP/1.1 413 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            done = threading.Event()

            def refuse() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(100)
                    connection.sendall(refusal)
                    connection.shutdown(socket.SHUT_WR)
                    done.wait(5)

            thread = threading.Thread(target=refuse)
            thread.start()
            transport = HTTPTransport(read_timeout_s=0.2)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/models"
            pieces = [bytes(1 << 20)] * 64
            response = transport.request(
                "POST", url, {"Content-Length": str(64 << 20)}, pieces
            )
            done.set()
            thread.join()
        assert (response.status, read_all(response)) == (413, b"no")
        transport.close()

    def test_a_body_that_is_cut_off_without_an_answer(
        self, gateway: FakeGateway, transport: HTTPTransport
    ) -> None:
        gateway.lie("/x", drop_unanswered)
        with pytest.raises(TransportError, match="broke"):
            transport.request("POST", f"{gateway.url}/x", {}, b"abc")

    def test_an_error_in_the_body_is_passed_on(
        self, gateway: FakeGateway, transport: HTTPTransport
    ) -> None:
        def pieces() -> Iterator[bytes]:
            yield b"x"
            raise InputError("The file became shorter.")

        headers = {"Content-Length": "9"}
        with pytest.raises(InputError, match="shorter"):
            transport.request("POST", f"{gateway.url}/x", headers, pieces())

    def test_what_is_not_http_is_an_error(self) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()

            def answer() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")

            thread = threading.Thread(target=answer)
            thread.start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            with pytest.raises(TransportError, match="broke"):
                HTTPTransport().request("GET", url, {})
            thread.join()

    @pytest.mark.parametrize(
        "url", ["http://127.0.0.1:{port}/", "https://127.0.0.1:{port}/"]
    )
    def test_nobody_there(self, transport: HTTPTransport, url: str) -> None:
        with socket.socket() as taken:  # bound, but not listening
            taken.bind(("127.0.0.1", 0))
            with pytest.raises(TransportError, match="cannot be reached") as caught:
                transport.request("GET", url.format(port=taken.getsockname()[1]), {})
        assert caught.value.retryable

    def test_a_host_name_that_cannot_be(self, transport: HTTPTransport) -> None:
        with pytest.raises(TransportError, match="cannot be reached"):
            transport.request("GET", f"http://{'a' * 64}.test/", {})

    def test_https_to_a_server_without_it(
        self, gateway: FakeGateway, transport: HTTPTransport
    ) -> None:
        url = gateway.url.replace("http:", "https:")
        with pytest.raises(TransportError):
            transport.request("GET", url, {})

    def test_a_reset_while_the_body_comes(
        self, gateway: FakeGateway, transport: HTTPTransport
    ) -> None:
        gateway.publish("m", b"x" * 100)
        gateway.lie("/download", drop(50))
        response = transport.request("GET", f"{gateway.url}/models/m/download", {})
        assert len(read_all(response)) == 50


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://a", ("http", "a", 80)),
        ("https://A.test/x", ("https", "a.test", 443)),
        ("http://[::1]:8000/", ("http", "::1", 8000)),
    ],
)
def test_origin(url: str, origin: object) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gateway",
        "ftp://a",
        "file:///etc/passwd",
        "http://",
        "http://a:b@c",
        "http://a:99999",
        "http://[",
        "http://a:x",
    ],
)
def test_no_origin(url: str) -> None:
    with pytest.raises(InputError, match="URL"):
        origin_of(url)


def test_early_hints_are_not_the_answer() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    right = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                for _ in range(2):
                    connection.recv(65536)
                    connection.sendall(hints + hints + right)

        thread = threading.Thread(target=serve)
        thread.start()
        transport = HTTPTransport()
        for _ in range(2):
            url = f"http://127.0.0.1:{server.getsockname()[1]}/"
            answer = transport.request("GET", url, {})
            assert answer.status == 200
            assert "link" not in answer.headers
            assert read_all(answer) == b"ok"
        transport.close()
        thread.join()


def test_errors_show_no_secrets_of_urls() -> None:
    for url in (
        "https://ann:s3cret@models.example.com/?sig=s3cret",
        "https://ann:s3cret@models.example.com:port/",
        "ftp://models.example.com/a?sig=s3cret",
    ):
        with pytest.raises(InputError, match="example") as caught:
            origin_of(url)
        assert "s3cret" not in str(caught.value)
