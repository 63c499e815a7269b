"""What needs a real connection: answers before the body ends, breaks, stalls."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.fakes.model_files import tflite
from tests.fakes.scripted_store import ScriptedStore
from tests.test_gateway.running import MIB, Serve, Served, flip_bit
from vision_o3.gateway import middleware
from vision_o3.storage.local import LocalStore

Lines = list[MutableMapping[str, Any]]
BOUNDARY = "boundary-of-the-tests"
HEAD = (
    f"--{BOUNDARY}\r\n"
    'Content-Disposition: form-data; name="name"\r\n\r\nm\r\n'
    f"--{BOUNDARY}\r\n"
    'Content-Disposition: form-data; name="file"; filename="m.tflite"\r\n\r\n'
).encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


def begin(
    served: Served, length: int | str, *, token: bool = True, more: str = ""
) -> socket.socket:
    """Open an upload of which only the header is sent."""
    connection = served.connect()
    headers = served.headers() if token else {}
    lines = [f"{name}: {value}" for name, value in headers.items()]
    size = (
        f"Content-Length: {length}"
        if length != "chunked"
        else ("Transfer-Encoding: chunked")
    )
    head = "\r\n".join(
        [
            "POST /models HTTP/1.1",
            "Host: gateway",
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}",
            size,
            *lines,
        ]
    )
    connection.sendall(f"{head}\r\n{more}\r\n".encode())
    return connection


def answer_of(connection: socket.socket) -> tuple[int, bytes]:
    with http.client.HTTPResponse(connection) as answer:
        answer.begin()
        return answer.status, answer.read()


def publish(served: Served, content: bytes) -> int:
    with begin(served, len(HEAD) + len(content) + len(TAIL)) as connection:
        connection.sendall(HEAD + content + TAIL)
        return answer_of(connection)[0]


def test_upload_and_download_over_a_connection(serve: Serve) -> None:
    content = tflite(1, 5 * MIB + 3)
    with serve() as served:
        assert publish(served, content) == 201
        client = http.client.HTTPConnection("127.0.0.1", served.port)
        for _ in range(2):  # on one connection
            client.request("GET", "/models/m/download", headers=served.headers())
            answer = client.getresponse()
            assert answer.read() == content
        client.close()


def test_too_large_upload_is_refused_before_it_is_received(serve: Serve) -> None:
    with serve(max_upload_bytes=1000) as served:
        with begin(served, 1 << 40) as connection:
            status, body = answer_of(connection)
            assert status == 413
            assert b"too_large" in body
        served.wait_until_empty()


def test_too_large_stream_is_refused_while_it_comes(serve: Serve) -> None:
    with serve(max_upload_bytes=3 * MIB) as served:
        with begin(served, "chunked") as connection:
            piece = HEAD + tflite(1, 4 * MIB)
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            assert answer_of(connection)[0] == 413
        served.wait_until_empty()


@pytest.mark.parametrize("token", [True, False])
def test_answer_arrives_though_the_caller_sends_all_first(
    serve: Serve,
    token: bool,
) -> None:
    size = 20 * MIB
    with (
        serve(max_upload_bytes=1000) as served,
        begin(served, size, token=token) as connection,
    ):
        connection.sendall(bytes(size))
        assert answer_of(connection)[0] == (413 if token else 401)
        assert connection.recv(1) == b""  # closed


def test_caller_who_waits_to_continue_is_answered_at_once(serve: Serve) -> None:
    with serve() as served:
        for token, first in ((True, b"100 Continue"), (False, b"401 Unauthorized")):
            with begin(
                served, 1000, token=token, more="Expect: 100-continue\r\n"
            ) as connection:
                assert first in connection.recv(1000)
        served.wait_until_empty()


def test_refused_upload_is_not_received_for_ever(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "LINGER_S", 0.05)
    with serve() as served, begin(served, 1000, token=False) as connection:
        assert answer_of(connection)[0] == 401
        assert connection.recv(1) == b""


def test_refused_upload_is_not_received_without_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "LINGER_SIZE", 100)
    with serve() as served, begin(served, 10_000, token=False) as connection:
        connection.sendall(bytes(1000))
        assert answer_of(connection)[0] == 401


def test_lost_upload_leaves_nothing(serve: Serve) -> None:
    with serve() as served:
        with begin(served, 100 * MIB) as connection:
            connection.sendall(HEAD + tflite(1, 3 * MIB))
            deadline = time.monotonic() + 60
            while not list(served.settings.spool_directory.iterdir()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        served.wait_until_empty()


def test_stalled_upload_is_told_and_leaves_nothing(serve: Serve) -> None:
    with serve(stall_timeout_s=0.5) as served:
        with begin(served, 100 * MIB) as connection:
            connection.sendall(HEAD + tflite(1, 3 * MIB))
            status, body = answer_of(connection)
            assert status == 400
            assert b"incomplete_upload" in body
        served.wait_until_empty()


def test_damaged_later_leaf_breaks_the_connection(serve: Serve) -> None:
    content = tflite(1, 5 * MIB)
    with serve() as served:
        assert publish(served, content) == 201
        flip_bit(Path(served.settings.store) / "models/m/v1.tflite", 3 * MIB + 7)
        client = http.client.HTTPConnection("127.0.0.1", served.port)
        with capture_logs() as lines:
            client.request("GET", "/models/m/download", headers=served.headers())
            answer = client.getresponse()
            assert answer.status == 200
            with pytest.raises(http.client.IncompleteRead) as caught:
                answer.read()
            client.close()
            wait_for_log(lines, "request.broken_off")
        assert caught.value.partial == content[: len(caught.value.partial)]
        assert len(caught.value.partial) <= 3 * MIB
        corrupt = next(line for line in lines if line["event"] == "artifact.corrupt")
        assert corrupt["log_level"] == "error"
        assert corrupt["key"] == "models/m/v1.tflite"


def wait_for_log(lines: Lines, event: str) -> MutableMapping[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        found = [line for line in list(lines) if line["event"] == event]
        if found:
            return found[0]
        assert time.monotonic() < deadline, lines
        time.sleep(0.01)


def test_store_that_fails_in_the_middle_breaks_the_connection(
    serve: Serve, tmp_path: Path
) -> None:
    store = ScriptedStore("", LocalStore(tmp_path / "objects"))
    with serve(store) as served:
        assert publish(served, tflite(1, 40 * MIB)) == 201
        path = Path(served.settings.store) / "models/m/v1.tflite"
        client = http.client.HTTPConnection("127.0.0.1", served.port)
        with capture_logs() as lines:
            client.request("GET", "/models/m/download", headers=served.headers())
            answer = client.getresponse()
            with path.open("r+b") as file:
                file.truncate(20 * MIB)
            with pytest.raises(http.client.IncompleteRead):
                answer.read()
            client.close()
            wait_for_log(lines, "request.broken_off")
        assert any(line["event"].startswith("artifact.") for line in lines)


@pytest.mark.parametrize("leave", [True, False])
def test_caller_who_stops_reading_is_dropped(
    serve: Serve,
    leave: bool,
) -> None:
    with serve() as served:
        assert publish(served, tflite(1, 64 * MIB)) == 201
    with (
        serve(stall_timeout_s=60 if leave else 0.5) as served,
        capture_logs() as lines,
        served.connect() as connection,
    ):
        token = served.headers()["Authorization"]
        connection.sendall(
            b"GET /models/m/download HTTP/1.1\r\nHost: x\r\n"
            b"Authorization: " + token.encode() + b"\r\n\r\n"
        )
        assert connection.recv(100)
        if leave:
            connection.close()
        ended = wait_for_log(lines, "request.broken_off")
        assert (ended["status"], ended["principal"]) == (200, "ann")
        if not leave:
            wait_for_log(lines, "download.stalled")


def test_many_at_once_get_what_they_asked_for(serve: Serve) -> None:
    contents = {f"{seed}": tflite(seed, 3 * MIB + seed) for seed in range(6)}
    results: dict[str, object] = {}
    with serve() as served:
        served.headers()  # adds the user, once

        def publish_and_fetch(seed: str) -> None:
            content = contents[seed]
            status = publish(served, content)
            client = http.client.HTTPConnection("127.0.0.1", served.port)
            client.request("GET", "/models/m/versions", headers=served.headers())
            client.getresponse().read()
            client.close()
            results[seed] = status

        threads = [
            threading.Thread(target=publish_and_fetch, args=(seed,))
            for seed in contents
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == dict.fromkeys(contents, 201)
        fetched = set()
        for number in range(1, 7):
            client = http.client.HTTPConnection("127.0.0.1", served.port)
            path = f"/models/m/versions/{number}/download"
            client.request("GET", path, headers=served.headers())
            fetched.add(client.getresponse().read())
            client.close()
        assert fetched == set(contents.values())
