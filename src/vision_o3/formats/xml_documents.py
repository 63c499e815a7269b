"""XML documents (XML 1.0), read as a stream; Pascal VOC annotations are recognised.

Document types, entities and processing instructions are refused before anything acts on
them: data sets do not need them, and readers expand them, follow them or run them.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn
from xml.parsers import expat

from vision_o3.errors import LimitExceededError, UnsafeContentError, VisionO3Error
from vision_o3.formats import bounded
from vision_o3.formats.annotations import Tally

if TYPE_CHECKING:
    from vision_o3.formats.limits import Limits

LONGEST_TOKEN = 4 << 20
"""Bytes of one tag or comment. Expat looks at all of it again for each read."""
_READ = 256 << 10
_LONGEST_VALUE = 1000
"""Characters of a text that is looked at: a class, a coordinate."""
# Those of one byte, and the two that XML demands. Of others Python asks its codecs,
# which do more than decode text.
_ENCODINGS = re.compile(
    r"utf-?8|utf-?16(?:-?[lb]e)?|(?:us-)?ascii|latin-?1|iso-?8859-?1?[0-9]"
    r"|(?:windows-?|cp)125[0-8]|koi8-[ru]",
    re.IGNORECASE,
)
_CORNERS = frozenset({"xmin", "ymin", "xmax", "ymax"})
_DESCRIBING = frozenset({"filename", "size"})
"""What an image without objects is known by."""


class VocReader:
    """Takes an XML document in chunks, and sums up what it annotates if it is VOC.

    Pascal VOC (VOC2012 development kit, 9): ``annotation`` elements, one of which may
    be the root, with ``object`` elements of a ``name`` and a ``bndbox``.

    Memory is O(depth + longest token + distinct names of elements).

    Attributes:
        root: The outermost element's name.
        elements: How many there are so far.
    """

    def __init__(self, limits: Limits) -> None:
        self.root: str | None = None
        self.elements = 0
        self._deepest = limits.xml_depth
        self._fed = 0
        self._path: list[str] = []
        self._annotation = 0  # the depth of the one that is open, if any
        self._seen: set[str] = set()
        self._class: str | None = None
        self._corners: set[str] = set()
        self._text: list[str] | None = None
        self._tally = Tally()
        # No table of names: they would be kept even if each is another.
        parser = expat.ParserCreate(intern=None)
        parser.buffer_text = True
        parser.XmlDeclHandler = _check_encoding
        # Without a document type there are no entities but XML's own five.
        parser.StartDoctypeDeclHandler = _refuse_document_type
        parser.ProcessingInstructionHandler = _refuse_instruction
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        self._parser = parser

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            ValueError: Not a good XML document.
            UnsafeContentError: It has what is not accepted.
            LimitExceededError: It is too deep, or a tag or comment is too long.
        """
        self._fed += len(chunk)
        self._parse(chunk, is_final=False)
        if self._fed - self._parser.CurrentByteIndex > LONGEST_TOKEN:
            raise LimitExceededError(
                "A tag or comment in the XML file is too long: this gateway accepts "
                f"at most {LONGEST_TOKEN} bytes.",
                limit=LONGEST_TOKEN,
            )

    def finish(self) -> None:
        """Take the end.

        Raises:
            ValueError: Not a whole XML document.
        """
        self._parse(b"", is_final=True)

    def voc(self) -> Tally | None:
        """Return what a whole document annotates, or ``None`` if it is not VOC."""
        return self._tally if self._tally.images else None

    def _parse(self, chunk: bytes, *, is_final: bool) -> None:
        try:
            self._parser.Parse(chunk, is_final)
        except (expat.ExpatError, LookupError) as error:
            raise ValueError(f"it is not well-formed: {error}") from error

    def _start(self, name: str, _: dict[str, str]) -> None:
        path = self._path
        depth = len(path)
        if depth >= self._deepest:
            raise bounded.over_limit(
                "Elements in the XML file are within each other too often",
                self._deepest,
                "VISION_O3_MAX_XML_DEPTH",
            )
        self.elements += 1
        if self._annotation:
            self._start_within(name, depth - self._annotation)
        elif not depth:
            self.root = bounded.clean(name)
            if name.lower() == "html":
                raise ValueError("it is HTML")
        if name == "annotation" and depth <= 1 and not self._annotation:
            self._annotation = depth + 1
            self._seen = set()
        path.append(name)

    def _start_within(self, name: str, level: int) -> None:
        """Take an element within an annotation, a child of it at level 0."""
        if level == 0:
            self._seen.add(name if name in _DESCRIBING else "")
            self._class = None
            self._corners = set()
        elif self._path[self._annotation] == "object" and (
            (level == 1 and name == "name")
            or (level == 2 and name in _CORNERS and self._path[-1] == "bndbox")  # noqa: PLR2004 - object, bndbox, corner
        ):
            self._text = []
            self._parser.CharacterDataHandler = self._text.append

    def _end(self, name: str) -> None:
        self._path.pop()
        if not self._annotation:
            return
        level = len(self._path) - self._annotation
        if self._text is not None and (name == "name" or name in _CORNERS):
            self._take_value(name, "".join(self._text).strip()[:_LONGEST_VALUE])
        elif level == 0 and name == "object" and self._class is not None:
            has_box = self._corners == _CORNERS
            self._seen.add("object")
            self._tally.annotations += 1
            self._tally.boxes += has_box
            self._tally.count_class(self._class, int(has_box))
        elif level < 0:
            self._annotation = 0
            if "object" in self._seen or self._seen >= _DESCRIBING:
                self._tally.images += 1

    def _take_value(self, name: str, text: str) -> None:
        self._text = None
        self._parser.CharacterDataHandler = None
        if name == "name":
            self._class = text or None
        elif _is_number(text):
            self._corners.add(name)


