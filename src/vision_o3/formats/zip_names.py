"""Names in ZIP archives: what each is, and what else programs may take it for."""

from __future__ import annotations

import re
import struct
import zlib
from typing import NamedTuple

UTF_8 = 1 << 11
"""The bit of the flags that says that a name is UTF-8 (4.4.4)."""

_ZIP64 = 0x0001
_UNICODE_PATH = 0x7075
_STREAMED_ATTRIBUTES = 0x6C78
"""libarchive's own field, which makes a link of a file, for ``bsdtar`` alone."""
_EXTRA = struct.Struct("<2H")
_UNICODE_HEAD = struct.Struct("<BI")
_NOT_ASCII = re.compile(rb"[\x80-\xff]")


class Name(NamedTuple):
    """A name and its readings.

    Attributes:
        path: The name, with the slash of a folder.
        others: What programs that know less, or guess otherwise, take it for.
        renamed: It is from a Unicode path field, and the header has another.
    """

    path: str
    others: tuple[str, ...]
    renamed: bool


def read_extra(extra: bytes) -> tuple[bytes, bytes | None]:
    """Return the zip64 field and the Unicode path of extra fields (4.5, 4.6.9).

    Raises:
        ValueError: They are damaged, or some programs read a link out of them.
    """
    wide, unicode_path, at = b"", None, 0
    while at + _EXTRA.size <= len(extra):
        kind, length = _EXTRA.unpack_from(extra, at)
        at += _EXTRA.size
        content = extra[at : at + length]
        if len(content) != length:
            raise ValueError("an extra field is damaged")
        at += length
        if kind == _ZIP64 and content:
            if wide:
                raise ValueError("a file has two zip64 fields")
            wide = content
        elif kind == _UNICODE_PATH:
            if unicode_path is not None:
                raise ValueError("a file has two Unicode paths")
            unicode_path = content
        elif kind == _STREAMED_ATTRIBUTES:
            raise ValueError("a file has attributes that only some programs read")
    if any(extra[at:]):  # some programs align members with zeros
        raise ValueError("an extra field is damaged")
    return wide, unicode_path


def read_name(
    raw: bytes, flags: int, unicode_path: bytes | None, *, renaming: bool
) -> Name:
    """Return a name (4.4.4, 4.6.9, appendix D).

    Without the flag for UTF-8 it should be of code page 437; but Info-ZIP and macOS
    leave the flag out, so what is good UTF-8 is taken for that.

    Args:
        raw: The name in the header.
        flags: Those of the header.
        unicode_path: The content of that extra field, or ``None``.
        renaming: Such a field may give another name, where the header's is of a code
            page that is not told.

    Raises:
        ValueError: Programs that follow the rules would read two names.
    """
    if unicode_path is None and raw.isascii():
        return Name(raw.decode(), (), renamed=False)
    certain = bool(flags & UTF_8) or raw.isascii()
    readings = []
    try:
        readings.append(raw.decode())
    except UnicodeDecodeError:
        if certain:
            raise ValueError(
                "a file has a name that is said to be UTF-8 and is not: make the "
                "archive anew with a program that writes names in UTF-8"
            ) from None
    if not certain:
        readings.append(raw.decode("cp437"))
    renamed = False
    if unicode_path is not None:
        path = _parse_unicode_path(raw, unicode_path)
        renamed = path != readings[0]
        if renamed and (
            certain or not renaming or raw.endswith(b"/") != path.endswith("/")
        ):
            raise _two_names()
        readings.insert(0, path)
    others = tuple(sorted(set(readings[1:]) - {readings[0]}))
    return Name(readings[0], others, renamed=renamed)


def masked(raw: bytes) -> str:
    """Return a name with an ``x`` for what depends on its code page.

    For the rules that a path must keep in all of them: separators are ASCII.
    """
    return _NOT_ASCII.sub(b"x", raw).decode()


def _parse_unicode_path(raw: bytes, content: bytes) -> str:
    """Return a Unicode path: version 1, the CRC-32 of the name it is for, the path."""
    if not content.startswith(_UNICODE_HEAD.pack(1, zlib.crc32(raw))):
        raise _two_names()
    try:
        return content[_UNICODE_HEAD.size :].decode()
    except UnicodeDecodeError:
        raise ValueError("a file has a Unicode path that is not UTF-8") from None


def _two_names() -> ValueError:
    return ValueError("a file has one name for some programs, another for others")
