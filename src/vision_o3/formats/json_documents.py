"""JSON documents (RFC 8259), read as a stream; COCO annotations are recognised.

Strict, so that all readers see the same: UTF-8 (a byte order mark is passed over), one
array or object, no name twice in an object, no NaN, nothing after the end.

The reader is a state machine over single tokens. Beside it are patterns that take whole
members and runs of elements at once, at the speed of ``re``: they accept nothing that
the machine would not, and leave to it what they do not match.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from vision_o3.errors import LimitExceededError
from vision_o3.formats import bounded
from vision_o3.formats.annotations import MOST_CLASSES, Tally

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from vision_o3.formats.limits import Limits

LONGEST_TOKEN = 16 << 20
"""Characters of one text or number."""
MOST_NAMES = 1_000_000
"""Names in an object, and the objects around it, that are held against each other."""
_READ = 256 << 10
_LEAST = 32 << 10
"""Characters that are worth a look; fewer wait for more."""
_WINDOW = 8 << 10
"""Characters of a member that is still taken as a whole, wherever reads cut it."""
_LONGEST_ID = 100
_ITEM_DEPTH = 3
"""An object, in an array, in an object."""

_IMAGES, _ANNOTATIONS, _CATEGORIES = '"images"', '"annotations"', '"categories"'
_BBOX, _CATEGORY_ID, _ID, _NAME = '"bbox"', '"category_id"', '"id"', '"name"'
# Names as they are compared, between quotes.
_COCO = {
    _IMAGES: (),
    _ANNOTATIONS: (_BBOX, _CATEGORY_ID),
    _CATEGORIES: (_ID, _NAME),
}
_COCO_BOX = 4

# RFC 8259, 2 to 7. No pattern ever gives back what it took: time is linear.
_GAP = r"[ \t\n\r]*+"
_TEXT = r'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"'
_NUMBER = r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][-+]?[0-9]++)?+"
_SCALAR = f"(?:{_TEXT}|{_NUMBER}|true|false|null)"
_NUMBERS = rf"\[{_GAP}(?:{_NUMBER}{_GAP},{_GAP})*+{_NUMBER}{_GAP}\]"
"""An array of numbers."""
_VALUE = f"(?:{_NUMBERS}|{_SCALAR})"

_MEMBER = re.compile(
    f"{_GAP}({_TEXT}){_GAP}:{_GAP}(?:({_VALUE}){_GAP}([,}}])|([\\[{{]))"
)
_ELEMENTS = re.compile(
    f"{_GAP}((?:{_VALUE}{_GAP},{_GAP})*+)(?:({_VALUE}){_GAP}\\]|([\\[{{]))"
)
_RUN = re.compile(f"{_GAP}((?:{_VALUE}{_GAP},{_GAP})++)()()")
_SEPARATOR = re.compile(f"{_GAP}(?:,{_GAP}([\\[{{])?|([\\]}}]))")
_ONE_VALUE = re.compile(_VALUE)

_GAP_PATTERN = re.compile(r"[ \t\n\r]++")
_SCALAR_PATTERN = re.compile(_SCALAR)
# What may become a token if more comes: a text without its end, a number.
_TEXT_BEGUN = re.compile(
    r'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+'
    r"(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z"
)
_NUMBER_BEGUN = re.compile(
    r"-?(?:(?:0|[1-9][0-9]*+)(?:\.[0-9]*+)?+(?:(?<=[0-9])[eE][-+]?[0-9]*+)?+)?\Z"
)

# States, each naming what is to come.
_FIRST, _NEXT, _COLON, _MEMBER_VALUE, _AFTER, _START, _END = range(7)


class Reader:
    """Takes a JSON document in chunks and says whether it is a good one.

    Memory is O(longest token + names of the open objects); what is found does not
    depend on how the bytes are cut.

    Attributes:
        root: ``"object"`` or ``"array"``.
        items: Members of the outermost object or array so far.

    Args:
        limits: Of which the depth is looked at; the size is the caller's to check.
        sections: Members of the outermost object that are arrays of objects, by name,
            and the names of what ``_item`` is to be told of each.
    """

    def __init__(
        self, limits: Limits, sections: Mapping[str, Collection[str]] | None = None
    ) -> None:
        self.root: str | None = None
        self.items = 0
        self._deepest = limits.json_depth
        self._sections = sections or {}
        self._section: str | None = None
        self._arrays: set[str] = set()
        self._mixed: set[str] = set()
        self._wanted: Collection[str] = ()
        self._picked: dict[str, str] = {}
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._pending: list[str] = []
        self._waiting = 0
        self._needed = _LEAST
        self._is_final = False
        self._state = _START
        # Of the innermost object the names seen, as hashes; None in an array.
        self._names: set[int] | None = None
        self._outer: list[set[int] | None] = []
        self._outer_names = 0
        self._name = ""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            ValueError: Not a good JSON document.
            LimitExceededError: Too deep, or a text or number is too long.
        """
        for start in range(0, len(chunk), _READ):
            self._take(self._decoded(chunk[start : start + _READ], final=False))
            if self._waiting >= self._needed:
                self._scan(final=False)

    def finish(self) -> None:
        """Take the end.

        Raises:
            ValueError: Not a whole, good JSON document.
            LimitExceededError: As ``feed``.
        """
        self._take(self._decoded(b"", final=True))
        self._scan(final=True)
        if self._state != _END:
            raise ValueError("it is cut short")

    def _item(self, section: str, picked: dict[str, str]) -> None:
        """Take note of one object of a section.

        Args:
            section: Its name.
            picked: The JSON texts of those of the wanted members which are scalars or
                arrays of numbers, by name.
        """

    def _is_array_of_objects(self, section: str) -> bool:
        return section in self._arrays and section not in self._mixed

    def _decoded(self, chunk: bytes, *, final: bool) -> str:
        try:
            return self._decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            raise ValueError("it is not UTF-8 text") from error

    def _take(self, text: str) -> None:
        self._pending.append(text)
        self._waiting += len(text)

    def _scan(self, *, final: bool) -> None:
        """Look at all that is pending, and keep what may become a token with more."""
        text = "".join(self._pending)
        self._is_final = final
        at, end = 0, len(text)
        while True:
            at = _end_of_gap(text, self._take_quickly(text, at))
            if at == end or (not final and end - at < _WINDOW):
                break
            after = self._take_token(text, at, final=final)
            if after is None:
                break
            at = after
        self._pending = [text[at:]]
        self._waiting = end - at
        # Twice as much, or a token of many chunks would be looked at for each of them.
        self._needed = max(_LEAST, min(2 * self._waiting, LONGEST_TOKEN + 1))

    def _take_quickly(self, text: str, at: int) -> int:
        """Take whole members and runs of elements; return where they end."""
        while 0 < len(self._outer) < self._deepest:
            if self._state == _AFTER:
                after = self._take_separator(text, at)
            elif self._state not in {_FIRST, _NEXT}:
                break
            elif self._names is None:
                after = self._take_elements(text, at)
            else:
                after = self._take_members(text, at, self._names)
            if after == at:
                break
            at = after
        return at

    def _take_separator(self, text: str, at: int) -> int:
        match = _SEPARATOR.match(text, at)
        if match is None:
            return at
        opening, closing = match.groups()
        if closing:
            if (closing == "}") != (self._names is not None):
                return at
            self._close()
        elif opening:
            if self._names is not None:
                return at
            self._open(opening)
        else:
            self._state = _NEXT
        return match.end()

    def _take_members(self, text: str, at: int, names: set[int]) -> int:
        """Take members up to the object's end, or up to one that is not flat."""
        self._check_names()
        is_root = len(self._outer) == 1
        wanted = self._wanted if len(self._outer) == _ITEM_DEPTH else ()
        while match := _MEMBER.match(text, at):
            name, value, closing, opening = match.groups()
            if "\\" in name:
                name = _unescaped(name)
            key = hash(name)
            if key in names:
                _refuse_twice(name)
            if (
                opening
                and name in wanted
                and self._may_be_numbers(text, match.start(1))
            ):
                break
            names.add(key)
            if is_root:
                self.items += 1
            at = match.end()
            if opening:
                self._name = name
                self._open(opening)
                break
            if name in wanted and at - match.start(1) <= _WINDOW:
                self._picked[name] = value
            if closing == "}":
                self._close()
                break
            self._state = _NEXT
        return at

    def _may_be_numbers(self, text: str, at: int) -> bool:
        """Say whether a member that begins an array may be numbers, if more comes."""
        return not self._is_final and len(text) - at < _WINDOW

    def _take_elements(self, text: str, at: int) -> int:
        """Take elements up to the array's end, or up to one that is not flat."""
        match = _ELEMENTS.match(text, at) or _RUN.match(text, at)
        if match is None:
            return at
        run, last, opening = match[1], match[2], match[3]
        if len(self._outer) == 1:
            self.items += sum(1 for _ in _ONE_VALUE.finditer(run)) + bool(last)
        elif self._section is not None and (run or last):
            self._note_mixed()
        if opening:
            self._open(opening)
        elif last:
            self._close()
        else:
            self._state = _NEXT
        return match.end()

    def _take_token(self, text: str, at: int, *, final: bool) -> int | None:
        """Take one token; return where it ends, or ``None`` if it needs more."""
        first = text[at]
        if self._state in {_START, _END, _COLON, _AFTER}:
            self._take_sign(first)
            return at + 1
        if self._state == _FIRST and first == ("]" if self._names is None else "}"):
            self._close()
            return at + 1
        if self._state != _MEMBER_VALUE and self._names is not None:
            if first != '"':
                raise ValueError("a member of an object has no name")
            end = _end_of_token(text, at, final=final)
            if end is not None:
                self._note_name(text[at:end], self._names)
                self._state = _COLON
            return end
        if first in "[{":
            self._open(first)
            return at + 1
        end = _end_of_token(text, at, final=final)
        if end is not None:
            self._note_scalar()
            self._state = _AFTER
        return end

    def _take_sign(self, sign: str) -> None:
        """Take what is one character in any case."""
        if self._state == _START:
            if sign not in "[{":
                raise ValueError("a JSON dataset begins with { or [")
            self.root = "object" if sign == "{" else "array"
            self._open(sign)
        elif self._state == _END:
            raise ValueError("there is more after its end")
        elif self._state == _COLON and sign == ":":
            self._state = _MEMBER_VALUE
        elif self._state == _AFTER and sign == ",":
            self._state = _NEXT
        elif self._state == _AFTER and sign == ("]" if self._names is None else "}"):
            self._close()
        else:
            raise ValueError(f"{sign!r} is out of place in it")

    def _note_name(self, token: str, names: set[int]) -> None:
        self._check_names()
        self._name = _unescaped(token) if "\\" in token else token
        key = hash(self._name)
        if key in names:
            _refuse_twice(self._name)
        names.add(key)
        if len(self._outer) == 1:
            self.items += 1

    def _note_scalar(self) -> None:
        if self._names is None:
            if len(self._outer) == 1:
                self.items += 1
            self._note_mixed()

    def _note_mixed(self) -> None:
        """Note that an element of a section is not an object."""
        if self._section is not None and len(self._outer) == _ITEM_DEPTH - 1:
            self._mixed.add(self._section)

    def _check_names(self) -> None:
        if self._outer_names + len(self._names or ()) > MOST_NAMES:
            raise LimitExceededError(
                "An object in the JSON file has too many members: this gateway "
                f"accepts at most {MOST_NAMES}. Use an array.",
                limit=MOST_NAMES,
            )

    def _open(self, sign: str) -> None:
        depth = len(self._outer)
        if depth >= self._deepest:
            raise bounded.over_limit(
                "Arrays and objects in the JSON file are within each other too often",
                self._deepest,
                "VISION_O3_MAX_JSON_DEPTH",
            )
        if depth == 1 and self._names is None:
            self.items += 1
        elif depth == 1 and sign == "[" and self._name in self._sections:
            self._section = self._name
            self._arrays.add(self._name)
        elif depth == _ITEM_DEPTH - 1 and self._section is not None:
            self._picked = {}
            self._wanted = self._sections[self._section] if sign == "{" else ()
            if sign == "[":
                self._note_mixed()
        self._outer.append(self._names)
        self._outer_names += len(self._names or ())
        self._names = set() if sign == "{" else None
        self._state = _FIRST

    def _close(self) -> None:
        is_object = self._names is not None
        self._names = self._outer.pop()
        self._outer_names -= len(self._names or ())
        self._state = _AFTER
        depth = len(self._outer)
        if depth == _ITEM_DEPTH - 1 and self._section is not None and is_object:
            self._item(self._section, self._picked)
        elif depth == 1:
            self._section = None
        elif not depth:
            self._state = _END


