"""The header of an ONNX model: the top-level fields of its ``ModelProto``.

Protocol buffers without a library: fields are walked by tag and length, large ones
are skipped by seeking, and the lengths must fill the file exactly. Field numbers are
those of ``onnx.proto`` (ModelProto, OperatorSetIdProto).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_IR_VERSION, _MODEL_VERSION, _GRAPH, _OPSET = 1, 5, 7, 8
_TEXTS = {2: "producer_name", 3: "producer_version", 4: "domain"}
_KNOWN = {*range(1, 9), 14, 20, 25, 26}
_MOST_FIELDS = 10_000
_LONGEST_TEXT = 1_000
_MOST_VERSION = 1_000
"""Far above any IR or opset version that exists (13 and 26 in 2026)."""


def read_header(file: BinaryIO, size: int) -> dict[str, Any]:
    """Return the facts of the model's header.

    Raises:
        ValueError: Not a well-formed ``ModelProto`` with an IR version and a graph.
    """
    facts: dict[str, Any] = {"opset_import": {}}
    has_graph = False
    file.seek(0)
    for number, value, length in _fields(file, size):
        if number not in _KNOWN:
            raise ValueError(f"an ONNX model has no field {number}")
        if number == _IR_VERSION and value is not None:
            facts["ir_version"] = value
        elif number == _MODEL_VERSION and value is not None:
            facts["model_version"] = value
        elif number in _TEXTS and length is not None:
            facts[_TEXTS[number]] = _text(file, length)
        elif number == _OPSET and length is not None:
            domain, version = _opset(file, length)
            facts["opset_import"][domain] = version
        elif number == _GRAPH:
            has_graph = has_graph or length is not None
    if not has_graph or not 1 <= facts.get("ir_version", 0) <= _MOST_VERSION:
        raise ValueError("an ONNX model has an IR version and a graph")
    return facts


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int | None, int | None]]:
    """Yield each field's number and value or, for bytes, their length.

    The file stands at the bytes when a length is yielded, and wherever the caller
    leaves it, the next field is found.
    """
    for _ in range(_MOST_FIELDS):
        if file.tell() == end:
            return
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            yield number, _varint(file), None
        elif kind == _BYTES:
            length = _varint(file)
            after = file.tell() + length
            if after > end:
                raise ValueError("a field is longer than the file; is it cut short?")
            yield number, None, length
            file.seek(after)
        elif kind in {_FIXED32, _FIXED64}:
            width = 4 if kind == _FIXED32 else 8
            if len(file.read(width)) != width:
                raise ValueError("it is cut short")
            yield number, None, None
        else:
            raise ValueError("it is not a protocol buffer")
    raise ValueError("it has too many fields")


def _opset(file: BinaryIO, length: int) -> tuple[str, int]:
    domain, version = "", 0
    for number, value, size in _fields(file, file.tell() + length):
        if number == 1 and size is not None:
            domain = _text(file, size)
        elif number == 2 and value is not None:  # noqa: PLR2004 - its field number
            version = value
    if not 1 <= version <= _MOST_VERSION:
        raise ValueError("an opset has no version")
    return domain or "ai.onnx", version


def _text(file: BinaryIO, length: int) -> str:
    if length > _LONGEST_TEXT:
        raise ValueError("a text in its header is too long")
    return file.read(length).decode("utf-8", "strict").replace("\0", "")


def _varint(file: BinaryIO) -> int:
    number = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it is cut short")
        number |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:  # noqa: PLR2004 - the varint's continuation bit
            return number
    raise ValueError("it is not a protocol buffer")
