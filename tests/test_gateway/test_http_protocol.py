"""What the gateway does with connections, seen by a small application behind it."""

from __future__ import annotations

import json
import pickle
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace

import pytest

from tests.fakes.recording_server import (
    BIG,
    LIMITS,
    RecordingServer,
    read_all,
    recording_server,
)
from vision_o3.gateway.http_protocol import (
    MOST_HEADERS,
    MOST_PIPELINED,
    ConnectionLimits,
    http_protocol,
)

GET = b"GET / HTTP/1.1\r\nHost: gateway\r\n"
POST = b"POST / HTTP/1.1\r\nHost: gateway\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: gateway\r\n\r\n"

AMBIGUOUS = {
    "length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"
    b"\r\n0\r\n\r\n",
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"
    b"\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
    "the same length twice": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\n",
    "a list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "a signed length": POST + b"Content-Length: +3\r\n\r\nabc",
    "a negative length": POST + b"Content-Length: -3\r\n\r\nabc",
    "a hexadecimal length": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "no digits": POST + b"Content-Length:\r\n\r\nabc",
    "an endless length": POST + b"Content-Length: 99999999999999999999\r\n\r\n",
    "chunks of another name": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunks, then plain": POST + b"Transfer-Encoding: chunked\r\n"
    b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "packed chunks": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks behind a tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\n",
    "a folded header": GET + b"A: b\r\n c: d\r\n\r\n",
    "folded chunks": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: gateway\n\n",
    "one bare line feed": GET + b"A: b\n\r\n",
    "a bare carriage return": GET + b"A: b\rContent-Length: 44\r\n\r\n",
    "a space before the colon": GET + b"Content-Length : 44\r\n\r\n",
    "no name": GET + b": b\r\n\r\n",
    "a NUL in a header": GET + b"A: b\0c\r\n\r\n",
    "a control character in a header": GET + b"A: b\x01c\r\n\r\n",
    "a DEL in a header": GET + b"A: b\x7fc\r\n\r\n",
    "a control character in a name": GET + b"A\x01: b\r\n\r\n",
    "letters beyond ASCII in a name": GET + b"\xc3\x84: b\r\n\r\n",
    "a control character in the address": b"GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n",
    "letters beyond ASCII in the address": b"GET /\xc3\xa4 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a space in the address": b"GET /a b HTTP/1.1\r\nHost: gateway\r\n\r\n",
    "a fragment in the address": b"GET /a#b HTTP/1.1\r\nHost: gateway\r\n\r\n",
    "an address that is none": b"GET a HTTP/1.1\r\nHost: gateway\r\n\r\n",
    "a tunnel": b"CONNECT gateway:80 HTTP/1.1\r\nHost: gateway\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: gateway\r\n\r\n",
    "HTTP/2 by name": b"GET / HTTP/2.0\r\nHost: gateway\r\n\r\n",
    "HTTP/2 by its preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "an unknown method": b"FETCH / HTTP/1.1\r\nHost: gateway\r\n\r\n",
    "a method in small letters": b"get / HTTP/1.1\r\nHost: gateway\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"Host: other\r\n\r\n",
    "a host that is none": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a body behind an upgrade": POST
    + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
    "a chunk without a size": CHUNKED + b"\r\nabc\r\n0\r\n\r\n",
    "a chunk with a bare line feed": CHUNKED + b"3\nabc\r\n0\r\n\r\n",
    "a bare line feed after a chunk": CHUNKED + b"3\r\nabc\n0\r\n\r\n",
    "a chunk longer than it says": CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    "a hexadecimal mark before a size": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "a space after a size": CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n",
    "a negative size": CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
    "an endless size": CHUNKED + b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "an extension with a bare line feed": CHUNKED + b"3;a\nabc\r\n0\r\n\r\n",
}


@pytest.fixture(scope="module")
def server() -> Iterator[RecordingServer]:
    with recording_server() as running:
        yield running


