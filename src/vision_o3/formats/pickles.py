"""What unpickling would do, found out without doing it.

A machine over all opcodes of the pickle protocols 0 to 5 (PEP 3154, PEP 574, and the
comments of the standard library's ``pickletools``). It keeps a stack and a memo as an
unpickler does, but imports nothing and calls nothing: an import is a name, and a call
of what is not known leaves a stand-in. What it cannot determine is a finding, never
silently safe. Strict where unpicklers differ, so that none reads more into the bytes.

Memory is proportional to the pickle and to ``MOST_OPCODES``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vision_o3.errors import LimitExceededError
from vision_o3.formats.pickle_values import (
    CutShortError,
    HarmfulCallError,
    Import,
    Importer,
    Items,
    Made,
    Members,
    Report,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_OPCODES = 4_000_000
"""Instructions that are followed in all pickles of a file: about 4 s, 500 MB. Large
checkpoints with the state of their optimizer have some 100,000."""
LONGEST_NAME = 1024
"""Bytes of a module's or class's name."""
_LONGEST_NUMBER = 1024
"""Bytes of a whole number, in binary or as text: converting takes squared time."""
_MOST_ATTRIBUTES = 100
_METADATA = "_metadata"
"""What PyTorch keeps of the versions of modules, on the dict of their weights."""
_NEWEST_PROTOCOL = 5
_SMALLEST_PICKLE = 4


def scan(
    content: bytes, importer: Importer, report: Report, start: int = 0
) -> tuple[object, int]:
    """Return the value of the pickle that begins at ``start``, and where it ends.

    What was found before an error is in the report too: unpickling acts as it reads.

    Raises:
        ValueError: Unpickling would fail.
        LimitExceededError: It has too many instructions.
    """
    return _Machine(content, start, importer, report).run()


def looks_pickled(head: bytes) -> bool:
    """Say whether bytes begin as a pickle of protocol 2 to 5 does."""
    return (
        len(head) >= _SMALLEST_PICKLE
        and head[0] == 0x80  # noqa: PLR2004 - the opcode PROTO
        and head[1] <= _NEWEST_PROTOCOL
    )


class _Machine:
    """One pickle: a stack in frames, one for each open mark, and a memo."""

    def __init__(
        self,
        content: bytes,
        start: int,
        importer: Importer,
        report: Report,
        *,
        nested: bool = False,
    ) -> None:
        self.content = content
        self.at = start
        self.importer = importer
        self.report = report
        self.nested = nested
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: dict[int, object] = {}

    def run(self) -> tuple[object, int]:
        content = self.content
        report = self.report
        while report.opcodes < MOST_OPCODES:
            if self.at >= len(content):
                raise CutShortError("a pickle in it is cut short")
            opcode = content[self.at]
            self.at += 1
            report.opcodes += 1
            if opcode == _STOP:
                return self.pop(), self.at
            step = _OPCODES.get(opcode)
            if step is None:
                raise ValueError(
                    f"a pickle in it has the unknown instruction {opcode:#04x}"
                )
            try:
                step(self)
            except UnicodeError as error:
                raise ValueError("a pickle in it has text that is none") from error
        raise LimitExceededError(
            "The pickles in this file have too many instructions: at most "
            f"{MOST_OPCODES} are looked at. Save weights alone (a state_dict).",
            limit=MOST_OPCODES,
        )

    # What instructions read.

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.content):
            raise CutShortError("a pickle in it is cut short")
        taken = self.content[self.at : end]
        self.at = end
        return taken

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def line(self, longest: int | None = None) -> bytes:
        end = self.content.find(
            b"\n", self.at, None if longest is None else self.at + longest
        )
        if end < 0 and (longest is None or len(self.content) - self.at < longest):
            raise CutShortError("a pickle in it is cut short")
        if end < 0:
            raise ValueError("a pickle in it has a line that is too long")
        line = self.content[self.at : end]
        self.at = end + 1
        return line

    def whole(self, base: int = 10) -> int:
        line = self.line(_LONGEST_NUMBER)
        try:
            return int(line.rstrip(b"L"), base)
        except ValueError as error:
            raise ValueError("a pickle in it has a number that is none") from error

    def real(self) -> None:
        try:
            self.push(float(self.line(_LONGEST_NUMBER)))
        except ValueError as error:
            raise ValueError("a pickle in it has a number that is none") from error

    def name(self) -> str:
        return self.line(LONGEST_NAME).decode()

    # The stack.

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> object:
        if not self.stack:
            raise ValueError("a pickle in it takes more from its stack than is there")
        return self.stack.pop()

    def top(self) -> object:
        value = self.pop()
        self.stack.append(value)
        return value

    def pop_mark(self) -> list[object]:
        if not self.marks:
            raise ValueError("a pickle in it refers to a mark that is not there")
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def drop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def drop_marked(self) -> None:
        self.pop_mark()

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    # The memo.

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError("a pickle in it refers to a value that is not there")
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        if index < 0:
            raise ValueError("a pickle in it keeps a value under a negative number")
        self.memo[index] = self.top()

    # Constants.

    def proto(self) -> None:
        protocol = self.number(1)
        if protocol > _NEWEST_PROTOCOL:
            raise ValueError(f"a pickle in it is of an unknown protocol, {protocol}")

    def frame(self) -> None:
        if self.number(8) > len(self.content) - self.at:
            raise CutShortError("a pickle in it is cut short")

    def text(self, width: int) -> None:
        self.push(self.take(self.number(width)).decode("utf-8", "surrogatepass"))

    def raw(self, width: int) -> None:
        taken = self.take(self.number(width))
        self.look_into(taken)
        self.push(taken)

    def string(self, width: int) -> None:
        """Push a string of Python 2, as text if it is any, as ``torch.load`` does."""
        taken = self.take(self.number(width))
        self.look_into(taken)
        try:
            self.push(taken.decode())
        except UnicodeDecodeError:
            self.push(taken)

    def long(self, width: int) -> None:
        count = self.number(width)
        if count > _LONGEST_NUMBER:
            raise ValueError("a pickle in it has a number that is too long")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def integer_line(self) -> None:
        flag = self.content[self.at : self.at + 3]
        if flag in {b"00\n", b"01\n"}:
            self.at += len(flag)
            self.push(flag == b"01\n")
        else:
            self.push(self.whole(0))

    def quoted(self) -> None:
        line = self.line().strip()
        if len(line) < 2 or line[0] != line[-1] or line[0] not in b"'\"":  # noqa: PLR2004 - the quotes
            raise ValueError("a pickle in it has a string without quotes")
        # Not read further: a name out of it counts as computed, and is a finding.
        self.push(Made("a string with escapes") if b"\\" in line else _text(line))

    def look_into(self, constant: bytes) -> None:
        """Look for a pickle within a constant: something may unpickle it later."""
        if self.nested or not looks_pickled(constant):
            return
        inner = Report(opcodes=self.report.opcodes)
        try:
            _Machine(constant, 0, self.importer, inner, nested=True).run()
        except ValueError:
            pass  # what it did before counts
        finally:
            self.report.opcodes = inner.opcodes
        for finding in inner.findings:
            self.report.find(f"{finding} (in a pickle within a constant)")

    # Containers.

    def extend(self, items: list[object]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Made):
            target.parts.extend(items)
        else:
            raise _wrong("a list", target)

    def add(self) -> None:
        items = self.pop_mark()
        target = self.top()
        if isinstance(target, Members):
            target.members.extend(items)
        elif isinstance(target, Made):
            target.parts.extend(items)
        else:
            raise _wrong("a set", target)

    def set_items(self, items: list[object]) -> None:
        target = self.top()
        pairs = _paired(items)
        if isinstance(target, Items):
            target.pairs.extend(pairs)
        elif isinstance(target, Made):
            target.parts.append(Items(pairs=pairs))
        else:
            raise _wrong("a dict", target)

    # Imports and calls.

    def load(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            self.report.find("an import whose name is computed")
            self.push(Made("a computed import"))
            return
        if max(len(module), len(name)) > LONGEST_NAME:
            raise ValueError("a pickle in it imports by a name that is too long")
        found = Import(module, name, self.importer.allows(module, name))
        self.report.note(found)
        self.push(found)

    def stack_global(self) -> None:
        name = self.pop()
        self.load(self.pop(), name)

    def extension(self, width: int) -> None:
        code = self.number(width)
        self.report.find(f"the extension {code} of copyreg")
        self.push(Made("an extension"))

    def call(self, function: object, arguments: object) -> None:
        if not isinstance(arguments, (tuple, Made)):
            raise _wrong("a tuple of arguments", arguments)
        if isinstance(function, Import) and function.allowed:
            self.push(self.call_allowed(function, arguments))
            return
        self.report.calls += 1
        if isinstance(function, Import):
            origin = function.path
        elif isinstance(function, Made):
            origin = function.origin
            self.report.find(f"a call of what {origin} made")
        else:
            raise _wrong("a function", function)
        self.push(Made(origin, [arguments]))

    def call_allowed(
        self, function: Import, arguments: tuple[object, ...] | Made
    ) -> object:
        if isinstance(arguments, Made):
            self.report.find(f"{function.path} with computed arguments")
            return Made(function.path, [arguments])
        try:
            made = self.importer.call(function, arguments)
        except HarmfulCallError as error:
            self.report.find(str(error))
            return Made(function.path, [arguments])
        if isinstance(made, bytes) and all(made is not given for given in arguments):
            self.look_into(made)
        return made

    def reduce(self) -> None:
        arguments = self.pop()
        self.call(self.pop(), arguments)

    def inst(self) -> None:
        self.load(self.name(), self.name())
        found = self.pop()
        self.call(found, tuple(self.pop_mark()))

    def obj(self) -> None:
        items = self.pop_mark()
        if not items:
            raise ValueError("a pickle in it makes an instance of nothing")
        self.call(items[0], tuple(items[1:]))

    def new_obj_ex(self) -> None:
        keywords = self.pop()
        arguments = self.pop()
        function = self.pop()
        if not isinstance(keywords, (Items, Made)):
            raise _wrong("a dict of arguments", keywords)
        if isinstance(keywords, Made) or keywords.pairs:
            self.report.find("an instance made with keyword arguments")
            arguments = Made("keyword arguments", [arguments, keywords])
        self.call(function, arguments)

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if isinstance(target, Made):
            target.parts.append(state)
        elif not (
            isinstance(target, Items)
            and target.kind != "dict"
            and isinstance(state, Items)
            and _are_plain(state)
        ):
            # A plain dict goes to the instance's own; a tuple sets any attribute.
            self.report.find(f"attributes set on {_kind(target)}")

    def persistent(self, identity: object) -> None:
        self.push(self.importer.persistent(identity))


def _text(line: bytes) -> object:
    inside = line[1:-1]
    try:
        return inside.decode()
    except UnicodeDecodeError:
        return inside


def _are_plain(attributes: Items) -> bool:
    """Say whether attributes of an instance stand for none of its class's methods.

    Python and PyTorch look for some on the instance, ``__setstate__`` first, and
    would call what is there.
    """
    return len(attributes.pairs) <= _MOST_ATTRIBUTES and all(
        isinstance(name, str)
        and (name == _METADATA or not name.startswith("_"))
        and not isinstance(value, (Import, Made))
        for name, value in attributes.pairs
    )


def _paired(items: list[object]) -> list[tuple[object, object]]:
    if len(items) % 2:
        raise ValueError("a pickle in it has a key without a value")
    return list(zip(items[::2], items[1::2], strict=True))


def _kind(value: object) -> str:
    if isinstance(value, Import):
        return value.path
    return value.kind if isinstance(value, Items) else type(value).__name__.lower()


def _wrong(wanted: str, value: object) -> ValueError:
    return ValueError(f"a pickle in it uses {_kind(value)} as if it were {wanted}")


def _unpacked(layout: str) -> Callable[[_Machine], None]:
    record = struct.Struct(layout)

    def step(machine: _Machine) -> None:
        machine.push(record.unpack(machine.take(record.size))[0])

    return step


def _no_buffers(_machine: _Machine) -> None:
    raise ValueError("a pickle in it needs buffers from outside")


def _text_persistent(_machine: _Machine) -> None:
    raise ValueError("a pickle in it refers by text to what is outside")


_STOP = ord(".")
_OPCODES: dict[int, Callable[[_Machine], None]] = {
    # Constants.
    0x80: _Machine.proto,
    0x95: _Machine.frame,
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("J"): _unpacked("<i"),
    ord("K"): _unpacked("<B"),
    ord("M"): _unpacked("<H"),
    ord("G"): _unpacked(">d"),
    ord("I"): _Machine.integer_line,
    ord("L"): lambda m: m.push(m.whole()),
    ord("F"): _Machine.real,
    0x8A: lambda m: m.long(1),
    0x8B: lambda m: m.long(4),
    ord("S"): _Machine.quoted,
    ord("T"): lambda m: m.string(4),
    ord("U"): lambda m: m.string(1),
    ord("V"): lambda m: m.push(m.line().decode("raw-unicode-escape")),
    0x8C: lambda m: m.text(1),
    ord("X"): lambda m: m.text(4),
    0x8D: lambda m: m.text(8),
    ord("C"): lambda m: m.raw(1),
    ord("B"): lambda m: m.raw(4),
    0x8E: lambda m: m.raw(8),
    0x96: lambda m: m.raw(8),
    0x97: _no_buffers,
    0x98: _no_buffers,
    # The stack and the memo.
    ord("("): _Machine.mark,
    ord("0"): _Machine.drop,
    ord("1"): _Machine.drop_marked,
    ord("2"): lambda m: m.push(m.top()),
    ord("g"): lambda m: m.get(m.whole()),
    ord("h"): lambda m: m.get(m.number(1)),
    ord("j"): lambda m: m.get(m.number(4)),
    ord("p"): lambda m: m.put(m.whole()),
    ord("q"): lambda m: m.put(m.number(1)),
    ord("r"): lambda m: m.put(m.number(4)),
    0x94: lambda m: m.put(len(m.memo)),
    # Containers.
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m.pop_mark())),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("]"): lambda m: m.push([]),
    ord("l"): lambda m: m.push(m.pop_mark()),
    ord("a"): lambda m: m.extend([m.pop()]),
    ord("e"): lambda m: m.extend(m.pop_mark()),
    ord("}"): lambda m: m.push(Items()),
    ord("d"): lambda m: m.push(Items(pairs=_paired(m.pop_mark()))),
    ord("s"): lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: m.set_items(m.pop_mark()),
    0x8F: lambda m: m.push(Members()),
    0x90: _Machine.add,
    0x91: lambda m: m.push(Members(m.pop_mark())),
    # Imports, calls, and what is outside.
    ord("c"): lambda m: m.load(m.name(), m.name()),
    0x93: _Machine.stack_global,
    0x82: lambda m: m.extension(1),
    0x83: lambda m: m.extension(2),
    0x84: lambda m: m.extension(4),
    ord("R"): _Machine.reduce,
    0x81: _Machine.reduce,
    0x92: _Machine.new_obj_ex,
    ord("i"): _Machine.inst,
    ord("o"): _Machine.obj,
    ord("b"): _Machine.build,
    ord("P"): _text_persistent,
    ord("Q"): lambda m: m.persistent(m.pop()),
}
