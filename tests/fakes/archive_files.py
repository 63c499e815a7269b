"""Small archives, good and hostile: every field can be made to lie."""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from typing import Any

STORED, DEFLATED = 0, 8
UTF_8, DESCRIBED_LATER, ENCRYPTED = 1 << 11, 1 << 3, 1
REGULAR = 0o100644
BLOCK = 512


def deflate(content: bytes, level: int = 6) -> bytes:
    packer = zlib.compressobj(level, wbits=-15)
    return packer.compress(content) + packer.flush()


@dataclass
class Entry:
    """One member of a ZIP archive; what is ``None`` is made to be right.

    ``local`` overrides fields of its header (crc, packed, unpacked, method, flags,
    name, extra, signature), ``central`` those of its entry in the directory (and
    header_at, disk, mode, made_by), each by name.
    """

    name: str | bytes
    content: bytes = b"content"
    method: int = STORED
    flags: int = UTF_8
    extra: bytes = b""
    mode: int = REGULAR
    packed: bytes | None = None
    descriptor: bytes | None = None
    before: bytes = b""
    local: dict[str, Any] | None = None
    central: dict[str, Any] | None = None


def zip_file(
    *entries: Entry | str,
    prefix: bytes = b"",
    gap: bytes = b"",
    comment: bytes = b"",
    **end: int,
) -> bytes:
    """A ZIP archive. ``end`` overrides fields of its end record."""
    body, directory = bytearray(prefix), bytearray()
    for entry in entries:
        entry = Entry(entry) if isinstance(entry, str) else entry  # noqa: PLW2901 - a short form
        name = entry.name.encode() if isinstance(entry.name, str) else entry.name
        packed = entry.packed
        if packed is None:
            packed = (
                deflate(entry.content) if entry.method == DEFLATED else entry.content
            )
        values: dict[str, Any] = {
            "flags": entry.flags,
            "method": entry.method,
            "crc": zlib.crc32(entry.content),
            "packed": len(packed),
            "unpacked": len(entry.content),
            "name": name,
            "extra": entry.extra,
        }
        body += entry.before
        told = values | {"header_at": len(body), "disk": 0, "mode": entry.mode}
        body += _local(**(values | (entry.local or {})))
        body += packed + (entry.descriptor or b"")
        directory += _central(**(told | (entry.central or {})))
    body += gap
    told_end = {
        "disk": 0,
        "first_disk": 0,
        "here": len(entries),
        "entries": len(entries),
        "length": len(directory),
        "start": len(body),
    } | end
    record = struct.pack("<4s4H2IH", b"PK\5\6", *told_end.values(), len(comment))
    return bytes(body + directory + record + comment)


def _local(
    *,
    flags: int,
    method: int,
    crc: int,
    packed: int,
    unpacked: int,
    name: bytes,
    extra: bytes,
    signature: bytes = b"PK\3\4",
) -> bytes:
    return (
        struct.pack(
            "<4s5H3I2H",
            signature, 20, flags, method, 0, 33, crc, packed, unpacked,
            len(name), len(extra),
        )
        + name
        + extra
    )  # fmt: skip


def _central(  # noqa: PLR0913 - the fields of an entry
    *,
    flags: int,
    method: int,
    crc: int,
    packed: int,
    unpacked: int,
    name: bytes,
    extra: bytes,
    header_at: int,
    disk: int,
    mode: int,
    signature: bytes = b"PK\1\2",
) -> bytes:
    return (
        struct.pack(
            "<4s6H3I5H2I",
            signature, 3 << 8 | 20, 20, flags, method, 0, 33, crc, packed, unpacked,
            len(name), len(extra), 0, disk, 0, mode << 16, header_at,
        )
        + name
        + extra
    )  # fmt: skip


def zip64_end(content: bytes, **told: int) -> bytes:
    """The same ZIP archive with a zip64 end record, whose fields can be overridden.

    ``locator_at``, ``locator_disk`` and ``disks`` are those of its locator, ``narrow``
    is 1 to leave the old record's fields as they are.
    """
    _, disk, first, here, entries, length, start, _ = struct.unpack(
        "<4s4H2IH", content[-22:]
    )
    end = len(content) - 22
    fields = {
        "rest": 44,
        "disk": disk,
        "first_disk": first,
        "here": here,
        "entries": entries,
        "length": length,
        "start": start,
    } | {name: value for name, value in told.items() if name not in _LOCATOR_FIELDS}
    rest = fields.pop("rest")
    old = (
        content[end:]
        if told.get("narrow")
        else struct.pack(
            "<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0
        )
    )
    return (
        content[:end]
        + struct.pack("<4sQ2H2I4Q", b"PK\6\6", rest, 45, 45, *fields.values())
        + struct.pack(
            "<4sIQI",
            b"PK\6\7",
            told.get("locator_disk", 0),
            told.get("locator_at", end),
            told.get("disks", 1),
        )
        + old
    )


_LOCATOR_FIELDS = ("locator_at", "locator_disk", "disks", "narrow")


def extra(kind: int, content: bytes) -> bytes:
    """One extra field."""
    return struct.pack("<2H", kind, len(content)) + content


def unicode_path(path: str, name: bytes) -> bytes:
    """The extra field that gives a name in UTF-8."""
    content = struct.pack("<BI", 1, zlib.crc32(name)) + path.encode()
    return extra(0x7075, content)


def tar_header(
    name: bytes, size: int = 0, kind: bytes = b"0", **fields: bytes
) -> bytes:
    """One header of a tar archive; ``fields`` are put in as they are.

    Known: told_size, checksum, link, magic, prefix.
    """
    header = bytearray(BLOCK)
    header[: len(name)] = name
    header[100:108] = b"0000644\0"
    header[124:136] = fields.get("told_size", b"%011o\0" % size)
    header[136:148] = b"%011o\0" % 0
    header[156:157] = kind
    link = fields.get("link", b"")
    header[157 : 157 + len(link)] = link
    header[257:265] = fields.get("magic", b"ustar\x0000")
    prefix = fields.get("prefix", b"")
    header[345 : 345 + len(prefix)] = prefix
    header[148:156] = b" " * 8
    header[148:156] = fields.get("checksum", b"%06o\0 " % sum(header))
    return bytes(header)


def tar_member(
    name: bytes, content: bytes = b"content", kind: bytes = b"0", **fields: bytes
) -> bytes:
    """A header and what belongs to it."""
    return tar_header(name, len(content), kind, **fields) + padded(content)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def pax(*records: tuple[str, str] | bytes, kind: bytes = b"x") -> bytes:
    """A PAX header of records, as pairs or raw bytes."""
    content = b"".join(
        record if isinstance(record, bytes) else pax_record(*record)
        for record in records
    )
    return tar_member(b"PaxHeader", content, kind)


def pax_record(keyword: str, value: str) -> bytes:
    rest = f" {keyword}={value}\n".encode()
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length).encode() + rest


def tar_gz(*members: bytes, end: bytes = bytes(2 * BLOCK)) -> bytes:
    return gzip.compress(b"".join(members) + end, mtime=0)
