"""The manifest of an archive: its files by path, each with its own CID.

Canonical bytes, so that equal lists have equal CIDs: JSON in UTF-8, keys sorted, no
spaces, nothing escaped that need not be, files sorted by the bytes of their paths::

    {"files":[{"cid":…,"media_type":…,"path":…,"size":…},…],"manifest_format":1}

There is one text for each list, so it is read by a grammar of that text rather than as
any JSON: what is not canonical does not match, and nothing has to be written again to
find out. A path is relative, of parts joined by ``/``, and never leads out of the
directory that it is extracted to. Pure, for Python 3.8: the gateway writes manifests,
and the device checks and reads them.
"""

from __future__ import annotations

import json
import re
import unicodedata
from itertools import islice
from typing import (
    Dict,
    Iterable,
    Iterator,
    List,
    Match,
    NamedTuple,
    Optional,
    Tuple,
)

from vision_o3.content.cid import CID, CID_SIZE, DAG_PB, DIGEST_SIZE, RAW
from vision_o3.content.dag import check_bytes
from vision_o3.errors import (
    InvalidPathError,
    MalformedBlockError,
)

MANIFEST_FORMAT = 1
MAX_MANIFEST_SIZE = 1 << 30
"""Bytes of a manifest that are read at most; one file takes about 150."""
LONGEST_PART = 255
"""Bytes of one part of a path; what file systems hold."""
LONGEST_PATH = 4096
"""Bytes of a path in a manifest at most; publishing has a lower limit of its own."""

_HEAD = b'{"files":['
_TAIL = b'],"manifest_format":1}'
_ENTRY_HEAD = b'{"cid":"'
"""In canonical bytes only where an entry starts: in a text, quotes are escaped."""
_ENTRY = re.compile(
    _ENTRY_HEAD
    # CIDv1 in base32: the version, codec and hash are those of ``content.cid``, and the
    # unused bits of the last character are zero.
    + rb'b(afkrei[a-h][a-z2-7]{50}[aeimquy4]|afybei[a-h][a-z2-7]{50}[aeimquy4])"'
    rb',"media_type":"([a-z0-9.+-]{1,127}/[a-z0-9.+-]{1,127})"'
    # A quote is all that needs escaping in a path that ``parse_path`` accepts. The
    # bounds are far over what it accepts, and keep the regular expression's memory low.
    rb',"path":"([^"\\\x00-\x1f]{0,4096}(?:\\"[^"\\\x00-\x1f]{0,4096}){0,4096})"'
    rb',"size":(0|[1-9][0-9]{0,18})\}'
)
_DRIVE = re.compile(r"[A-Za-z]:")
_PLAIN_PATH = re.compile(r"(?:\w[\w.-]{0,60}/){0,15}\w[\w.-]{0,60}", re.ASCII)
"""Most paths there are; safe, without looking closer."""
_LAST_SIZE = 2**63 - 1
_BASE32_DIGITS = bytes.maketrans(
    b"abcdefghijklmnopqrstuvwxyz234567", b"0123456789abcdefghijklmnopqrstuv"
)
"""From the letters of RFC 4648, section 6, to those of ``int(…, 32)``."""


class FileEntry(NamedTuple):
    """One file of an archive.

    Attributes:
        path: Relative, parts joined by ``/``.
        size: Bytes.
        cid: What names its content, as if it were published by itself.
        media_type: By its extension, such as ``image/jpeg``.
    """

    path: str
    size: int
    cid: CID
    media_type: str


def parse_path(text: str) -> str:
    """Return ``text`` if it is a path that never leads out of where it is extracted.

    Raises:
        InvalidPathError: It is not; the message says why.
    """
    if _PLAIN_PATH.fullmatch(text):
        return text
    reason = _unsafe(text)
    if reason is None:
        return text
    shown = text[:100].encode("utf-8", "backslashreplace").decode()
    shown = "".join(c if c.isprintable() else "�" for c in shown)
    raise InvalidPathError(f"The path '{shown}' {reason}.", path=shown)


