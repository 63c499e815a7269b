"""FlatBuffers, read in place without a library; every offset is checked when followed.

The layout is that of "FlatBuffer Internals" (flatbuffers.dev/internals): offsets of 32
bits lead forward, a table begins with the way back to its vtable, and a vector with
its length. Offsets may share and repeat what they lead to, so that a small file can
describe an endless one: all that is visited counts against one bound.
"""

from __future__ import annotations

import codecs
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vision_o3.formats.mapped import Content

_U16, _I32, _U32 = struct.Struct("<H"), struct.Struct("<i"), struct.Struct("<I")
_IDENTIFIER = slice(4, 8)
_SMALLEST = 8
_MOST_TEXT = 4096
_SCALARS = {letter: struct.Struct(f"<{letter}") for letter in "?bBhHiIqQfd"}


@dataclass(frozen=True, slots=True)
class Shape:
    """The fields of a type of table that lead elsewhere, by number from 0.

    ``FlatBuffer.check`` goes through them; scalars are checked when read.

    Attributes:
        strings: Fields that are strings.
        vectors: Vectors of scalars, with the bytes of one.
        tables: Fields that are tables.
        lists: Vectors of tables.
    """

    strings: tuple[int, ...] = ()
    vectors: Mapping[int, int] = field(default_factory=dict)
    tables: Mapping[int, Shape] = field(default_factory=dict)
    lists: Mapping[int, Shape] = field(default_factory=dict)


class FlatBuffer:
    """One FlatBuffer in ``[start, end)`` of a file's bytes.

    Every method of it and of its tables raises ``ValueError`` for an offset that leads
    out of it. Trailing bytes are legal.

    Args:
        content: The bytes.
        start: Where it begins.
        end: Where it ends at the latest.
        most: Tables and items of vectors that are visited in all.
    """

    __slots__ = ("_left", "_most", "content", "end", "start")

    def __init__(self, content: Content, start: int, end: int, most: int) -> None:
        self.content = content
        self.start = start
        self.end = end
        self._left = self._most = most

    def root(self, identifier: bytes) -> Table:
        """Return the root table of a buffer that has this file identifier."""
        if self.end - self.start < _SMALLEST:
            raise ValueError("it is cut short")
        head = self.content[self.start : self.start + _SMALLEST]
        if head[_IDENTIFIER] != identifier:
            raise ValueError(f"its identifier is not {identifier.decode()}")
        return Table(self, self.follow(self.start))

    def spend(self, count: int) -> None:
        """Count what is visited.

        Raises:
            ValueError: It is more than the bound.
        """
        self._left -= count
        if self._left < 0:
            raise ValueError(f"it has more than {self._most} tables and items")

    def bounded(self, at: int, count: int, alignment: int = 1) -> int:
        """Return ``at`` if so many bytes are there, aligned within the buffer."""
        if not self.start <= at <= self.end - count:
            raise ValueError("an offset leads out of it, as if it were cut short")
        if (at - self.start) % alignment:
            raise ValueError("an offset leads between two places")
        return at

    def follow(self, at: int) -> int:
        """Return where the offset at ``at`` leads."""
        (offset,) = _U32.unpack_from(self.content, self.bounded(at, 4, 4))
        if not offset:
            raise ValueError("an offset leads nowhere")
        return at + int(offset)

    def vector(self, at: int, width: int) -> tuple[int, int]:
        """Return where a vector's items are, of ``width`` bytes each, and how many."""
        (count,) = _U32.unpack_from(self.content, self.bounded(at, 4, 4))
        return self.bounded(at + 4, int(count) * width), int(count)

    def check(self, table: Table, shape: Shape) -> None:
        """Check that all which a table leads to is inside the buffer.

        Shapes are finite trees, so the depth is theirs.
        """
        for number in shape.strings:
            table.check_string(number)
        for number, width in shape.vectors.items():
            table.vector(number, width)
        for number, inner in shape.tables.items():
            found = table.table(number)
            if found is not None:
                self.check(found, inner)
        for number, inner in shape.lists.items():
            for found in table.tables(number):
                self.check(found, inner)


