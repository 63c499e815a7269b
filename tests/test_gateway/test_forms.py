from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from vision_o3.content.dag import cid_of_bytes
from vision_o3.errors import (
    IncompleteUploadError,
    InputError,
    InvalidNameError,
    LimitExceededError,
    VisionO3Error,
)
from vision_o3.gateway.forms import Fields, FormLimits, receive_form
from vision_o3.registry.spool import Spool

LIMITS = FormLimits(fields=4, field_size=50, stall_timeout_s=5)
FILE = b"\r\n--B\r\n-x--B--\r\n\r-" * 3
TYPE = b"multipart/form-data; boundary=B"


def part(name: str, value: bytes, more: bytes = b"", headers: bytes = b"") -> bytes:
    return (
        b'--B\r\nContent-Disposition: form-data; name="' + name.encode() + b'"' + more
        + b"\r\n" + headers + b"\r\n" + value + b"\r\n"
    )  # fmt: skip


def file_part(content: bytes = b"bytes", name: str = "file") -> bytes:
    return part(name, content, b'; filename="m.onnx"')


END = b"--B--\r\n"


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spool]:
    spool = Spool(tmp_path_factory.mktemp("spool"), max_size=1000, min_free=0)
    yield spool
    spool.close()


Received = tuple[dict[str, list[str]], str | None, bytes, str]


def receive(
    spool: Spool,
    pieces: Iterable[bytes],
    *,
    content_type: bytes | None = TYPE,
    length: int | None = None,
    limits: FormLimits = LIMITS,
    check: Any = lambda *_: None,
    then: str = "end",
) -> Received:
    """Receive a body in the given pieces; then it ends, is lost or stalls."""
    messages: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
    ]
    if then == "end":
        messages.append({"type": "http.request", "body": b""})
    elif then == "lost":
        messages.append({"type": "http.disconnect"})
    script = iter(messages)

    async def next_message() -> Message:
        message = next(script, None)
        if message is None:
            await asyncio.Event().wait()
        return message or {}

    headers = []
    if content_type is not None:
        headers.append((b"content-type", content_type))
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    scope = {"type": "http", "method": "POST", "headers": headers}

    async def run() -> Received:
        request = Request(scope, next_message)
        async with receive_form(request, spool, limits, check) as form:
            assert form.spooled is not None
            content = form.spooled.path.read_bytes()
            root = str(form.spooled.dag.root)
            return dict(form.fields), form.filename, content, root

    try:
        return asyncio.run(run())
    finally:
        assert not list(Path(spool._directory).iterdir())


@given(st.data())
def test_form_is_the_same_however_it_is_cut(spool: Spool, data: st.DataObject) -> None:
    parts = [part("name", b"m"), part("tags", b"a"), part("tags", "ü".encode())]
    parts.insert(data.draw(st.integers(0, 3)), file_part(FILE.replace(b"--B", b"--C")))
    body = b"\r\n" + b"".join(parts) + END + b"epilogue"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    fields, filename, content, root = receive(spool, pieces)
    assert fields == {"name": ["m"], "tags": ["a", "ü"]}
    assert filename == "m.onnx"
    assert content == FILE.replace(b"--B", b"--C")
    assert root == str(cid_of_bytes(content))


def test_every_byte_alone_gives_the_same_form(spool: Spool) -> None:
    body = part("name", b"m") + file_part(b"\r\n--\r\n--A") + END
    received = receive(spool, [body[i : i + 1] for i in range(len(body))])
    assert received[:3] == ({"name": ["m"]}, "m.onnx", b"\r\n--\r\n--A")


def test_file_needs_no_filename_and_may_be_empty(spool: Spool) -> None:
    received = receive(spool, [part("file", b"") + END])
    assert received[:3] == ({}, None, b"")


def test_filename_that_is_not_utf8_is_replaced(spool: Spool) -> None:
    body = part("file", b"x", b'; filename="\xff.onnx"') + END
    assert receive(spool, [body])[1] == "�.onnx"