def _unsafe(text: str) -> Optional[str]:
    """Return what is wrong with a path, as the end of a sentence."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if not 0 < size <= LONGEST_PATH:
        return f"has {size} bytes, not 1 to {LONGEST_PATH}"
    if text.startswith("/") or _DRIVE.match(text):
        return "is not relative: it names a place outside the archive"
    if "\\" in text:
        return "has a backslash, which is a separator elsewhere"
    if not text.isprintable() and any(
        unicodedata.category(character) in {"Cc", "Zl", "Zp"} for character in text
    ):
        return "has control characters"
    return next(filter(None, map(_unsafe_part, text.split("/"))), None)


def _unsafe_part(part: str) -> Optional[str]:
    # Windows drops dots and spaces at the end: there, ".. " is "..".
    if not part.rstrip(". "):
        return f"has the part {part!r}, which could lead outside the archive"
    if len(part.encode()) > LONGEST_PART:
        return f"has a part of more than {LONGEST_PART} bytes"
    return None


def encode_manifest(entries: Iterable[FileEntry]) -> Iterator[bytes]:
    """Yield the canonical bytes of a manifest, piece by piece.

    Args:
        entries: Sorted by the bytes of their paths, as ``sort_key`` does.

    Raises:
        ValueError: Two entries have one path, or they are not sorted.
    """
    yield _HEAD
    before = b""
    for number, entry in enumerate(entries):
        path = sort_key(entry)
        if path <= before:
            raise ValueError(f"{entry.path!r} is given twice, or is not sorted.")
        before = path
        yield (b"," if number else b"") + encode_entry(entry)
    yield _TAIL


def sort_key(entry: FileEntry) -> bytes:
    """Return what entries are sorted by."""
    return entry.path.encode()


def encode_entry(entry: FileEntry) -> bytes:
    """Return the canonical bytes of one entry."""
    return (
        f'{{"cid":"{entry.cid}","media_type":"{entry.media_type}",'
        f'"path":{_quoted(entry.path)},"size":{entry.size}}}'
    ).encode()


def _quoted(path: str) -> str:
    return json.dumps(path, ensure_ascii=False)


class Manifest:
    """A manifest that was checked: canonical, sorted, every path safe.

    Attributes:
        content: Its canonical bytes.
        files: The entries, sorted by path.

    Args:
        content: Canonical bytes.
        expected: The manifest's CID, if it is known.

    Raises:
        DigestMismatchError: The bytes are not what ``expected`` names.
        MalformedBlockError: Not a canonical manifest.
    """

    __slots__ = ("_by_path", "content", "files")

    def __init__(self, content: bytes, expected: Optional[CID] = None) -> None:
        if expected is not None:
            check_bytes(content, expected, "manifest")
        self.content = content
        self.files: Tuple[FileEntry, ...] = tuple(_parse(content))
        self._by_path: Dict[str, int] = {
            entry.path: number for number, entry in enumerate(self.files)
        }

    def position(self, path: str) -> Optional[int]:
        """Return a file's place in ``files``, or ``None`` if there is none."""
        return self._by_path.get(path)

    def find(self, path: str) -> Optional[FileEntry]:
        """Return a file's entry, or ``None``."""
        number = self._by_path.get(path)
        return None if number is None else self.files[number]


def entries_at(content: bytes, start: int, count: int) -> Tuple[int, List[FileEntry]]:
    """Return how many files a manifest has, and ``count`` of them from place ``start``.

    As ``find_entry``, without parsing the rest.

    Args:
        content: A manifest's bytes, checked against their CID.
        start: The first one's place.
        count: Fewer are returned where the manifest ends.

    Raises:
        MalformedBlockError: What is at these places are no entries.
    """
    heads = islice(re.finditer(re.escape(_ENTRY_HEAD), content), start, start + count)
    found = []
    for head in heads:
        match = _ENTRY.match(content, head.start())
        if match is None:
            raise MalformedBlockError(
                f"Not a manifest: there is no canonical entry at byte {head.start()}."
            )
        found.append(_entry(match))
    return content.count(_ENTRY_HEAD), found


