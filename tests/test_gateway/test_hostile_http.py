"""Hostile clients before a whole gateway: each gets its code, and others their answers.

What a connection alone may do is in ``test_http_protocol.py``; all of it at full size,
with figures, in ``benchmarks/hostile_clients.py``.
"""

from __future__ import annotations

import json
import socket
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import httpx
import pytest

from tests.fakes.http_wire import PIECE
from tests.fakes.model_files import tflite
from tests.test_gateway.running import MIB, Running, Serve, Served, problem
from tests.test_gateway.test_connections import (
    HEAD,
    TAIL,
    answer_of,
    begin,
    publish,
)

TEXTS = {
    "NUL": "a\0b",
    "control characters": "a\x01\x08\x0b\x1b[31m\x7f\x9fb",
    "line ends": 'a\r\nb\n{"event": "forged"}\u2028c\u2029d\x85e',
    "right to left": "a\u202eb\u2066c",
    "beyond the first plane": "\U0001f916\U0010ffff",
    "not a character": "a\ufffe\uffffb",
    "combining": "e" + "\u0301" * 100,
    "markup": "<script>alert(1)</script>{{7*7}}${7*7}%s%n%00",
    "SQL": "'; DROP TABLE models;-- \\ % _ \"",
    "white space alone": "\t \xa0\u3000",
    "long": "\xe4" * 10_000,
}
SURROGATE = "a\ud800b"


@contextmanager
def others_unharmed(served: Served) -> Iterator[Callable[[], None]]:
    """Yield what asks, as another client, for something; and ask at the end, too."""
    with closing(
        httpx.Client(base_url=f"http://127.0.0.1:{served.port}", timeout=60)
    ) as client:
        headers = served.headers()

        def ask() -> None:
            answer = client.get("/models", headers=headers)
            assert answer.status_code == 200

        ask()
        yield ask
        ask()


def test_slow_upload_is_ended_and_leaves_nothing(serve: Serve) -> None:
    with (
        serve(stall_timeout_s=0.5) as served,
        others_unharmed(served) as ask,
        begin(served, 1 << 30) as connection,
    ):
        connection.sendall(HEAD)
        connection.settimeout(0.01)
        answer = b""
        while not answer:  # a byte now and then: never a stall, and never a file
            connection.sendall(b"a")
            try:
                answer = connection.recv(PIECE)
            except TimeoutError:
                ask()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"incomplete_upload" in answer
        assert b"Fewer than 512 bytes a second" in answer
        served.wait_until_empty()


def test_slow_part_of_an_upload_is_ended(serve: Serve) -> None:
    with serve(stall_timeout_s=0.3) as served, served.connect() as connection:
        cid = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
        lines = [f"{name}: {value}" for name, value in served.headers().items()]
        head = f"PUT /uploads/{cid} HTTP/1.1\r\nHost: gateway\r\n" + "\r\n".join(lines)
        connection.sendall(f"{head}\r\nContent-Length: 100000\r\n\r\na".encode())
        assert answer_of(connection)[0] in {400, 422}


def test_slow_sign_in_is_ended_though_nobody_is_known_yet(serve: Serve) -> None:
    with serve(stall_timeout_s=0.3) as served, served.connect() as connection:
        connection.sendall(
            b"POST /auth/token HTTP/1.1\r\nHost: gateway\r\nContent-Length: 1000\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\n\r\ngrant_type="
        )
        status, body = answer_of(connection)
        assert (status, json.loads(body)["code"]) == (408, "request_timeout")


def test_upload_in_chunks_of_one_byte_is_taken(serve: Serve) -> None:
    content = HEAD + tflite(1, 100_000) + TAIL
    with serve() as served, begin(served, "chunked") as connection:
        for start in range(0, len(content), 1000):
            piece = content[start : start + 1000]
            connection.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in piece))
        connection.sendall(b"0\r\n\r\n")
        assert answer_of(connection)[0] == 201


def test_form_of_very_many_parts_is_refused_early(serve: Serve) -> None:
    part = HEAD[: HEAD.index(b'name="file"')]
    with (
        serve(max_form_fields=10) as served,
        others_unharmed(served),
        begin(served, 100_000 * len(part)) as connection,
    ):
        connection.sendall(part * 20_000)
        status, body = answer_of(connection)
        assert (status, json.loads(body)["code"]) == (413, "too_large")
        served.wait_until_empty()


