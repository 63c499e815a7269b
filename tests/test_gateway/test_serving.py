"""HTTPS, proxies and open files of ``vision-o3 serve``."""

from __future__ import annotations

import asyncio
import http.client
import pickle
import resource
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.fakes.certificates import Certificate, make_certificate
from tests.fakes.recording_server import BIG, LIMITS, read_all, recording_server
from tests.test_gateway.running import Serve
from vision_o3.errors import ConfigurationError
from vision_o3.gateway import serving
from vision_o3.gateway.http_protocol import TURN_AWAY_S
from vision_o3.settings import Settings

MakeSettings = Callable[..., Settings]
GET = b"GET / HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return make_certificate(tmp_path)


def named(certificate: Certificate, **more: Any) -> dict[str, Any]:
    """Return the settings that name a certificate."""
    files = {
        "tls_cert_file": certificate.certificate,
        "tls_key_file": certificate.key,
    }
    return files | more


def test_gateway_speaks_https_and_asks_browsers_to_stay_with_it(
    serve: Serve, certificate: Certificate
) -> None:
    with serve(**named(certificate)) as served:
        client = http.client.HTTPSConnection(
            "127.0.0.1", served.port, context=certificate.client_context()
        )
        client.request("GET", "/health")
        answer = client.getresponse()
        assert answer.status == 200
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        client.close()


def test_gateway_without_a_certificate_does_not_ask_for_https(serve: Serve) -> None:
    with serve() as served:
        client = http.client.HTTPConnection("127.0.0.1", served.port)
        client.request("GET", "/health")
        answer = client.getresponse()
        assert answer.status == 200
        assert answer.headers["Strict-Transport-Security"] is None
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        client.close()


def test_what_is_refused_is_told_over_https_too(certificate: Certificate) -> None:
    tls = serving.TLSFiles(certificate.certificate, certificate.key, "")
    context = certificate.client_context()
    limits = replace(LIMITS, head_timeout_s=0.3)
    with recording_server(limits, ssl_context_factory=tls.context) as server:
        for words, status in (
            (GET, b"200"),
            (b"broken\r\n\r\n", b"400"),
            (b"GET / HTTP/1.1\r\n", b"408"),
            (b"GET / HTTP/1.1\r\nA: " + b"b" * 100_000, b"431"),
        ):
            with context.wrap_socket(
                server.connect(), server_hostname="127.0.0.1"
            ) as connection:
                connection.sendall(words)
                assert read_all(connection).split()[1] == status


def test_one_connection_too_many_is_told_once_over_https(
    certificate: Certificate,
) -> None:
    tls = serving.TLSFiles(certificate.certificate, certificate.key, "")
    context = certificate.client_context()
    with (
        capture_logs() as lines,
        recording_server(
            replace(LIMITS, connections=0), ssl_context_factory=tls.context
        ) as server,
        context.wrap_socket(
            server.connect(), server_hostname="127.0.0.1"
        ) as connection,
    ):
        connection.sendall(GET)
        assert connection.recv(1000).split()[1] == b"503"
        time.sleep(TURN_AWAY_S + 0.2)  # and is not told when that has passed
    assert [line["event"] for line in lines] == ["request.refused"]


def test_answer_that_nobody_reads_is_given_up_over_https_too(
    certificate: Certificate,
) -> None:
    tls = serving.TLSFiles(certificate.certificate, certificate.key, "")
    limits = replace(LIMITS, stall_timeout_s=0.4)
    with (
        recording_server(limits, ssl_context_factory=tls.context) as server,
        certificate.client_context().wrap_socket(
            server.connect(4096), server_hostname="127.0.0.1"
        ) as connection,
    ):
        connection.sendall(b"GET /big HTTP/1.1\r\nHost: gateway\r\n\r\n")
        assert server.app.begun.wait(60)
        server.wait_until_alone()
        received = 0
        try:
            while piece := connection.recv(1 << 16):
                received += len(piece)
        except (ConnectionResetError, ssl.SSLEOFError):
            received += 0
        assert received < BIG