class Table:
    """A table, with its fields by number from 0. Those it does not have are absent."""

    __slots__ = ("_at", "_buffer", "_size", "_vtable", "_vtable_size")

    def __init__(self, buffer: FlatBuffer, at: int) -> None:
        buffer.spend(1)
        content = buffer.content
        (back,) = _I32.unpack_from(content, buffer.bounded(at, 4, 4))
        vtable = buffer.bounded(at - back, 4, 2)
        (self._vtable_size,) = _U16.unpack_from(content, vtable)
        (self._size,) = _U16.unpack_from(content, vtable + 2)
        if self._vtable_size < 4 or self._vtable_size % 2 or self._size < 4:  # noqa: PLR2004 - their own heads
            raise ValueError("a table is not laid out as tables are")
        buffer.bounded(vtable, self._vtable_size)
        buffer.bounded(at, self._size)
        self._buffer, self._at, self._vtable = buffer, at, vtable

    def _field(self, number: int, width: int) -> int:
        """Return where a field is, or 0 if the table does not have it."""
        entry = 4 + 2 * number
        if entry + 2 > self._vtable_size:
            return 0
        (offset,) = _U16.unpack_from(self._buffer.content, self._vtable + entry)
        if not offset:
            return 0
        if offset < 4 or offset + width > self._size:  # noqa: PLR2004 - the way to the vtable
            raise ValueError("a field is outside its table")
        return self._at + int(offset)

    def _target(self, number: int) -> int:
        at = self._field(number, 4)
        return self._buffer.follow(at) if at else 0

    def number(self, number: int, kind: str, default: int = 0) -> int:
        """Return an integer; ``kind`` is its letter in ``struct``."""
        scalar = _SCALARS[kind]
        at = self._field(number, scalar.size)
        return int(scalar.unpack_from(self._buffer.content, at)[0]) if at else default

    def vector(self, number: int, width: int) -> tuple[int, int]:
        """Return where a vector's items are and how many; (0, 0) if it is absent."""
        at = self._target(number)
        return self._buffer.vector(at, width) if at else (0, 0)

    def scalars(self, number: int, kind: str, most: int) -> tuple[Any, ...]:
        """Return the first items of a vector of scalars, ``most`` at most."""
        at, count = self.vector(number, _SCALARS[kind].size)
        count = min(count, most)
        self._buffer.spend(count)
        return struct.unpack_from(f"<{count}{kind}", self._buffer.content, at)

    def integers(self, number: int, kind: str, most: int) -> list[int] | None:
        """Return the items of a vector of integers, or ``None`` if it is absent.

        Raises:
            ValueError: There are more than ``most``.
        """
        at, count = self.vector(number, _SCALARS[kind].size)
        if count > most:
            raise ValueError(f"a vector has more than {most} numbers")
        return list(self.scalars(number, kind, most)) if at else None

    def check_string(self, number: int) -> tuple[int, int]:
        """Return where a string's bytes are and how many, if it ends as strings do."""
        at, count = self.vector(number, 1)
        if at and self._buffer.content[self._buffer.bounded(at + count, 1)]:
            raise ValueError("a string does not end with a zero")
        return at, count

    def string(self, number: int) -> str:
        """Return a string, or the beginning of a very long one; empty if absent."""
        at, count = self.check_string(number)
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            return decoder.decode(
                self._buffer.content[at : at + min(count, _MOST_TEXT)],
                final=count <= _MOST_TEXT,
            )
        except UnicodeDecodeError as error:
            raise ValueError("a text in it is not UTF-8") from error

    def table(self, number: int) -> Table | None:
        """Return a table within this one, or ``None``."""
        at = self._target(number)
        return Table(self._buffer, at) if at else None

    def tables(self, number: int) -> Iterator[Table]:
        """Yield the tables of a vector."""
        at, count = self.vector(number, 4)
        for place in range(at, at + 4 * count, 4):
            yield Table(self._buffer, self._buffer.follow(place))