@pytest.mark.parametrize(
    "body",
    [
        HEAD[:30] + b"A: b\r\n" * 100_000,
        HEAD[:30] + b"A: " + b"b" * (8 * MIB),
        b"--" + b"-" * (8 * MIB),
        b"\r\n" * (4 * MIB),
    ],
    ids=["many headers", "a large header", "a large boundary", "empty lines"],
)
def test_form_that_is_all_frame_is_refused(serve: Serve, body: bytes) -> None:
    with serve(max_form_fields=5, max_field_bytes=1000) as served:
        with begin(served, len(body)) as connection:
            connection.sendall(body)
            status, answer = answer_of(connection)
        assert status in {400, 413, 422}
        assert json.loads(answer)["request_id"]
        served.wait_until_empty()


def test_idle_connections_do_not_keep_others_out(serve: Serve) -> None:
    with serve() as served, ExitStack() as stack, others_unharmed(served) as ask:
        for _ in range(300):
            stack.enter_context(served.connect())
        ask()


def test_connections_that_begin_a_request_do_not_either(serve: Serve) -> None:
    with (
        serve(head_timeout_s=0.5) as served,
        ExitStack() as stack,
        others_unharmed(served) as ask,
    ):
        opened = [stack.enter_context(served.connect()) for _ in range(100)]
        for connection in opened:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost")
        ask()
        assert {answer_of(connection)[0] for connection in opened} == {408}


def test_json_that_nests_too_deeply_is_refused(running: Running) -> None:
    for content in (b"[" * 60_000, b'{"name":' * 8000, b"[" * 3000 + b"]" * 3000):
        headers = {"Content-Type": "application/json"}
        answer = running.request(
            "POST", "/admin/users", content=content, headers=headers
        )
        assert problem(answer) == (422, "invalid_input")