def find_entry(content: bytes, path: str) -> Optional[Tuple[int, FileEntry]]:
    """Return a file's place and entry in a manifest, without reading all of it.

    A search over the bytes, so that one file of a long manifest costs neither the time
    nor the memory of parsing it. The other entries are not looked at.

    Args:
        content: A manifest's bytes, checked against their CID.
        path: The file's, as ``parse_path`` returns it.

    Raises:
        MalformedBlockError: What is at that place is no entry.
    """
    at = content.find(f',"path":{_quoted(path)},"size":'.encode())
    if at < 0:
        return None
    start = content.rfind(_ENTRY_HEAD, 0, at)
    match = _ENTRY.match(content, start) if start >= 0 else None
    entry = None if match is None else _entry(match)
    if entry is None or entry.path != path:
        raise MalformedBlockError(f"Not a manifest: nothing of use is at byte {at}.")
    return content.count(_ENTRY_HEAD, 0, start), entry


def _parse(content: bytes) -> Iterator[FileEntry]:
    at, end = len(_HEAD), len(content) - len(_TAIL)
    if end < at or not (content.startswith(_HEAD) and content.endswith(_TAIL)):
        raise MalformedBlockError(
            f"Not a manifest of format {MANIFEST_FORMAT}: it does not start or end so."
        )
    before = b""
    while at < end:
        match = _ENTRY.match(content, at, end)
        if match is None:
            raise MalformedBlockError(
                f"Not a manifest: there is no canonical entry at byte {at}."
            )
        entry = _entry(match)
        path = entry.path.encode()
        if path <= before:
            raise MalformedBlockError(
                f"Not a manifest: {entry.path!r} is given twice, or is not sorted."
            )
        before = path
        yield entry
        at = match.end()
        if at < end:
            at += 1
            if content[at - 1 : at] != b"," or at == end:
                raise MalformedBlockError(
                    f"Not a manifest: there is no comma and entry at byte {at - 1}."
                )


def _entry(match: Match[bytes]) -> FileEntry:
    """Return what an entry's bytes say.

    Raises:
        MalformedBlockError: A path that is not safe, or a size that no file has.
    """
    cid, media_type, quoted, digits = match.groups()
    try:
        path = parse_path(quoted.replace(b'\\"', b'"').decode())
    except (InvalidPathError, UnicodeDecodeError) as error:
        raise MalformedBlockError(f"Not a manifest: {error}") from error
    size = int(digits)
    if size > _LAST_SIZE:
        raise MalformedBlockError(f"Not a manifest: no file has {size} bytes.")
    # Of its 290 bits the last two are unused; the codec and form were matched.
    number = int(cid.translate(_BASE32_DIGITS), 32) >> 2
    codec = RAW if cid.startswith(b"afk") else DAG_PB
    digest = number.to_bytes(CID_SIZE, "big")[-DIGEST_SIZE:]
    return FileEntry(path, size, CID(codec, digest), media_type.decode())


class Renamed(NamedTuple):
    """A file that has another path, with the same content."""

    before: FileEntry
    after: FileEntry


class Difference(NamedTuple):
    """What changed between two manifests, each list sorted by path.

    Attributes:
        added: Files with a path and a content that were not there.
        removed: Files whose path and content are there no more.
        changed: Files of the same path with another content: before and after.
        renamed: Files of the same content under another path.
        unchanged: How many files are the same.
    """

    added: List[FileEntry]
    removed: List[FileEntry]
    changed: List[Renamed]
    renamed: List[Renamed]
    unchanged: int


def compare(before: Manifest, after: Manifest) -> Difference:
    """Return what changed from one manifest to another.

    A path that went and one that came are a renaming if their content is the same;
    several of the same content are paired in the order of their paths.
    """
    old = {entry.path: entry for entry in before.files}
    new = {entry.path: entry for entry in after.files}
    changed = [
        Renamed(old[path], entry)
        for path, entry in new.items()
        if path in old and old[path].cid != entry.cid
    ]
    gone: Dict[CID, List[FileEntry]] = {}
    for path, entry in old.items():
        if path not in new:
            gone.setdefault(entry.cid, []).append(entry)
    for entries in gone.values():
        entries.reverse()
    added, renamed = [], []
    for path, entry in new.items():
        if path in old:
            continue
        same = gone.get(entry.cid)
        if same:
            renamed.append(Renamed(same.pop(), entry))
        else:
            added.append(entry)
    removed = [entry for entries in gone.values() for entry in entries]
    removed.sort(key=sort_key)
    unchanged = len(old) - len(changed) - len(renamed) - len(removed)
    return Difference(added, removed, changed, renamed, unchanged)
