"""Receive a multipart form: fields into memory, the file straight to the spool.

Nothing is kept twice: the parser (RFC 7578, python-multipart) marks what belongs to
the file in each piece of the body, and that goes on as a view. Every size is bounded,
and a body that ends too soon is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from vision_o3.errors import IncompleteUploadError, InputError, LimitExceededError
from vision_o3.gateway.bodies import Incoming

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from vision_o3.registry.spool import Spool, Spooled

Fields: TypeAlias = Mapping[str, list[str]]
"""Each field's values, in the order in which they came."""
Check: TypeAlias = Callable[[Fields, str | None], object]
"""Takes the fields so far and the file's name."""

FILE = "file"
"""The name of the one part that is a file."""
CID_FIELD = "cid"
"""The field that says which file it is; then the file may be left out."""
FRAME_SIZE = 16 << 10
"""Bytes allowed around each part: its boundary and headers."""
_ENCODINGS = frozenset({b"7bit", b"8bit", b"binary"})
"""Content-Transfer-Encodings that change nothing."""


@dataclass(frozen=True, slots=True)
class FormLimits:
    """What a form may hold beside its file, and how long it may take."""

    fields: int
    field_size: int
    """Bytes."""
    stall_timeout_s: float
    """Longest wait for the next bytes."""

    @property
    def beside_file(self) -> int:
        """Most bytes of a body that are not of its file."""
        return self.fields * (self.field_size + FRAME_SIZE) + FRAME_SIZE


@dataclass(frozen=True, slots=True)
class Form:
    """A wholly received form."""

    fields: Fields
    filename: str | None
    spooled: Spooled | None
    """``None`` if the field ``cid`` names the file instead."""


@asynccontextmanager
async def receive_form(
    request: Request, spool: Spool, limits: FormLimits, check: Check
) -> AsyncIterator[Form]:
    """Yield the request's form; its file is gone when the block ends.

    Args:
        request: Its body must not have been read.
        spool: Where the file goes.
        limits: For all that is not the file.
        check: Called with the fields so far and the file's name when the file starts;
            what it raises ends the upload before the file is received.

    Raises:
        InputError: Not a well-formed form with exactly one file, or with a CID.
        IncompleteUploadError: The body ended early, or came too slowly.
        LimitExceededError: A limit was exceeded; the rest was not received.
        StorageFullError, StorageError: The spool cannot take the file.
    """
    parts = _Parts(_boundary(request), limits, check)
    incoming = Incoming(request, limits.stall_timeout_s)
    # A body says its length; what is surely the file's share must fit.
    announced = max(0, (incoming.announced or 0) - limits.beside_file)
    async with spool.open(announced) as writer:
        received = 0
        while True:
            piece, ended = await incoming.next_piece()
            received += len(piece)
            for view in parts.feed(piece):
                await writer.write(view)
            if received - writer.received > limits.beside_file:
                raise LimitExceededError(
                    "The form is too large, not counting its file.",
                    limit=limits.beside_file,
                )
            if ended:
                break
        parts.finish()
        spooled = await writer.finish() if parts.has_file else None
        yield Form(parts.fields, parts.filename, spooled)


def _boundary(request: Request) -> bytes:
    content_type, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if content_type != b"multipart/form-data" or not boundary:
        raise InputError(
            "Send a form: Content-Type multipart/form-data with a boundary, "
            "for example curl -F name=my-model -F file=@model.onnx.",
        )
    return boundary


class _Parts:
    """Sorts the pieces of a body into fields and file."""

    def __init__(self, boundary: bytes, limits: FormLimits, check: Check) -> None:
        self.fields: dict[str, list[str]] = {}
        self.filename: str | None = None
        self._limits = limits
        self._check = check
        self._count = 0
        self.has_file = False
        self._in_file = False
        self._ended = False
        self._name = ""
        self._value = bytearray()
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._file_pieces: list[memoryview] = []
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _malformed(error) from error

    def feed(self, piece: bytes) -> list[memoryview]:
        """Take the next bytes of the body; return those which are the file's."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _malformed(error) from error
        file_pieces, self._file_pieces = self._file_pieces, []
        return file_pieces

    def finish(self) -> None:
        """Raise unless a whole form with a file, or the CID of one, was received."""
        if not self._ended:
            raise IncompleteUploadError(
                "The form ends before its last boundary. Send it again, whole."
            )
        if not self.has_file and not any(self.fields.get(CID_FIELD, ())):
            raise InputError(
                f"The form has no file. Send it as the part {FILE!r}, "
                "for example curl -F file=@model.onnx, or say by its CID "
                f"({CID_FIELD!r}) which one to publish that the gateway has.",
            )

    def _on_part_begin(self) -> None:
        self._count += 1
        if self._count > self._limits.fields + 1:
            raise LimitExceededError(
                f"The form has more than {self._limits.fields} fields.",
                limit=self._limits.fields,
            )
        self._headers = {}

    def _on_header_field(self, piece: bytes, start: int, end: int) -> None:
        self._header_name += piece[start:end]

    def _on_header_value(self, piece: bytes, start: int, end: int) -> None:
        self._header_value += piece[start:end]

    def _on_header_end(self) -> None:
        self._headers[bytes(self._header_name.lower())] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        disposition, options = parse_options_header(
            self._headers.get(b"content-disposition")
        )
        if disposition != b"form-data" or b"name" not in options:
            raise InputError("A part of the form has no name.")
        encoding = self._headers.get(b"content-transfer-encoding", b"binary")
        if encoding.lower() not in _ENCODINGS:
            raise InputError("Send the form's parts as they are, without encoding.")
        self._name = _text(options[b"name"], "A field's name")
        self._in_file = self._name == FILE
        filename = options.get(b"filename")
        if self._in_file:
            if self.has_file:
                raise InputError("The form has two files. Publish them one by one.")
            self.has_file = True
            if filename is not None:
                self.filename = filename.decode(errors="replace")
            self._check(self.fields, self.filename)
        elif filename is not None:
            raise InputError(
                f"The part {self._name[:64]!r} is a file. The one file of the form "
                f"is the part {FILE!r}.",
            )

    def _on_part_data(self, piece: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._file_pieces.append(memoryview(piece)[start:end])
            return
        self._value += piece[start:end]
        if len(self._value) > self._limits.field_size:
            raise LimitExceededError(
                f"The field {self._name[:64]!r} has more than "
                f"{self._limits.field_size} bytes.",
                limit=self._limits.field_size,
            )

    def _on_part_end(self) -> None:
        if not self._in_file:
            text = _text(bytes(self._value), f"The field {self._name[:64]!r}")
            self.fields.setdefault(self._name, []).append(text)
            self._value.clear()

    def _on_end(self) -> None:
        self._ended = True


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is not UTF-8 text.") from error


def _malformed(error: FormParserError) -> InputError:
    return InputError(f"The form is malformed: {error}.")