@pytest.mark.parametrize("cut", range(0, 120, 7))
def test_body_cut_short_is_incomplete(spool: Spool, cut: int) -> None:
    body = part("name", b"m") + file_part() + b"--B--"
    for then in ("end", "lost"):
        with pytest.raises(IncompleteUploadError):
            receive(spool, [body[:cut]], then=then)


def test_stalled_body_is_incomplete(spool: Spool) -> None:
    limits = FormLimits(fields=4, field_size=50, stall_timeout_s=0.01)
    with pytest.raises(IncompleteUploadError, match=r"No bytes came for 0\.01 s"):
        receive(spool, [file_part()], limits=limits, then="stall")


MALFORMED = {
    "not a form": (b"{}", b"application/json"),
    "no type": (b"{}", None),
    "no boundary": (file_part() + END, b"multipart/form-data"),
    "long boundary": (END, b"multipart/form-data; boundary=" + b"B" * 300),
    "another boundary": (file_part() + END, b"multipart/form-data; boundary=C"),
    "no file": (part("name", b"m") + END, TYPE),
    "no parts": (END, TYPE),
    "two files": (file_part() * 2 + END, TYPE),
    "file of another name": (file_part(name="model") + END, TYPE),
    "no name": (b"--B\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END, TYPE),
    "no disposition": (b"--B\r\n\r\nx\r\n" + END, TYPE),
    "attachment": (
        b'--B\r\nContent-Disposition: attachment; name="file"\r\n\r\nx\r\n' + END,
        TYPE,
    ),
    "encoded": (
        part("file", b"eA==", headers=b"Content-Transfer-Encoding: base64\r\n") + END,
        TYPE,
    ),
    "not UTF-8": (part("name", b"\xff") + file_part() + END, TYPE),
    "bad header": (b"--B\r\nbad\x00header: x\r\n\r\nx\r\n" + END, TYPE),
    "long header": (b"--B\r\nx: " + b"y" * 9000 + b"\r\n\r\nx\r\n" + END, TYPE),
    "many headers": (b"--B\r\n" + b"x: y\r\n" * 50 + b"\r\nx\r\n" + END, TYPE),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_forms_are_refused(spool: Spool, kind: str) -> None:
    body, content_type = MALFORMED[kind]
    with pytest.raises(InputError) as caught:
        receive(spool, [body], content_type=content_type)
    assert caught.value.code == "invalid_input"
    assert caught.value.message.endswith(".")


TOO_LARGE = {
    "file": file_part(b"x" * 1001),
    "field": part("name", b"x" * 51),
    "number of fields": part("name", b"m") * 6,
    "preamble": b"\r\n" * 100_000,
    "epilogue": file_part() + END + b"x" * 100_000,
}


@pytest.mark.parametrize("kind", TOO_LARGE)
def test_limits_are_kept_before_the_body_has_ended(spool: Spool, kind: str) -> None:
    with pytest.raises(LimitExceededError) as caught:
        receive(spool, [TOO_LARGE[kind]], then="stall")
    assert caught.value.values["limit"] > 0


def test_body_that_says_to_be_too_large_is_not_read(spool: Spool) -> None:
    with pytest.raises(LimitExceededError):
        receive(spool, [], length=1001 + LIMITS.beside_file, then="stall")
    received = receive(
        spool, [file_part(b"x" * 1000) + END], length=1000 + LIMITS.beside_file
    )
    assert len(received[2]) == 1000


def test_what_precedes_the_file_is_checked_before_it_is_received(spool: Spool) -> None:
    seen: list[tuple[Fields, str | None]] = []

    def check(fields: Fields, filename: str | None) -> None:
        seen.append((dict(fields), filename))
        raise InvalidNameError("no")

    head = (part("name", b"m") + file_part()).partition(b"bytes")[0]
    with pytest.raises(InvalidNameError):
        receive(spool, [head], check=check, then="stall")
    assert seen == [({"name": ["m"]}, "m.onnx")]


@given(st.binary(max_size=200))
def test_any_body_gives_a_form_or_our_error(spool: Spool, body: bytes) -> None:
    for prefix in (b"", b"--B\r\n", part("name", b"m")):
        try:
            receive(spool, [prefix + body])
        except VisionO3Error as error:
            assert isinstance(error, InputError)  # noqa: PT017 - or no error at all