def test_large_json_is_refused_before_anyone_is_known(serve: Serve) -> None:
    with serve() as served, others_unharmed(served), served.connect() as connection:
        connection.sendall(
            b"POST /admin/users HTTP/1.1\r\nHost: gateway\r\n"
            b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(4):
            connection.sendall(b"100000\r\n" + b" " * MIB + b"\r\n")
        status, body = answer_of(connection)
        assert (status, json.loads(body)["code"]) == (413, "too_large")


def test_very_many_ranges_are_answered_with_the_whole_file(serve: Serve) -> None:
    content = tflite(1, 100_000)
    with serve() as served:
        assert publish(served, content) == 201
        for ranges in ("0-0", "-1", "1-"):
            answer = httpx.get(
                f"http://127.0.0.1:{served.port}/models/m/download",
                headers={
                    **served.headers(),
                    "Range": "bytes=" + ",".join([ranges] * 10_000),
                },
            )
            assert answer.status_code == 200
            assert answer.content == content


@pytest.mark.parametrize("collection", ["models", "datasets"])
@pytest.mark.parametrize(
    "number",
    [
        0,
        -1,
        1 << 31,
        1 << 63,
        10**30,
        "9" * 1000,
        "1e9",
        "\u0661",
        "",
        "0x10",
        "1;",
        "+1",
    ],
)
def test_absurd_page_is_refused_or_empty(
    either_gateway: Running, collection: str, number: object
) -> None:
    for name in ("page", "page_size"):
        answer = either_gateway.get(f"/{collection}", params={name: str(number)})
        if answer.status_code == 200:
            assert answer.json()["items"] == []
        else:
            assert problem(answer) == (422, "invalid_input")


FIELDS = (
    "name",
    "description",
    "tags",
    "framework",
    "model_type",
    "file_format",
    "cid",
    "filename",
)
SHOWN = ("name", "description", "framework", "model_type")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_of_a_form_comes_back_as_it_went_in_or_is_refused(
    either_gateway: Running, field: str, text: str
) -> None:
    name = f"m{abs(hash((field, text))) % 10**9}"
    fields: dict[str, Any] = {"name": name, "framework": "tflite", field: text}
    answer = either_gateway.publish(**fields)
    if answer.status_code != 201:
        assert 400 <= answer.status_code < 500
        problem(answer)
        return
    found = either_gateway.get(answer.headers["location"]).json()
    assert found == {name: answer.json()[name] for name in found}
    assert either_gateway.get(f"/models/{found['name']}").json() == found
    if field in SHOWN:
        assert found[field] == text
    if field == "tags":
        assert all(tag and tag in text for tag in found["tags"])


@pytest.mark.parametrize("field", FIELDS)
def test_bytes_that_are_no_text_are_refused(
    either_gateway: Running, field: str
) -> None:
    for raw in (b"a\xffb", SURROGATE.encode(errors="surrogatepass"), b"\xc0\x80"):
        part = f'Content-Disposition: form-data; name="{field}"\r\n\r\n'.encode()
        body = HEAD.replace(
            b'Content-Disposition: form-data; name="file"',
            part + raw + b"\r\n--boundary-of-the-tests\r\n"
            b'Content-Disposition: form-data; name="file"',
        )
        answer = either_gateway.request(
            "POST",
            "/models",
            content=body + tflite() + TAIL,
            headers={
                "Content-Type": "multipart/form-data; boundary=boundary-of-the-tests"
            },
        )
        assert problem(answer) == (422, "invalid_input")


def paths_with(text: str) -> list[str]:
    short = text[:3000]  # httpx sends no longer addresses
    quoted = urllib.parse.quote(short.encode(errors="surrogatepass"), safe="")
    queries = ("q", "framework", "model_type", "format", "tags", "owner", "sort")
    return [
        *(f"/models?{name}={quoted}" for name in queries),
        f"/datasets?q={quoted}&has_class={quoted}&annotations={quoted}",
        f"/models?{quoted}={quoted}",
        f"/models/{quoted}",
        f"/models/{quoted}/download",
        f"/models/m/versions/{quoted}",
        f"/models/m/download?version={quoted}",
        f"/models/cid/{quoted}",
        f"/datasets/{quoted}/versions/1/manifest",
        f"/datasets/m/files/{quoted}",
        f"/datasets/m/diff?from={quoted}&to=2",
        f"/uploads/{quoted}",
        f"/admin/users/{quoted}",
        f"/{quoted}",
    ]


@pytest.mark.parametrize("text", [*TEXTS.values(), SURROGATE], ids=[*TEXTS, "half"])
def test_text_of_an_address_is_looked_for_or_refused(
    either_gateway: Running, text: str
) -> None:
    for path in paths_with(text):
        answer = either_gateway.get(path)
        assert answer.status_code < 500, path
        if answer.status_code == 200:
            assert answer.json()["page"] == 1
        else:
            problem(answer)


@pytest.mark.parametrize("text", [*TEXTS.values(), SURROGATE], ids=[*TEXTS, "half"])
def test_text_of_json_comes_back_as_it_went_in_or_is_refused(
    either_gateway: Running, text: str
) -> None:
    name = f"user-{abs(hash(text)) % 10**9}"
    for field in ("name", "label", "roles", "permissions"):
        value: Any = [text] if field in {"roles", "permissions"} else text
        body = {"name": name, "label": "first", field: value}
        answer = either_gateway.request(
            "POST",
            "/admin/users",
            content=json.dumps(body),  # ASCII: halves of characters as they are
            headers={"Content-Type": "application/json"},
        )
        if answer.status_code != 201:
            assert problem(answer)[0] in {409, 422}
            continue
        shown = either_gateway.get(
            f"/admin/users/{urllib.parse.quote(body['name'], safe='')}"
        )
        assert shown.json()["name"] == body["name"]
        assert [each["label"] for each in shown.json()["secrets"]] == [body["label"]]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_of_a_sign_in_is_unknown_or_refused(
    either_gateway: Running, text: str
) -> None:
    form = {"grant_type": "client_credentials", "client_id": "a", "client_secret": "b"}
    for field in (*form, "scope"):
        answer = either_gateway.request(
            "POST", "/auth/token", token=None, data={**form, field: text}
        )
        assert problem(answer)[0] in {401, 403, 413, 422, 429}


def test_socket_that_is_closed_at_any_point_harms_nobody(serve: Serve) -> None:
    request = (
        b"POST /models HTTP/1.1\r\nHost: gateway\r\nContent-Length: 1000\r\n"
        b"Content-Type: multipart/form-data; boundary=boundary-of-the-tests\r\n\r\n"
    ) + HEAD
    with serve() as served, others_unharmed(served) as ask:
        for end in range(0, len(request), 37):
            connection = served.connect()
            connection.sendall(request[:end])
            if end % 2:  # reset, not closed
                connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                )
            connection.close()
        ask()
        served.wait_until_empty()