def inspect(file: BinaryIO, size: int, limits: Limits) -> dict[str, Any]:
    """Return the facts of an XML document (``XmlFacts``).

    Raises:
        ValueError: Not a good XML document.
        UnsafeContentError: It has a document type, an entity or an instruction.
        LimitExceededError: It is too large or too deep.
    """
    if size > limits.xml_bytes:
        raise bounded.over_limit(
            "The XML file has too many bytes",
            limits.xml_bytes,
            "VISION_O3_MAX_XML_BYTES",
        )
    reader = VocReader(limits)
    file.seek(0)
    while chunk := file.read(_READ):
        reader.feed(chunk)
    reader.finish()
    voc = reader.voc()
    return {
        "kind": "xml",
        "root": reader.root,
        "elements": reader.elements,
        "annotations": None if voc is None else voc.facts("voc"),
    }


def voc(content: bytes, limits: Limits) -> Tally | None:
    """Return what a small document annotates; ``None`` if it is not a good VOC one."""
    reader = VocReader(limits)
    try:
        reader.feed(content)
        reader.finish()
    except (ValueError, VisionO3Error):
        return None
    return reader.voc()


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _check_encoding(_: str, encoding: str | None, __: int) -> None:
    if encoding is not None and not _ENCODINGS.fullmatch(encoding):
        raise ValueError(
            f"its encoding {bounded.clean(encoding, 40)!r} is not accepted; use UTF-8"
        )


def _refuse_document_type(name: str, *_: object) -> NoReturn:
    if name.lower() == "html":
        raise ValueError("it is HTML")
    _refuse("a document type (DOCTYPE)")


def _refuse_instruction(target: str, *_: object) -> NoReturn:
    _refuse(f"a processing instruction (<?{bounded.clean(target, 40)} …?>)")


def _refuse(what: str) -> NoReturn:
    raise UnsafeContentError(
        f"The XML file has {what}: readers expand, follow or run such things, and data "
        "sets do not need them. Remove it.",
        findings=[what],
    )
