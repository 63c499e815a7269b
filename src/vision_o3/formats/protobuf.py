"""Messages of Protocol Buffers, walked in place by tag and length, without a library.

The wire format is that of "Encoding" (protobuf.dev/programming-guides/encoding).
Stricter than a parser has to be, so that no two parsers see two models in one file:
a message that may occur once does, a known field has its own type, and groups, which
nothing here uses, are refused.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vision_o3.formats.mapped import Content

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
INT, BYTES = 1 << _VARINT, 1 << _BYTES
FLOAT = 1 << _FIXED32
INTS, FLOATS, DOUBLES = INT | BYTES, FLOAT | BYTES, 1 << _FIXED64 | BYTES
"""What a field may be: sets of wire types. Repeated numbers are packed or not."""

NUMBER = -1
"""The end of a field that is a varint, which is no span of bytes."""

_MORE = 0x80
"""The bit of a varint's byte that says that another follows."""
_NOT_LAST = bytes(range(_MORE, 256))
_TOO_LONG = re.compile(rb"[\x80-\xff]{10}")
_LAST_NUMBER = (1 << 29) - 1
_MOST_DEPTH = 64
"""Messages within each other; parsers in C++ stop at 100 from the top."""
_MOST_TEXT = 4096
_SPAN = 1 << 20


@dataclass(frozen=True, slots=True)
class Message:
    """The fields of one type of message, by number.

    Fields not named are skipped, as the format asks, unless the message is ``closed``.

    Attributes:
        name: As an error calls it.
        kinds: What each field may be.
        inner: The messages within it that ``Wire.check`` goes into.
        single: Fields that are messages and occur once at most: parsers would merge
            several.
    """

    name: str
    kinds: Mapping[int, int]
    inner: Mapping[int, Message] = field(default_factory=dict)
    single: frozenset[int] = frozenset()
    closed: bool = False


class Wire:
    """Walks the messages in a file's bytes, all of them within one bound of work.

    Every method raises ``ValueError`` for what is not a protocol buffer.

    Args:
        content: The bytes.
        most_fields: Fields that are looked at in all; each costs about 0.5 µs.
    """

    __slots__ = ("_content", "_left", "_most_fields")

    def __init__(self, content: Content, most_fields: int) -> None:
        self._content = content
        self._left = self._most_fields = most_fields

    def fields(  # noqa: C901, PLR0912 - the innermost loop: calls would double its time
        self, start: int, end: int, message: Message
    ) -> Iterator[tuple[int, int, int]]:
        """Yield the fields of a message in ``[start, end)``, as the format has them.

        A field is its number and the span of its bytes, or its number, its value and
        ``NUMBER``.
        """
        content, kinds, single = self._content, message.kinds, message.single
        seen: set[int] = set()
        at = start
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"it has more than {self._most_fields} fields")
            tag = content[at]
            if tag < _MORE:
                at += 1
            else:
                tag, at = self._varint(at, end)
            number, kind = tag >> 3, tag & 7
            if kind == _BYTES:
                length, at = self._varint(at, end)
                value, stop = at, at + length
            elif kind == _VARINT:
                value, at = self._varint(at, end)
                stop = at
            elif kind in {_FIXED32, _FIXED64}:
                value, stop = at, at + (4 if kind == _FIXED32 else 8)
            else:
                raise ValueError("it is not a protocol buffer")
            if stop > end:
                raise ValueError(
                    f"a field of {message.name} is longer than what holds it, "
                    "as if the file were cut short"
                )
            known = kinds.get(number, 0)
            if not known >> kind & 1 and (known or message.closed):
                raise ValueError(f"{message.name} has no such field {number}")
            if number in single:
                if number in seen:
                    raise ValueError(f"{message.name} has field {number} twice")
                seen.add(number)
            elif not 0 < number <= _LAST_NUMBER:
                raise ValueError("it is not a protocol buffer")
            at = stop
            if kind == _VARINT:
                yield number, value - (1 << 64) if value >> 63 else value, NUMBER
            else:
                yield number, value, stop

    def check(self, start: int, end: int, message: Message, depth: int = 0) -> None:
        """Check that a message and those within it are well-formed."""
        if depth > _MOST_DEPTH:
            raise ValueError(f"{message.name} is nested too deeply")
        inner, kinds = message.inner, message.kinds
        for number, at, stop in self.fields(start, end, message):
            if number in inner:
                self.check(at, stop, inner[number], depth + 1)
            elif kinds.get(number) == INTS:
                self.count(at, stop)

    def numbers(self, at: int, stop: int, most: int) -> list[int]:
        """Return the ``int64`` values of a field of kind ``INTS``.

        Raises:
            ValueError: There are more than ``most``, too.
        """
        if stop == NUMBER:
            return [at]
        found: list[int] = []
        while at < stop:
            value, at = self._varint(at, stop)
            found.append(value - (1 << 64) if value >> 63 else value)
            if len(found) > most:
                raise ValueError(f"a list has more than {most} numbers")
        return found

    def count(self, at: int, stop: int, width: int = 0) -> int:
        """Return how many numbers a field holds, of ``width`` bytes or varints."""
        if stop == NUMBER:
            return 1
        if width:
            if (stop - at) % width:
                raise ValueError("a list of numbers ends within one")
            return (stop - at) // width
        if at < stop and self._content[stop - 1] >= _MORE:
            raise ValueError("a list of numbers ends within one")
        if _TOO_LONG.search(self._content, at, stop):
            raise ValueError("it is not a protocol buffer")
        return sum(
            len(
                self._content[start : min(start + _SPAN, stop)].translate(
                    None, _NOT_LAST
                )
            )
            for start in range(at, stop, _SPAN)
        )

    def text(self, at: int, stop: int) -> str:
        """Return a text in UTF-8, or the beginning of a very long one."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            return decoder.decode(
                self._content[at : min(stop, at + _MOST_TEXT)],
                final=stop - at <= _MOST_TEXT,
            )
        except UnicodeDecodeError as error:
            raise ValueError("a text in it is not UTF-8") from error

    def octets(self, at: int, stop: int) -> bytes:
        """Return the bytes of a span. They are copied: bound it."""
        return self._content[at:stop]

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """Return an unsigned number of 64 bits, and where the next thing starts."""
        content = self._content
        number = shift = 0
        while at < end:
            byte = content[at]
            at += 1
            number |= (byte & 0x7F) << shift
            if byte < _MORE:
                return number & ((1 << 64) - 1), at
            shift += 7
            if shift >= 70:  # noqa: PLR2004 - seven bits from each of ten bytes
                raise ValueError("it is not a protocol buffer")
        raise ValueError("it is cut short")