def test_old_tls_is_not_spoken(certificate: Certificate) -> None:
    tls = serving.TLSFiles(certificate.certificate, certificate.key, "")
    assert tls.context().minimum_version == ssl.TLSVersion.TLSv1_2


def test_key_with_a_password_is_opened(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    locked = make_certificate(tmp_path, password="open-sesame")
    settings = make_settings(**named(locked, tls_key_password="open-sesame"))
    files = serving.tls_files(settings)
    assert files is not None
    assert "open-sesame" not in repr(files)
    # As uvicorn sends it to each of several processes.
    sent = pickle.loads(pickle.dumps(files.context))  # noqa: S301 - our own
    assert isinstance(sent(), ssl.SSLContext)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("absent", "gateway.crt cannot be read (No such file or directory)"),
        ("another key", "the key is not that of the certificate"),
        ("no password", "the key has a password: set VISION_O3_TLS_KEY_PASSWORD"),
        ("wrong password", "VISION_O3_TLS_KEY_PASSWORD is not the key's password"),
        ("no certificate", "the first is not a certificate in PEM"),
        ("no key", "the second is not a key in PEM"),
    ],
)
def test_certificate_that_cannot_be_used_is_told_in_a_sentence(
    make_settings: MakeSettings, tmp_path: Path, fault: str, said: str
) -> None:
    files = make_certificate(tmp_path)
    password: str | None = None
    if fault == "absent":
        files.certificate.unlink()
    elif fault == "another key":
        files = replace(files, key=make_certificate(tmp_path, "other").key)
    elif fault == "no certificate":
        files.certificate.write_text("no certificate")
    elif fault == "no key":
        files.key.write_text("no key")
    else:
        files = make_certificate(tmp_path, password="open-sesame")
        password = "wrong-password" if fault == "wrong password" else None
    settings = make_settings(**named(files, tls_key_password=password))
    with pytest.raises(ConfigurationError) as caught:
        serving.options(settings, LIMITS)
    assert said in caught.value.message
    assert "VISION_O3_TLS_CERT_FILE" in caught.value.message
    assert "password" not in caught.value.message.replace(said, "")


FORWARDED = (
    b"GET / HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n"
    b"X-Forwarded-For: 203.0.113.9, 198.51.100.7\r\nX-Forwarded-Proto: https\r\n\r\n"
)


@pytest.mark.parametrize(
    ("trusted", "client", "scheme"),
    [
        ("", "127.0.0.1", "http"),
        ("10.0.0.0/8", "127.0.0.1", "http"),
        ("127.0.0.1", "198.51.100.7", "https"),
        ("127.0.0.0/8, 198.51.100.7", "203.0.113.9", "https"),
    ],
)
def test_forwarded_headers_are_believed_of_trusted_proxies_alone(
    make_settings: MakeSettings, trusted: str, client: str, scheme: str
) -> None:
    chosen = serving.options(make_settings(trusted_proxies=trusted), LIMITS)
    given = {name: chosen[name] for name in ("proxy_headers", "forwarded_allow_ips")}
    with recording_server(**given) as server:
        server.exchange(FORWARDED)
        assert server.app.client is not None
        assert server.app.client[0] == client
        assert server.app.scheme == scheme


def test_no_more_connections_than_files_are_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    within = serving._within_open_files(replace(LIMITS, connections=20_000))
    assert within.connections == 4096 - 1024
    few = replace(LIMITS, connections=100)
    assert serving._within_open_files(few) == few


def test_handshake_that_never_ends_is_ended(
    certificate: Certificate,
    make_settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "HANDSHAKE_S", 0.2)
    files = serving.tls_files(make_settings(**named(certificate)))
    assert files is not None

    async def connect_and_say_nothing() -> bytes:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            asyncio.Protocol, "127.0.0.1", 0, ssl=files.context()
        )
        async with server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                async with asyncio.timeout(20):  # asyncio's own would be 60 s
                    return await reader.read()
            finally:
                writer.close()

    with asyncio.Runner(loop_factory=serving.Loop) as runner:
        assert runner.run(connect_and_say_nothing()) == b""
