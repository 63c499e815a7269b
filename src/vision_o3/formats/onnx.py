"""The header of an ONNX model: the top-level fields of its ``ModelProto``.

Protocol buffers without a library: fields are walked by tag and length, large ones
are skipped by seeking, and the lengths must fill the file exactly. Field numbers are
those of ``onnx.proto`` (ModelProto, OperatorSetIdProto).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

_VARINT, _BYTES = 0, 2
_GRAPH, _OPSET = 7, 8
_NUMBERS = {1: "ir_version", 5: "model_version"}
_TEXTS = {2: "producer_name", 3: "producer_version", 4: "domain"}
_KNOWN = {*range(1, 9), 14, 20, 25, 26}
_MOST_FIELDS = 10_000
_MOST_OPSETS = 100
_LONGEST_TEXT = 1_000
_MOST_VERSION = 1_000
"""Far above any IR or opset version (14 and 26 in 2026), far below random bytes."""
_FIRST_WITH_OPSETS = 3
"""IR version from which a model must say which operator sets it uses."""


def read_header(file: BinaryIO, size: int) -> dict[str, Any]:
    """Return the facts of the model's header.

    Raises:
        ValueError: Not a well-formed ``ModelProto`` with an IR version and a graph.
    """
    facts: dict[str, Any] = {"opset_import": {}}
    has_graph = False
    file.seek(0)
    for number, value in _fields(file, size):
        if number not in _KNOWN or (number in _NUMBERS) != isinstance(value, int):
            raise ValueError(f"an ONNX model has no such field {number}")
        if isinstance(value, int):
            facts[_NUMBERS[number]] = value
        elif number in _TEXTS:
            facts[_TEXTS[number]] = _text(file, value)
        elif number == _OPSET:
            domain, version = _opset(file, value)
            facts["opset_import"][domain] = version
        elif number == _GRAPH:
            has_graph = has_graph or len(value) > 0
    if not has_graph or not 1 <= facts.get("ir_version", 0) <= _MOST_VERSION:
        raise ValueError("an ONNX model has an IR version and a graph")
    opsets = len(facts["opset_import"])
    if opsets > _MOST_OPSETS or (
        opsets == 0 and facts["ir_version"] >= _FIRST_WITH_OPSETS
    ):
        raise ValueError(f"an ONNX model names its opsets; it names {opsets}")
    return facts


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int | range]]:
    """Yield each field's number and value or, for bytes, where they are.

    Wherever the caller leaves the file, the next field is found.
    """
    for _ in range(_MOST_FIELDS):
        if file.tell() == end:
            return
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            yield number, _varint(file)
        elif kind == _BYTES:
            length = _varint(file)
            start = file.tell()
            if start + length > end:
                raise ValueError(
                    "a field is longer than the file, as if it were cut short"
                )
            yield number, range(start, start + length)
            file.seek(start + length)
        else:
            raise ValueError("it is not a protocol buffer")
    raise ValueError("it has too many fields")


def _opset(file: BinaryIO, place: range) -> tuple[str, int]:
    domain, version = "", 0
    file.seek(place.start)
    for number, value in _fields(file, place.stop):
        if number == 1 and isinstance(value, range):
            domain = _text(file, value)
        elif number == 2 and isinstance(value, int):  # noqa: PLR2004 - its field number
            version = value
    if not 1 <= version <= _MOST_VERSION:
        raise ValueError("an opset has no version")
    return domain or "ai.onnx", version


def _text(file: BinaryIO, place: range) -> str:
    if len(place) > _LONGEST_TEXT:
        raise ValueError("a text in its header is too long")
    file.seek(place.start)
    return file.read(len(place)).decode("utf-8", "strict").replace("\0", "")


def _varint(file: BinaryIO) -> int:
    """Read an ``int64``: ten bytes at most, negative if its 64th bit is set."""
    number = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it is cut short")
        number |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:  # noqa: PLR2004 - the varint's continuation bit
            number &= (1 << 64) - 1
            return number - (1 << 64) if number >> 63 else number
    raise ValueError("it is not a protocol buffer")