class CocoReader(Reader):
    """Takes a JSON document in chunks, and sums up what it annotates if it is COCO.

    COCO data format: an object with arrays of objects ``images``, ``annotations`` and
    ``categories``. A box is an annotation with a ``bbox`` of four numbers.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits, _COCO)
        self._tally = Tally()
        self._boxes: dict[str, int] = {}
        self._categories: dict[str, str] = {}

    def coco(self) -> Tally | None:
        """Return what a whole document annotates, or ``None`` if it is not COCO."""
        if not all(map(self._is_array_of_objects, _COCO)):
            return None
        for category, name in self._categories.items():
            self._tally.count_class(name, self._boxes.pop(category, 0))
        for category, boxes in self._boxes.items():
            self._tally.count_class(category, boxes)
        self._boxes = {}
        return self._tally

    def _item(self, section: str, picked: dict[str, str]) -> None:
        if section == _IMAGES:
            self._tally.images += 1
        elif section == _ANNOTATIONS:
            self._tally.annotations += 1
            box = picked.get(_BBOX, "")
            if box.startswith("[") and box.count(",") == _COCO_BOX - 1:
                self._tally.boxes += 1
                self._count_box(picked.get(_CATEGORY_ID))
        elif len(self._categories) < MOST_CLASSES and _ID in picked:
            name = picked.get(_NAME, picked[_ID])
            self._categories.setdefault(
                _category(picked[_ID]),
                json.loads(name) if name.startswith('"') else name,
            )

    def _count_box(self, category: str | None) -> None:
        if category is None:
            return
        category = _category(category)
        known = self._boxes.get(category, 0)
        if known or len(self._boxes) < MOST_CLASSES:
            self._boxes[category] = known + 1


def inspect(file: BinaryIO, size: int, limits: Limits) -> dict[str, Any]:
    """Return the facts of a JSON document (``JsonFacts``).

    Reads all of it, about 30 MB a second; memory is O(1) but for long texts.

    Raises:
        ValueError: Not a good JSON document.
        LimitExceededError: It is too large or too deep.
    """
    if size > limits.json_bytes:
        raise bounded.over_limit(
            "The JSON file has too many bytes",
            limits.json_bytes,
            "VISION_O3_MAX_JSON_BYTES",
        )
    reader = CocoReader(limits)
    file.seek(0)
    while chunk := file.read(_READ):
        reader.feed(chunk)
    reader.finish()
    coco = reader.coco()
    return {
        "kind": "json",
        "root": reader.root,
        "items": reader.items,
        "annotations": None if coco is None else coco.facts("coco"),
    }


def _end_of_token(text: str, at: int, *, final: bool) -> int | None:
    """Return where a text, number or word ends, or ``None`` if it needs more."""
    match = _SCALAR_PATTERN.match(text, at)
    end = match.end() if match is not None else None
    if not final and (end is None or text[at] != '"') and _is_begun(text, at):
        end = None
        if len(text) - at <= LONGEST_TOKEN:
            return end
        raise LimitExceededError(
            "A text or number in the JSON file is too long: this gateway accepts at "
            f"most {LONGEST_TOKEN} characters.",
            limit=LONGEST_TOKEN,
        )
    if end is None:
        raise ValueError(f"{bounded.clean(text[at : at + 20])!r} in it is not JSON")
    return end


def _end_of_gap(text: str, at: int) -> int:
    match = _GAP_PATTERN.match(text, at)
    return at if match is None else match.end()


def _is_begun(text: str, at: int) -> bool:
    """Say whether all the rest may be the beginning of a token."""
    if text[at] == '"':
        return _TEXT_BEGUN.match(text, at) is not None
    # Not a word: more is at hand than any has, if more is to come.
    return _NUMBER_BEGUN.match(text, at) is not None


def _unescaped(token: str) -> str:
    """Return a name without its escapes, between quotes as names are compared."""
    return f'"{json.loads(token)}"'


def _refuse_twice(name: str) -> NoReturn:
    raise ValueError(f"an object in it has {bounded.clean(name, 60)} twice")


def _category(token: str) -> str:
    """Return a category's number as text: some write it as a fraction."""
    return token.removesuffix(".0")[:_LONGEST_ID]
