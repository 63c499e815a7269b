"""Metadata that are packed with a TFLite model, and the labels they speak of.

``TFLITE_METADATA`` is a FlatBuffer within the model (``metadata_schema.fbs``, file
identifier ``M001``). The files that it names, such as one of labels, are in a ZIP
archive that is appended to the model.
"""

from __future__ import annotations

import struct
import zlib
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from vision_o3.formats.bounded import LISTED, clean
from vision_o3.formats.flatbuffer import FlatBuffer, Shape, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vision_o3.formats.mapped import Content

_METADATA = "TFLITE_METADATA"
_RUNTIME = "min_runtime_version"
_LONGEST_RUNTIME = 100
_IDENTIFIER = b"M001"
_TEXTS = {"name": 0, "description": 1, "version": 2, "author": 4, "license": 5}
_MOST_VISITED = 100_000

_FILE = Shape(strings=(0, 1, 3, 4))
_TENSOR = Shape(strings=(0, 1), lists={6: _FILE})
_SUBGRAPH = Shape(strings=(0, 1), lists={2: _TENSOR, 3: _TENSOR, 4: _FILE})
_MODEL = Shape(strings=(0, 1, 2, 4, 5, 7), lists={3: _SUBGRAPH, 6: _FILE})
_LABELS = {2, 3}
"""``AssociatedFileType``: labels of an axis, labels of values."""

_MOST_FILES = 1_000
_MOST_LABELS = 1 << 20
"""Bytes of a file of labels."""
_MOST_DIRECTORY = 1 << 20
"""Bytes of the directory of an appended archive, which has a few files."""
_LONGEST_COMMENT = 65_535
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 1

# APPNOTE 4.3.7, 4.3.12, 4.3.16: the fields of use, in order.
_LOCAL = struct.Struct("<26xHH")  # lengths of name and extra field
_ENTRY = struct.Struct("<4s4xHH4xIIIHHH8xI")
_END = struct.Struct("<4s8xIIH")  # directory size and offset, comment length


class _Member(NamedTuple):
    """A file in the appended archive, as its directory has it."""

    at: int
    flags: int
    method: int
    crc: int
    packed: int
    unpacked: int

    @property
    def is_too_much(self) -> bool:
        """Whether it is too large, encrypted, or packed in an unusual way."""
        return (
            max(self.packed, self.unpacked) > _MOST_LABELS
            or self.method not in {_STORED, _DEFLATED}
            or bool(self.flags & _ENCRYPTED)
        )


def read_metadata(
    content: Content, size: int, entries: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    """Return ``metadata``, ``labels`` and ``label_count`` of a model.

    Args:
        content: The file.
        size: Its bytes.
        entries: Where the bytes of each entry of the model's metadata are.

    Raises:
        ValueError: They are damaged, or an archive that they need is not there.
    """
    metadata: dict[str, str] = {}
    labels: list[str] = []
    if _METADATA in entries:
        at, length = entries[_METADATA]
        buffer = FlatBuffer(content, at, at + length, _MOST_VISITED)
        model = buffer.root(_IDENTIFIER)
        buffer.check(model, _MODEL)
        for name, number in _TEXTS.items():
            text = clean(model.string(number))
            if text:
                metadata[name] = text
        labels = _labels(content, size, model)
    if _RUNTIME in entries:
        at, length = entries[_RUNTIME]
        told = content[at : at + min(length, _LONGEST_RUNTIME)]
        # A field of fixed length, filled up with zeros.
        metadata[_RUNTIME] = clean(told.split(b"\0")[0].decode("ascii", "replace"))
    return {
        "metadata": metadata,
        "labels": [clean(label) for label in labels[:LISTED]],
        "label_count": len(labels),
    }


def _labels(content: Content, size: int, model: Table) -> list[str]:
    """Return the labels in the first file that is one of labels, outputs' first."""
    files = [
        (file.string(0), file.number(2, "b"))
        for file in islice(_files(model), _MOST_FILES + 1)
    ]
    if len(files) > _MOST_FILES:
        raise ValueError(f"its metadata name more than {_MOST_FILES} files")
    if not files:
        return []
    members = dict(_members(content, size))
    for name, kind in files:
        member = members.get(name)
        if kind in _LABELS and member is not None and not member.is_too_much:
            text = _unpack(content, size, member).decode("utf-8", "replace").rstrip()
            return [line.strip() for line in text.split("\n")] if text else []
    return []


def _files(model: Table) -> Iterator[Table]:
    for subgraph in model.tables(3):
        for number in (3, 2):
            for tensor in subgraph.tables(number):
                yield from tensor.tables(6)
        yield from subgraph.tables(4)
    yield from model.tables(6)


def _members(content: Content, size: int) -> Iterator[tuple[str, _Member]]:
    """Yield the files in the ZIP archive that ends the model, by name.

    Offsets in it count from its own beginning, or from that of the model: where its
    directory is, against where it says that it is, tells which.
    """
    tail_at = max(0, size - _END.size - _LONGEST_COMMENT)
    tail = content[tail_at:size]
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise ValueError(
            "the files that its metadata name are missing, as if it were cut short"
        )
    _, length, told_at, _ = _END.unpack_from(tail, at)
    end = tail_at + at
    start = end - length
    if length > _MOST_DIRECTORY or start < told_at:
        raise ValueError("the archive of files at its end is damaged")
    directory = content[start:end]
    at = 0
    while at < length:
        if at + _ENTRY.size > length or directory[at : at + 4] != b"PK\1\2":
            raise ValueError("the archive of files at its end is damaged")
        _, flags, method, crc, packed, unpacked, *lengths, offset = _ENTRY.unpack_from(
            directory, at
        )
        name_at = at + _ENTRY.size
        name = directory[name_at : name_at + lengths[0]].decode("utf-8", "replace")
        place = start - told_at + offset
        yield name, _Member(place, flags, method, crc, packed, unpacked)
        at = name_at + sum(lengths)


def _unpack(content: Content, size: int, member: _Member) -> bytes:
    """Return the bytes of a small member, checked against its length and CRC."""
    at = member.at
    if at + _LOCAL.size > size or content[at : at + 4] != b"PK\3\4":
        raise ValueError("the archive of files at its end is damaged")
    at += _LOCAL.size + sum(_LOCAL.unpack_from(content, at))
    packed = content[at : min(size, at + member.packed)]
    try:
        unpacked = (
            zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, _MOST_LABELS)
            if member.method == _DEFLATED
            else packed
        )
    except zlib.error as error:
        raise ValueError("the archive of files at its end is damaged") from error
    if len(unpacked) != member.unpacked or zlib.crc32(unpacked) != member.crc:
        raise ValueError("the archive of files at its end is damaged")
    return unpacked
