"""What annotations of images sum up to, and the small text files among them.

Read here are YOLO's labels and names of classes, and lists of images; ``Tally`` is what
every reader of annotations fills. Nothing here raises for a bad file: it answers
``None``, as a file that is not understood is no fault of an archive.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import yaml

from vision_o3.formats import bounded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MOST_CLASSES = 10_000
"""Distinct classes that are told apart; boxes of others are counted without one."""
LONGEST_LABEL_FILE = 1 << 20
LONGEST_NAMES_FILE = 64 << 10
_LONGEST_NAME = 4 * bounded.LONGEST_TEXT
_DEEPEST_YAML = 8

# A number from 0 to 1, as printed by any means; then any number.
_UNIT = (
    rb"(?:0(?:\.[0-9]*+)?|1(?:\.0[0-9]*+)?|\.[0-9]++"
    rb"|[0-9](?:\.[0-9]*+)?[eE](?:-[0-9]++|\+?0++))"
)
_NUMBER = rb"[-+.0-9eE]++"
_YOLO_LINE = (
    rb"[ \t]*+[0-9]{1,5}(?:[ \t]++" + _UNIT + rb"){4}"
    rb"(?:[ \t]++" + _NUMBER + rb")*+[ \t]*+"
)
_YOLO = re.compile(
    rb"(?:(?:" + _YOLO_LINE + rb"|[ \t]*+)\r?+\n)*+(?:" + _YOLO_LINE + rb")?+\s*+"
)
_YOLO_CLASS = re.compile(rb"^[ \t]*+([0-9]+)", re.MULTILINE)


class Tally:
    """The sum of annotations of one format. Memory is bounded, counts are whole."""

    __slots__ = ("annotations", "boxes", "classes", "images")

    def __init__(self) -> None:
        self.images = 0
        self.annotations = 0
        self.boxes = 0
        self.classes: Counter[str] = Counter()

    def count_class(self, name: str, boxes: int = 1) -> None:
        """Add boxes, none maybe, to a class."""
        name = name[:_LONGEST_NAME]
        if name in self.classes or len(self.classes) < MOST_CLASSES:
            self.classes[name] += boxes

    def add(self, other: Tally) -> None:
        """Add all that another tally holds."""
        self.images += other.images
        self.annotations += other.annotations
        self.boxes += other.boxes
        for name, boxes in other.classes.items():
            self.count_class(name, boxes)

    def renamed(self, names: Mapping[int, str]) -> Tally:
        """Return the tally with the classes' numbers replaced by their names.

        Classes that have a name but no box are in it, too.
        """
        tally = Tally()
        tally.images, tally.annotations = self.images, self.annotations
        tally.boxes = self.boxes
        for number, boxes in self.classes.items():
            tally.count_class(names.get(int(number), number), boxes)
        for name in names.values():
            tally.count_class(name, 0)
        return tally

    def facts(self, name: str) -> dict[str, Any]:
        """Return the facts of annotations of the format ``name``."""
        return {
            "format": name,
            "images": self.images,
            "annotations": self.annotations,
            "boxes": self.boxes,
            "classes": bounded.most(self.classes),
            "class_count": len(self.classes),
        }


def yolo_boxes(content: bytes) -> Counter[int] | None:
    """Return the boxes by class number of a YOLO label file, if it is one.

    A line is ``class x y width height``, relative to the image; more numbers may follow
    (key points, confidence). Of a polygon, ``class x1 y1 x2 y2 x3 y3 …``, all is the
    same but the meaning: one box each. An empty file speaks of an image with no boxes.
    """
    if not _YOLO.fullmatch(content):
        return None
    return Counter(map(int, _YOLO_CLASS.findall(content)))


def names_in_lines(content: bytes) -> dict[int, str] | None:
    """Return names by number from a file with one name a line."""
    lines = _text(content).split("\n")
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    return _named(enumerate(names))


def names_in_yaml(content: bytes) -> dict[int, str] | None:
    """Return ``names``, a list or mapping by number, from a YOLO data set's YAML.

    Only events are read, no value is ever built: aliases are refused and tags ignored.
    """
    try:
        return _named(_pairs(_names_node(content)))
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def listed_images(content: bytes) -> int:
    """Return how many images a list has, one a line (VOC's ``ImageSets/Main``)."""
    return sum(1 for line in content.split(b"\n") if line.strip())


def _named(pairs: Iterable[tuple[int, str]]) -> dict[int, str] | None:
    names: dict[int, str] = {}
    for number, name in pairs:
        if len(names) >= MOST_CLASSES:
            break
        names[number] = name[:_LONGEST_NAME]
    return names or None


def _text(content: bytes) -> str:
    return content.decode("utf-8-sig", "replace")


def _names_node(content: bytes) -> list[yaml.Event]:
    """Return the events of the value of the outermost key ``names``."""
    depth, is_key, found = 0, True, False
    kept: list[yaml.Event] = []
    for event in _events(content):
        if depth == 0 and not isinstance(event, yaml.MappingStartEvent):
            break
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if found:
            kept.append(event)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEEPEST_YAML:
                raise ValueError("it is nested too deeply")
        elif depth == 1:
            # A scalar, or the end of a collection: a key or a whole value.
            if found:
                return kept
            found = is_key and getattr(event, "value", None) == "names"
            is_key = not is_key
    raise ValueError("it has no names")


def _events(content: bytes) -> Iterator[yaml.Event]:
    """Yield the nodes' events of the first document."""
    for event in yaml.parse(_text(content), Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has an alias")  # noqa: TRY004 - not a type of ours
        if isinstance(event, yaml.DocumentEndEvent):
            return
        if isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
            yield event


def _pairs(node: list[yaml.Event]) -> Iterator[tuple[int, str]]:
    """Yield numbers and names from the events of a flat list or mapping."""
    values = [
        event.value for event in node[1:-1] if isinstance(event, yaml.ScalarEvent)
    ]
    if len(values) != len(node) - 2:
        raise ValueError("names are not texts")
    if isinstance(node[0], yaml.SequenceStartEvent):
        yield from enumerate(values)
    else:
        for number, name in zip(values[::2], values[1::2], strict=True):
            yield int(number[:6]), name


# The parser in C, unless PyYAML was built without it.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