def statuses(answer: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def problem(answer: bytes) -> dict[str, object]:
    """Return the one problem document that an answer is."""
    head, _, content = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    document: dict[str, object] = json.loads(content)
    assert headers["content-type"] == "application/problem+json"
    assert headers["content-length"] == str(len(content))
    assert headers["x-request-id"] == document["request_id"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["connection"] == "close"
    assert statuses(answer) == [document["status"]]
    return document


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_is_not_plainly_a_request_is_refused_with_all_that_follows(
    server: RecordingServer, name: str
) -> None:
    answer = server.exchange(AMBIGUOUS[name] + SMUGGLED)
    assert problem(answer)["code"] == "malformed_request"
    assert problem(answer)["status"] == 400
    assert not any(path == "/smuggled" for _, path, _ in server.app.asked)


def test_nothing_after_a_last_request_is_one(server: RecordingServer) -> None:
    for head in (
        GET + b"Connection: close\r\n\r\n",
        GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
    ):
        assert statuses(server.exchange(head + SMUGGLED)) == [200]
    assert not any(path == "/smuggled" for _, path, _ in server.app.asked)


def test_body_is_never_a_request(server: RecordingServer) -> None:
    size = len(SMUGGLED)
    end = b"Connection: close\r\n"
    whole = POST + end + b"Content-Length: %d\r\n\r\n%b" % (size, SMUGGLED)
    chunks = POST + end + b"Transfer-Encoding: chunked\r\n\r\n"
    chunks += b"%x;a=b\r\n%b\r\n0\r\n\r\n" % (size, SMUGGLED)
    for request in (whole, chunks):
        server.app.asked.clear()
        assert statuses(server.exchange(request)) == [200]
        assert server.app.asked == [("POST", "/", size)]


def test_fields_after_a_body_are_not_headers(server: RecordingServer) -> None:
    request = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    request += b"3\r\nabc\r\n0\r\nAuthorization: Bearer x\r\nHost: other\r\n\r\n"
    assert statuses(server.exchange(request)) == [200]
    names = [name for name, _ in server.app.headers]
    assert sorted(names) == [b"connection", b"host", b"transfer-encoding"]


def test_answers_are_whole_before_a_broken_request_ends_them(
    server: RecordingServer,
) -> None:
    answer = server.exchange((GET + b"\r\n") * 3 + b"broken\r\n\r\n")
    assert statuses(answer) == [200] * 3
    assert answer.endswith(b"\r\n\r\n0")


def test_requests_in_a_row_are_answered_in_their_order(server: RecordingServer) -> None:
    requests = [
        b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
        % (number, number, bytes(number))
        for number in range(MOST_PIPELINED)
    ]
    server.app.asked.clear()
    answer = server.exchange(*requests, GET + b"Connection: close\r\n\r\n")
    assert statuses(answer) == [200] * (MOST_PIPELINED + 1)
    sizes = [size for _, _, size in server.app.asked]
    assert sizes == [*range(MOST_PIPELINED), 0]


def test_too_many_requests_in_a_row_are_not_kept(server: RecordingServer) -> None:
    server.app.asked.clear()
    answer = server.exchange((GET + b"\r\n") * 1000)
    assert set(statuses(answer)) == {200}
    assert len(server.app.asked) == len(statuses(answer)) <= MOST_PIPELINED + 2


def test_head_of_the_largest_size_is_taken_and_a_larger_one_refused(
    server: RecordingServer,
) -> None:
    rest = GET + b"Connection: close\r\nA: "
    room = LIMITS.head_size - len(rest) - 100
    assert statuses(server.exchange(rest + b"b" * room + b"\r\n\r\n")) == [200]
    answer = server.exchange(rest + b"b" * (room + 200) + b"\r\n\r\n")
    assert problem(answer)["code"] == "head_too_large"
    assert problem(answer)["status"] == 431


@pytest.mark.parametrize(
    "bomb",
    {
        "one header": GET + b"A: " + b"b" * 8_000_000,
        "one name": GET + b"a" * 8_000_000,
        "many headers": GET + b"A: b\r\n" * 100_000,
        "few large headers": GET + (b"A: " + b"b" * 4000 + b"\r\n") * 100,
        "address": b"GET /" + b"a" * 8_000_000,
        "query": b"GET /?" + b"a=b&" * 2_000_000,
        "fields after a body": CHUNKED + b"0\r\n" + b"A: b\r\n" * 1_000_000,
        "one field after a body": CHUNKED + b"0\r\nA: " + b"b" * 8_000_000,
        "what extends a chunk": CHUNKED + b"3;" + b"a" * 8_000_000,
        "empty lines": b"\r\n" * 4_000_000,
    }.items(),
    ids=lambda bomb: bomb[0],
)
def test_bomb_of_headers_is_refused_and_the_answer_arrives(
    server: RecordingServer, bomb: tuple[str, bytes]
) -> None:
    document = problem(server.exchange(bomb[1]))
    assert (document["status"], document["code"]) == (431, "head_too_large")


def test_more_headers_than_anyone_needs_are_refused(server: RecordingServer) -> None:
    fields = MOST_HEADERS - len((b"Host", b"Connection"))
    rest = GET + b"Connection: close\r\n"
    assert statuses(server.exchange(rest + b"A: b\r\n" * fields + b"\r\n")) == [200]
    answer = server.exchange(rest + b"A: b\r\n" * (fields + 1) + b"\r\n")
    assert problem(answer)["limit"] == MOST_HEADERS


def test_slow_head_is_told_and_silence_is_not() -> None:
    with recording_server(replace(LIMITS, head_timeout_s=0.2)) as server:
        for nothing in (b"", b"\r\n"):
            assert server.exchange(nothing) == b""
        for head in (b"G", GET, GET + b"A: "):
            document = problem(server.exchange(head))
            assert document["status"] == 408
            assert document["code"] == "request_timeout"
        assert server.app.asked == []


def test_head_that_never_ends_is_timed_from_its_first_byte() -> None:
    with (
        recording_server(replace(LIMITS, head_timeout_s=0.3)) as server,
        server.connect() as connection,
    ):
        connection.settimeout(0.02)
        answer, sent = b"", 0
        while not answer:  # a byte now and then does not prolong it
            connection.sendall(b"GET / HTTP/1.1\r\nA: "[sent : sent + 1] or b"b")
            sent += 1
            try:
                answer = connection.recv(1000)
            except TimeoutError:
                continue
        assert statuses(answer) == [408]


def test_later_head_on_a_connection_has_its_own_time() -> None:
    with (
        recording_server(replace(LIMITS, head_timeout_s=0.3)) as server,
        server.connect() as connection,
    ):
        for _ in range(3):
            connection.sendall(GET + b"\r\n")
            assert statuses(connection.recv(1000)) == [200]
        connection.sendall(GET)
        assert problem(read_all(connection))["code"] == "request_timeout"


def test_work_on_a_request_is_not_timed_as_its_head() -> None:
    with (
        recording_server(replace(LIMITS, head_timeout_s=0.1)) as server,
        server.connect() as connection,
    ):
        connection.sendall(POST + b"Content-Length: 3\r\n\r\na")
        assert server.app.begun.wait(60)
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.sendall(b"bc")
        assert statuses(connection.recv(1000)) == [200]


@pytest.mark.parametrize("end", [b"", b"Connection: close\r\n"])
def test_answer_that_nobody_reads_is_given_up(end: bytes) -> None:
    limits = replace(LIMITS, stall_timeout_s=0.4)
    with recording_server(limits) as server, server.connect(4096) as connection:
        connection.sendall(b"GET /big HTTP/1.1\r\nHost: gateway\r\n" + end + b"\r\n")
        assert server.app.begun.wait(60)
        server.wait_until_alone()
        received = bytearray()
        with suppress(ConnectionResetError):
            while piece := connection.recv(1 << 16):
                received += piece
        assert len(received) < BIG


def test_answer_that_is_read_slowly_arrives() -> None:
    limits = replace(LIMITS, stall_timeout_s=0.4)
    with recording_server(limits) as server, server.connect(1 << 16) as connection:
        connection.sendall(
            b"GET /big HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"
        )
        answer = read_all(connection)
        assert len(answer) > BIG


def test_answer_that_is_read_a_little_at_a_time_is_not_given_up() -> None:
    # The system holds megabytes of it, and takes no more for longer than the timeout.
    limits = replace(LIMITS, stall_timeout_s=2)
    with (
        recording_server(limits, loop="uvloop") as server,
        server.connect() as connection,
    ):
        connection.sendall(
            b"GET /big HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"
        )
        received = 0
        for _ in range(70):
            received += len(connection.recv(5000))
            time.sleep(0.05)
        assert received + len(read_all(connection)) > BIG


def test_caller_who_leaves_with_a_later_request_waiting_is_noticed() -> None:
    with recording_server(loop="uvloop") as server:
        with server.connect() as connection:
            connection.sendall(
                b"GET /held HTTP/1.1\r\nHost: gateway\r\n\r\n" + GET + b"\r\n"
            )
            assert server.app.begun.wait(60)
        assert server.app.left.wait(60)


def test_connection_whose_request_is_answered_unread_is_not_kept() -> None:
    with (
        recording_server(timeout_keep_alive=1000) as server,
        server.connect() as connection,
    ):
        connection.sendall(
            b"POST /unread HTTP/1.1\r\nHost: gateway\r\nContent-Length: 9\r\n\r\na"
        )
        assert statuses(read_all(connection)) == [200]
        server.wait_until_alone()


def test_one_connection_too_many_is_told_to_come_later() -> None:
    with (
        recording_server(replace(LIMITS, connections=2)) as server,
        server.connect() as first,
        server.connect() as second,
    ):
        for kept in (first, second):
            kept.sendall(GET + b"\r\n")
            assert statuses(kept.recv(1000)) == [200]
        for words in (GET + b"\r\n", b""):  # the silent one is told, too
            answer = server.exchange(words)
            assert problem(answer)["status"] == 503
            assert problem(answer)["code"] == "gateway_busy"
            assert b"Retry-After: 5\r\n" in answer
        first.sendall(GET + b"\r\n")
        assert statuses(first.recv(1000)) == [200]
        first.close()
        second.close()
        server.wait_until_alone()
        assert statuses(server.exchange(GET + b"Connection: close\r\n\r\n")) == [200]


def test_many_connections_too_many_are_dropped() -> None:
    with recording_server(replace(LIMITS, connections=1)) as server:
        opened = [server.connect() for _ in range(200)]
        told = 0
        for connection in opened[1:]:
            try:
                told += statuses(read_all(connection)) == [503]
            except ConnectionResetError:
                continue
        assert 0 < told < 199
        for connection in opened:
            connection.close()


def test_protocol_can_be_sent_to_another_process() -> None:
    made = pickle.loads(pickle.dumps(http_protocol(LIMITS)))  # noqa: S301 - as uvicorn does
    assert made.keywords == {"limits": ConnectionLimits(**asdict(LIMITS))}
