from __future__ import annotations

import io
import random
import struct
import tempfile
import zipfile
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.archive_files import (
    DEFLATED,
    DESCRIBED_LATER,
    ENCRYPTED,
    UTF_8,
    Entry,
    deflate,
    extra,
    unicode_path,
    zip64_end,
    zip_file,
)
from vision_o3.errors import LimitExceededError, UnsafeContentError
from vision_o3.formats.archives import Source
from vision_o3.formats.limits import Limits
from vision_o3.formats.zip_names import read_name
from vision_o3.formats.zip_streams import EndSearch
from vision_o3.formats.zips import (
    ZipMember,
    check_streamed,
    read_directory,
    unpack,
)

LIMITS = Limits()
WIDE = 2**32 - 1
Z64 = 1


def members(
    content: bytes, limits: Limits = LIMITS, *, renaming: bool = True
) -> list[ZipMember]:
    return read_directory(io.BytesIO(content), len(content), limits, renaming=renaming)


def contents(content: bytes, limits: Limits = LIMITS) -> dict[str, bytes]:
    file = io.BytesIO(content)
    return {
        member.path: b"".join(unpack(file, member, limits))
        for member in members(content, limits)
        if not member.is_folder
    }


def wide(*values: int) -> bytes:
    return extra(Z64, struct.pack(f"<{len(values)}Q", *values))


def described(content: bytes, *, signed: bool, wide_sizes: bool) -> bytes:
    sizes = "<I2Q" if wide_sizes else "<I2I"
    told = struct.pack(sizes, zlib.crc32(content), len(content), len(content))
    return (b"PK\7\x08" if signed else b"") + told


def made_by(content: bytes, host: int, attributes: int) -> bytes:
    """The same archive of one member, as if made on another system."""
    entry = bytearray(content)
    at = content.rindex(b"PK\1\2")
    entry[at + 5] = host
    entry[at + 38 : at + 42] = struct.pack("<I", attributes)
    return bytes(entry)


def streamed(name: str, content: bytes, *, signed: bool = True) -> Entry:
    """A stored member whose size is told after it."""
    descriptor = described(content, signed=signed, wide_sizes=False)
    flags = UTF_8 | DESCRIBED_LATER
    return Entry(name, content, flags=flags, local=LATER, descriptor=descriptor)


def into_pipe(tree: dict[str, bytes]) -> bytes:
    """An archive that ``zipfile`` writes where it cannot go back."""
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for name, content in tree.items():
            with archive.open(name, "w") as member:
                member.write(content)
    return pipe.content


class Pipe(io.RawIOBase):
    content = b""

    def writable(self) -> bool:
        return True

    def write(self, part: Any) -> int:
        self.content += bytes(part)
        return len(part)


def smuggling(*, signed: bool, wide_sizes: bool = False) -> bytes:
    """A file's bytes in which readers of a stream see its end and another file."""
    shown = b"shown" * 9
    end = described(shown, signed=signed, wide_sizes=wide_sizes)
    return shown + end + zip_file(Entry("hidden", b"x"))[:40]


NOISY = random.Random(1).randbytes(3000)
GBK = "图片/猫.jpg".encode("gbk")
LATER: dict[str, Any] = {"crc": 0, "packed": 0, "unpacked": 0}
COMPOSED, DECOMPOSED = "\u00e9", "e\u0301"

GOOD = {
    "nothing": (zip_file(), {}),
    "stored": (zip_file(Entry("a", b"abc")), {"a": b"abc"}),
    "deflated": (zip_file(Entry("a", b"abc" * 99, DEFLATED)), {"a": b"abc" * 99}),
    "an empty file": (zip_file(Entry("a", b"")), {"a": b""}),
    "an empty file, deflated": (zip_file(Entry("a", b"", DEFLATED)), {"a": b""}),
    "a folder": (zip_file(Entry("d/", b""), "d/a"), {"d/a": b"content"}),
    "a folder, deflated": (zip_file(Entry("d/", b"", DEFLATED, mode=0o040755)), {}),
    "a folder told twice": (zip_file(Entry("d/", b""), Entry("d/", b"")), {}),
    "no mode": (zip_file(Entry("a", mode=0)), {"a": b"content"}),
    "hints on compression": (
        zip_file(Entry("a", local={"flags": UTF_8 | 2})), {"a": b"content"},
    ),
    "a comment": (zip_file("a", comment=b"PK\3\4 PK\1\2"), {"a": b"content"}),
    "a comment of full length": (
        zip_file("a", comment=bytes(65535)), {"a": b"content"},
    ),
    "an archive inside": (
        zip_file(Entry("a", zip_file("b"))), {"a": zip_file("b")},
    ),
    "no attributes, of DOS": (
        made_by(zip_file("a"), 0, 0x20), {"a": b"content"},
    ),
    "a folder of DOS": (made_by(zip_file(Entry("d/", b"")), 0, 0x10), {}),
    "a folder's bit of Unix": (
        made_by(zip_file("a"), 3, 0o100644 << 16 | 0x10), {"a": b"content"},
    ),
    "a folder's bit of macOS": (
        made_by(zip_file("a"), 19, 0o100644 << 16 | 0x10), {"a": b"content"},
    ),
    "this folder": (
        zip_file(Entry("./", b""), Entry("././", b""), Entry("./d/", b""), "./d/a",
                 "././b"),
        {"d/a": b"content", "b": b"content"},
    ),
    "a Unicode path for another code page": (
        zip_file(Entry(GBK, flags=0, extra=unicode_path("图片/猫.jpg", GBK)), "ü"),
        {"图片/猫.jpg": b"content", "ü": b"content"},
    ),
    "a Unicode path where UTF-8 would do": (
        zip_file(Entry("ü", flags=0, extra=unicode_path("├╝", "ü".encode()))),
        {"├╝": b"content"},
    ),
    "a Unicode path in another normal form": (
        zip_file(Entry(DECOMPOSED, flags=0,
                       extra=unicode_path(COMPOSED, DECOMPOSED.encode()))),
        {COMPOSED: b"content"},
    ),
    "a folder by a Unicode path": (
        zip_file(Entry(b"\x81/", b"", flags=0, extra=unicode_path("й/", b"\x81/")),
                 Entry(b"\x81/a", flags=0, extra=unicode_path("й/a", b"\x81/a"))),
        {"й/a": b"content"},
    ),
    "folders in UTF-8 without the flag": (
        zip_file(Entry("ü/".encode(), b"", flags=0), Entry("ü/".encode(), b"", flags=0),
                 Entry("ü/ß".encode(), flags=0)),
        {"ü/ß": b"content"},
    ),
    "a decomposed name": (
        zip_file(DECOMPOSED, "e"), {DECOMPOSED: b"content", "e": b"content"},
    ),
    "a folder in two normal forms": (
        zip_file(Entry(f"{COMPOSED}/", b""), Entry(f"{DECOMPOSED}/", b"")), {},
    ),
    "from zipfile into a pipe": (
        into_pipe({"a": b"abc", "b": b"", "c": zip_file("a")}),
        {"a": b"abc", "b": b"", "c": zip_file("a")},
    ),
    **{
        f"a stored file with its size after it, of {what}": (
            zip_file(streamed("a", inside, signed=signed)), {"a": inside},
        )
        for signed in (True, False)
        for what, inside in {
            "an archive": zip_file("b"),
            "an archive from a pipe": into_pipe({"a": b"abc", "b": b"x" * 99}),
            "a signature": NOISY + b"PK\7\x08" + NOISY,
            "a signature at its start": b"PK\7\x08" + NOISY,
            "headers": (NOISY + b"PK\3\4 PK\1\2") * 9,
        }.items()
    },
    "a file with something like an end, its size before it": (
        zip_file(Entry("a", smuggling(signed=True))), {"a": smuggling(signed=True)},
    ),
    "a deflated file with something like an end": (
        zip_file(Entry("a", smuggling(signed=True), DEFLATED,
                       flags=UTF_8 | DESCRIBED_LATER, descriptor=struct.pack(
                           "<4s3I", b"PK\7\x08", zlib.crc32(smuggling(signed=True)),
                           len(deflate(smuggling(signed=True))),
                           len(smuggling(signed=True))), local=LATER)),
        {"a": smuggling(signed=True)},
    ),
    "a zip64 end record": (zip64_end(zip_file("a")), {"a": b"content"}),
    "a zip64 end record beside a full one": (
        zip64_end(zip_file("a"), narrow=1), {"a": b"content"},
    ),
    "zip64 sizes": (
        zip_file(Entry(
            "a", b"abc",
            local={"packed": WIDE, "unpacked": WIDE, "extra": wide(3, 3)},
            central={"packed": WIDE, "unpacked": WIDE, "extra": wide(3, 3)},
        )),
        {"a": b"abc"},
    ),
    "zip64 sizes and offset": (
        zip_file(Entry(
            "a", b"abc",
            central={"packed": WIDE, "unpacked": WIDE, "header_at": WIDE,
                     "extra": wide(3, 3, 0)},
        )),
        {"a": b"abc"},
    ),
    "zip64 sizes given needlessly": (
        zip_file(Entry("a", b"abc", extra=wide(3, 3))), {"a": b"abc"},
    ),
    "an empty zip64 field": (zip_file(Entry("a", extra=wide())), {"a": b"content"}),
    "zeros for alignment": (
        zip_file(Entry("a", local={"extra": bytes(3)})), {"a": b"content"},
    ),
    "a long extra field": (
        zip_file(Entry("a", extra=extra(0x4246, bytes(9000)))), {"a": b"content"},
    ),
    "UTF-8 without the flag": (
        zip_file(Entry("ü".encode(), flags=0)), {"ü": b"content"},
    ),
    "code page 437": (zip_file(Entry(b"\x81", flags=0)), {"ü": b"content"}),
    "a Unicode path": (
        zip_file(Entry(b"\x81", flags=0, extra=unicode_path("ü", b"\x81"))),
        {"ü": b"content"},
    ),
    "names in another order than data": (
        zip_file("b", "a"), {"b": b"content", "a": b"content"},
    ),
    **{
        f"a descriptor, signed {signed}, zip64 {wide_sizes}": (
            zip_file(
                Entry("a", b"abc", flags=UTF_8 | DESCRIBED_LATER, local=LATER,
                      descriptor=described(b"abc", signed=signed,
                                           wide_sizes=wide_sizes)),
                "b",
            ),
            {"a": b"abc", "b": b"content"},
        )
        for signed in (True, False)
        for wide_sizes in (True, False)
    },
    "a descriptor, sizes told already": (
        zip_file(Entry("a", b"abc", flags=UTF_8 | DESCRIBED_LATER,
                       descriptor=described(b"abc", signed=True, wide_sizes=False))),
        {"a": b"abc"},
    ),
    "a descriptor and empty zip64 sizes": (
        zip_file(Entry("a", b"abc", flags=UTF_8 | DESCRIBED_LATER,
                       local={"crc": 0, "packed": WIDE, "unpacked": WIDE,
                              "extra": wide(0, 0)},
                       descriptor=described(b"abc", signed=True, wide_sizes=True))),
        {"a": b"abc"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_good_archives_give_their_files(case: str) -> None:
    content, files = GOOD[case]
    assert contents(content) == files


def test_members_are_in_the_order_of_the_directory_with_all_that_is_told() -> None:
    content = zip_file(Entry("d/", b""), Entry("d/a", b"x" * 50, DEFLATED))
    packed = deflate(b"x" * 50)
    crc = zlib.crc32(b"x" * 50)
    assert members(content) == [
        ZipMember("d", 0, 0, 0, 0, 32, is_folder=True, streamed=False),
        ZipMember("d/a", 8, len(packed), 50, crc, 65, is_folder=False),
    ]


def test_large_members_come_in_pieces() -> None:
    data = b"x" * (5 << 20)
    content = zip_file(Entry("a", data, DEFLATED), Entry("b", data))
    for member in members(content):
        pieces = list(unpack(io.BytesIO(content), member, LIMITS))
        assert b"".join(pieces) == data
        assert max(map(len, pieces)) <= 1 << 20


def test_file_on_disk_is_read_without_moving_in_it() -> None:
    content = zip_file("a")
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(5)
        (member,) = read_directory(file, len(content), LIMITS)
        assert b"".join(unpack(file, member, LIMITS)) == b"content"
        assert file.tell() == 5


def test_source_reads_what_is_there() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"abc")
        file.flush()
        for at, count, expected in ((1, 1, b"b"), (1, 9, b"bc"), (3, 1, b""),
                                    (-1, 1, b""), (0, 0, b"")):  # fmt: skip
            assert Source(file, 3).read_most(at, count) == expected
        # The file has become shorter than it was.
        assert Source(file, 9).read_most(1, 8) == b"bc"
        with pytest.raises(ValueError, match="cut short"):
            Source(file, 9).read(1, 8)


SMALL_END = zip_file("a")[-22:]
DEEP = "/".join("d" * 40)
UNSAFE = {
    "a path up": zip_file("../a"),
    "a path up inside": zip_file("d/../../a"),
    "an absolute path": zip_file("/etc/passwd"),
    "a drive": zip_file("C:/a"),
    "a drive alone": zip_file("c:a"),
    "a backslash": zip_file("..\\a"),
    "this folder as a file": zip_file("."),
    "this folder inside": zip_file("a/./b"),
    "this folder, then the root": zip_file(".//a"),
    "this folder, then up": zip_file("./../a"),
    "a path twice, once with a dot": zip_file("a", "./a"),
    "a folder of DOS without a slash": made_by(zip_file("a"), 0, 0x10),
    "a folder of NTFS without a slash": made_by(zip_file("a"), 10, 0x30),
    "a disk's name": made_by(zip_file("a"), 0, 0x08),
    "a folder that is a disk's name": (made_by(zip_file(Entry("a/", b"")), 0, 0x18)),
    "a name in UTF-8 for some, another's for others": zip_file(
        Entry("é".encode(), flags=0), "é".encode().decode("cp437")
    ),
    "a folder in UTF-8 for some, a file for others": zip_file(
        Entry("é/".encode(), b"", flags=0), "é".encode().decode("cp437")
    ),
    "a folder above, for others": zip_file(
        Entry("é".encode(), flags=0), "é".encode().decode("cp437") + "/a"
    ),
    "a Unicode path that is another's name": zip_file(
        "b", Entry(b"\x81", flags=0, extra=unicode_path("b", b"\x81"))
    ),
    "a Unicode path, and another's without it": zip_file(
        "ü", Entry(b"\x81", flags=0, extra=unicode_path("b", b"\x81"))
    ),
    "a Unicode path, and another's in UTF-8": zip_file(
        "ü", Entry("ü", flags=0, extra=unicode_path("b", "ü".encode()))
    ),
    "a Unicode path up": zip_file(
        Entry(b"\x81", flags=0, extra=unicode_path("../b", b"\x81"))
    ),
    "a path up without its Unicode path": zip_file(
        Entry(b"../\x81", flags=0, extra=unicode_path("b", b"../\x81"))
    ),
    "a name in two normal forms": zip_file(COMPOSED, DECOMPOSED),
    "a file and a folder in two normal forms": zip_file(COMPOSED, f"{DECOMPOSED}/a"),
    "an empty part": zip_file("a//b"),
    "a slash alone": zip_file(Entry("/", b"")),
    "two slashes": zip_file(Entry("a//", b"")),
    "no name": zip_file(Entry("", b"")),
    "a NUL": zip_file("a\0.jpg"),
    "a line break": zip_file("a\nb"),
    "a part too long": zip_file("a" * 256),
    "a symbolic link": zip_file(Entry("a", b"/etc/passwd", mode=0o120777)),
    "a symbolic link to a folder": zip_file(Entry("a/", b"", mode=0o120777)),
    "a device": zip_file(Entry("a", mode=0o020666)),
    "a pipe": zip_file(Entry("a", mode=0o010666)),
    "a socket": zip_file(Entry("a", mode=0o140666)),
    "a folder without a slash": zip_file(Entry("a", b"", mode=0o040755)),
    "a name twice": zip_file("a", "a"),
    "a file that is a folder": zip_file("a", "a/b"),
    "a file that is a folder above": zip_file("a/b/c/d", "x/y", "a/b"),
    "a file that is told as a folder": zip_file("a", Entry("a/", b"")),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_what_is_not_safe_to_extract_is_refused(case: str) -> None:
    with pytest.raises(UnsafeContentError):
        members(UNSAFE[case])


AB = zip_file("a", "b")
# One member's header lies in the other's data, as in the "better zip bomb".
INNER = zip_file(Entry("b", b"x"))[:32]
QUOTING = zip_file(
    Entry("a", INNER),
    Entry("b", b"x", central={"header_at": 31}),
)

DAMAGED = {
    "nothing": (b"", "begins with PK"),
    "another format": (b"\x89PNG" + bytes(99), "begins with PK"),
    "no end": (AB[:-22], "cut short"),
    "a byte missing at the end": (AB[:-1], "cut short"),
    "a byte more at the end": (AB + b"x", "not at the end"),
    "half of it": (AB[: len(AB) // 2], "cut short"),
    "its first header": (AB[:30], "cut short"),
    "a byte missing inside": (AB[:40] + AB[41:], "does not lie before its end"),
    "bytes before it": (b"PK\3\4" + AB, "does not lie before its end"),
    "bytes before it, offsets moved": (
        zip_file("a", prefix=b"PK\3\4 a program"), "bytes before its first file"),
    "a script before it": (
        zip_file("a", prefix=b"#!/bin/sh\n"), "bytes before its first file"),
    "the mark of one of several before it": (
        b"PK00" + zip_file("a"), "bytes before its first file"),
    "an archive in its comment": (
        zip_file("a", comment=zip_file("b")), "two end records"),
    "an archive in its comment that does not reach its end": (
        zip_file("a", comment=zip_file("b") + b"x"), "not at the end"),
    "the signature of an end in its comment": (
        zip_file("a", comment=b"PK\5\6"), "not at the end"),
    "zip64: an end in its comment": (zip_file("a", comment=b"PK\6\6"), "comment"),
    "zip64: a locator in its comment": (zip_file("a", comment=b"x PK\6\7"), "comment"),
    "libarchive's attributes": (zip_file(Entry("a", extra=extra(0x6C78, b"\0"))),
                                "only some programs"),
    "libarchive's attributes in the header": (
        zip_file(Entry("a", local={"extra": extra(0x6C78, b"\0")})),
        "only some programs"),
    "libarchive's attributes in the directory": (
        zip_file(Entry("a", central={"extra": extra(0x6C78, b"\0")})),
        "only some programs"),
    "a Unicode path in the directory alone": (
        zip_file(Entry(GBK, flags=0, central={"extra": unicode_path("图", GBK)})),
        "contradicts"),
    "a Unicode path in the directory alone, beside others": (
        zip_file(Entry(GBK, flags=0, central={"extra": unicode_path("图", GBK)},
                       local={"extra": extra(9, b"")})), "contradicts"),
    "a Unicode path in the header alone": (
        zip_file(Entry(GBK, flags=0, local={"extra": unicode_path("图", GBK)})),
        "one name for some"),
    "another Unicode path in the header than in the directory": (
        zip_file(Entry(GBK, flags=0, extra=unicode_path("图", GBK),
                       local={"extra": unicode_path("片", GBK)})), "contradicts"),
    "a Unicode path that is not UTF-8": (
        zip_file(Entry(b"\x81", flags=0, extra=extra(
            0x7075, struct.pack("<BI", 1, zlib.crc32(b"\x81")) + b"\xff"))),
        "Unicode path that is not UTF-8"),
    "a Unicode path of another version": (
        zip_file(Entry(b"\x81", flags=0, extra=extra(
            0x7075, struct.pack("<BI", 2, zlib.crc32(b"\x81")) + b"a"))),
        "one name for some"),
    "a Unicode path that makes a folder": (
        zip_file(Entry(b"\x81", flags=0, extra=unicode_path("b/", b"\x81"))),
        "one name for some"),
    "a Unicode path for a name in UTF-8": (
        zip_file(Entry("ü", extra=unicode_path("b", "ü".encode()))),
        "one name for some"),
    **{
        f"an end inside a file, signed {signed}, zip64 {wide_sizes}": (
            zip_file(streamed("a", smuggling(signed=signed, wide_sizes=wide_sizes))),
            "look like its end")
        for signed in (True, False)
        for wide_sizes in (True, False)
    },
    "an end inside a file, whose CRC alone is right": (
        zip_file(streamed("a", b"abc" + struct.pack(
            "<4s3I", b"PK\7\x08", zlib.crc32(b"abc"), 9, 9))), "look like its end"),
    "an end inside a file, whose size alone is right": (
        zip_file(streamed("a", b"abc" + struct.pack(
            "<4s3I", b"PK\7\x08", 9, 3, 3))), "look like its end"),
    "an end inside a file that goes on after it": (
        zip_file(streamed("a", b"abcPK\7\x08")), "look like its end"),
    "bytes between files": (
        zip_file("a", Entry("b", before=b"hidden")), "belong to no file"),
    "bytes before the directory": (zip_file("a", gap=b"hidden"), "belong to no file"),
    "bytes before no files": (zip_file(prefix=b"PK\3\4"), "belong to no file"),
    "a directory that is told shorter": (zip_file("a", length=46), "does not lie"),
    "two end records": (
        zip_file("a", comment=b"x" + zip_file(start=len(zip_file("a")) + 1)[-22:]),
        "two end records"),
    "a member inside another": (QUOTING, "no file, or to two"),
    "members with the same bytes": (
        zip_file("a", Entry("b", central={"header_at": 0})), "no file, or to two"),
    "an entry with no member": (
        zip_file(Entry("a", central={"header_at": 9})), "before its first"),
    "a member that reaches into the directory": (
        zip_file(Entry("a", b"abc", packed=b"ab",
                       local={"packed": 3}, central={"packed": 3})),
        "no file, or to two"),
    "a member far outside": (
        zip_file("a", Entry("b", central={"header_at": 2**31})), "no file, or to two"),
    "more entries told": (zip_file("a", here=2, entries=2), "too small|damaged"),
    "fewer entries told": (zip_file("a", "b", here=1, entries=1), "more than its"),
    "entries on another disk": (zip_file("a", here=0), "one part of several"),
    "a second disk": (zip_file("a", disk=1), "one part of several"),
    "a directory on another disk": (zip_file("a", first_disk=1), "one part of several"),
    "a member on another disk": (
        zip_file(Entry("a", central={"disk": 1})), "one part of several"),
    "another signature in the directory": (
        zip_file(Entry("a", central={"signature": b"PK\1\3"})), "directory is damaged"),
    "another signature of a member": (
        zip_file(Entry("a", local={"signature": b"PK\3\5"})), "before its first"),
    "another signature of the second": (
        zip_file("a", Entry("b", local={"signature": b"PK\3\5"})), "contradicts"),
    "another name in the header": (zip_file(Entry("a", local={"name": b"b"})),
                                   "contradicts"),
    "a longer name in the header": (zip_file(Entry("a", local={"name": b"a" * 500})),
                                    "contradicts"),
    "another method in the header": (zip_file(Entry("a", local={"method": 8})),
                                     "contradicts"),
    "another size in the header": (zip_file(Entry("a", local={"unpacked": 8})),
                                   "contradicts"),
    "another packed size in the header": (zip_file(Entry("a", local={"packed": 8})),
                                          "contradicts"),
    "another CRC in the header": (zip_file(Entry("a", local={"crc": 8})),
                                  "contradicts"),
    "other flags in the header": (zip_file(Entry("a", local={"flags": 0})),
                                  "contradicts"),
    "encrypted": (zip_file(Entry("a", flags=UTF_8 | ENCRYPTED)), "encrypted"),
    "strongly encrypted": (zip_file(Entry("a", flags=UTF_8 | 64)), "encrypted"),
    "an encrypted directory": (zip_file(Entry("a", flags=UTF_8 | 1 << 13)),
                               "encrypted"),
    "a patch": (zip_file(Entry("a", flags=UTF_8 | 32)), "patch"),
    "bzip2": (zip_file(Entry("a", method=12)), "method 12"),
    "LZMA": (zip_file(Entry("a", method=14)), "method 14"),
    "Zstandard": (zip_file(Entry("a", method=93)), "method 93"),
    "AES": (zip_file(Entry("a", method=99)), "method 99"),
    "stored with two sizes": (
        zip_file(Entry("a", local={"unpacked": 9}, central={"unpacked": 9})),
        "two sizes"),
    "a folder with content": (zip_file(Entry("a/", b"x")), "content of its own"),
    "a folder with hidden content": (
        zip_file(Entry("a/", b"", DEFLATED, packed=b"hidden")), "content of its own"),
    "a name that is not UTF-8": (zip_file(Entry(b"\xff")), "UTF-8 and is not"),
    "another Unicode path": (
        zip_file(Entry("a", extra=unicode_path("b", b"a"))), "one name for some"),
    "another Unicode path in the header": (
        zip_file(Entry("a", local={"extra": unicode_path("b", b"a")})),
        "one name for some"),
    "a Unicode path of another name": (
        zip_file(Entry("a", extra=unicode_path("a", b"b"))), "one name for some"),
    "two Unicode paths": (
        zip_file(Entry("a", extra=2 * unicode_path("a", b"a"))), "two Unicode paths"),
    "a cut extra field": (zip_file(Entry("a", extra=b"\1\0\x09\0x")), "extra field"),
    "a rest of an extra field": (zip_file(Entry("a", extra=b"\1\0")), "extra field"),
    "an extra field that reaches into the directory": (
        zip_file("a", Entry("b", b"", local={"extra": extra(9, bytes(999))})).replace(
            extra(9, bytes(999)), extra(9, bytes(900)).replace(b"\x84\3", b"\xe7\3")
        ), "does not lie"),
    "two zip64 fields": (zip_file(Entry("a", b"abc", extra=2 * wide(3, 3))),
                         "two zip64"),
    "a zip64 field that lies on the size": (
        zip_file(Entry("a", b"abc", central={"extra": wide(4, 3)})), "contradicts"),
    "a zip64 size missing": (zip_file(Entry("a", central={"unpacked": WIDE})),
                             "zip64 field is missing"),
    "a zip64 offset missing": (
        zip_file(Entry("a", b"abc", central={"header_at": WIDE, "packed": WIDE,
                                             "unpacked": 3, "extra": wide(3, 3)})),
        "before its first"),
    "a zip64 field without the offset": (
        zip_file(Entry("a", b"abc", central={"header_at": WIDE, "extra": wide(3, 3)})),
        "zip64 field is missing"),
    "a zip64 size out of bounds": (
        zip_file(Entry("a", b"abc", DEFLATED,
                       central={"packed": WIDE, "extra": wide(2**63)})),
        "impossible"),
    "a zip64 size missing in the header": (
        zip_file(Entry("a", local={"packed": WIDE})), "zip64 field is missing"),
    "no descriptor": (zip_file(Entry("a", flags=UTF_8 | DESCRIBED_LATER, local=LATER)),
                      "contradicts"),
    "a descriptor that lies": (
        zip_file(Entry("a", flags=UTF_8 | DESCRIBED_LATER, local=LATER,
                       descriptor=described(b"abc", signed=True, wide_sizes=False))),
        "contradicts"),
    "a descriptor of no known length": (
        zip_file(Entry("a", flags=UTF_8 | DESCRIBED_LATER, local=LATER,
                       descriptor=b"PK\7\x08")), "contradicts"),
    "a size told before its descriptor that lies": (
        zip_file(Entry("a", flags=UTF_8 | DESCRIBED_LATER,
                       local=LATER | {"unpacked": 9},
                       descriptor=described(b"content", signed=True,
                                            wide_sizes=False))), "contradicts"),
    "zip64: other entries": (zip64_end(AB, narrow=1, entries=3), "end records differ"),
    "zip64: another start": (zip64_end(AB, start=1), "not lie before"),
    "zip64: another length": (zip64_end(AB, narrow=1, length=3), "end records differ"),
    "zip64: a record of another size": (zip64_end(AB, rest=45), "missing or damaged"),
    "zip64: another place": (zip64_end(AB, locator_at=1), "not where it should be"),
    "zip64: a place outside": (zip64_end(AB, locator_at=2**64 - 1), "not where"),
    "zip64: another disk": (zip64_end(AB, locator_disk=1), "one part of several"),
    "zip64: two disks": (zip64_end(AB, disks=2), "one part of several"),
    "zip64: no record": (zip64_end(AB).replace(b"PK\6\6", b"PK\6\5"), "missing or"),
    "zip64: a record before the file": (
        b"PK\3\4" + struct.pack("<4sIQI", b"PK\6\7", 0, 2**64 - 52, 1) + SMALL_END,
        "not where"),
    "zip64: entries beyond the directory": (
        zip64_end(AB, here=100, entries=100), "too small"),
    "65,535 entries told": (zip_file("a", here=65535, entries=65535), "too small"),
    "a directory before the file": (zip64_end(AB, start=2**64 - 1), "not lie before"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_what_can_be_read_in_two_ways_is_refused(case: str) -> None:
    content, reason = DAMAGED[case]
    with pytest.raises(ValueError, match=reason):
        contents(content)


def test_unicode_path_is_no_other_name_where_programs_read_none() -> None:
    entry = Entry(GBK, flags=0, extra=unicode_path("图", GBK))
    with pytest.raises(ValueError, match="one name for some"):
        members(zip_file(entry), renaming=False)
    same = Entry("ü", flags=0, extra=unicode_path("ü", "ü".encode()))
    assert [m.path for m in members(zip_file(same), renaming=False)] == ["ü"]


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (zip_file("d\\a"), "PowerShell 6"),
        (zip_file(Entry("d/Icon\r", b"")), r"zip -x \$'\*Icon\\r'"),
        (zip_file("/a"), "plain relative paths"),
        (zip_file(COMPOSED, DECOMPOSED), "for some programs or disks"),
    ],
)
def test_what_is_refused_says_what_to_do(content: bytes, hint: str) -> None:
    with pytest.raises(UnsafeContentError, match=hint):
        members(content)


def test_name_has_no_other_readings_where_none_is_possible() -> None:
    assert read_name(b"a", 0, None, renaming=True) == ("a", (), False)
    assert read_name("ü".encode(), UTF_8, None, renaming=True) == ("ü", (), False)
    assert read_name("ü".encode(), 0, None, renaming=True) == ("ü", ("├╝",), False)
    assert read_name(b"\x81", 0, None, renaming=True) == ("ü", (), False)


def test_other_readings_have_the_limits_of_paths() -> None:
    raw = "ü".encode() * 50
    content = zip_file(Entry(raw, flags=0, extra=unicode_path("u", raw)))
    assert len(members(content, Limits(path_bytes=500))) == 1
    with pytest.raises(LimitExceededError, match="PATH_BYTES"):
        members(content, Limits(path_bytes=99))


def search(content: bytes, step: int) -> None:
    looking = EndSearch()
    for at in range(0, len(content), step):
        looking.feed(memoryview(content)[at : at + step])
    looking.finish()


@pytest.mark.parametrize("step", [1, 2, 3, 7, 12, 13, 20, 64, 10_000])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("wide_sizes", [True, False])
def test_early_end_is_found_wherever_it_is_cut(
    step: int, *, signed: bool, wide_sizes: bool
) -> None:
    for before in (b"", b"x", b"PK", NOISY[:61], NOISY):
        end = described(before, signed=signed, wide_sizes=wide_sizes)
        with pytest.raises(ValueError, match="look like its end"):
            search(before + end + b"PK\3\4" + bytes(26), step)
        # The same bytes after one more byte are no end.
        search(b"." + before + end + b"PK\3\4" + bytes(26), step)


@pytest.mark.parametrize("mark", [b"PK\7\x08", b"PK\3\4", b"PK\1\2"])
def test_marks_that_would_cost_time_are_refused(mark: bytes) -> None:
    search(NOISY + mark * 9 + NOISY, 1000)
    with pytest.raises(ValueError, match="look like its end"):
        search(mark * 1000, 1000)


def test_small_files_are_checked_at_once() -> None:
    content = smuggling(signed=True)
    member = ZipMember("a", 0, 0, 0, 0, 0, is_folder=False, streamed=True)
    with pytest.raises(ValueError, match="look like its end"):
        check_streamed(member, memoryview(content))
    check_streamed(member, b"content")
    check_streamed(ZipMember("a", 0, 0, 0, 0, 0, is_folder=False), content)


BAD_MEMBERS = {
    "another CRC": Entry("a", local={"crc": 1}, central={"crc": 1}),
    "too short": Entry("a", b"abc", DEFLATED, packed=deflate(b"ab")),
    "too long": Entry("a", b"abc", DEFLATED, packed=deflate(b"abcd")),
    "no deflate stream": Entry("a", b"abc", DEFLATED, packed=b"\xff" * 9),
    "a stream cut short": Entry("a", b"abc" * 99, DEFLATED,
                                packed=deflate(b"abc" * 99)[:-1]),
    "a stream that ends early": Entry("a", b"abc", DEFLATED,
                                      packed=deflate(b"abc") + b"x"),
    "a stream that ends much too early": Entry(
        "a", b"abc", DEFLATED, packed=deflate(b"abc") + bytes(3 << 20)),
    "nothing for a stream": Entry("a", b"", DEFLATED, packed=b""),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_member_that_is_not_as_told_is_refused(case: str) -> None:
    content = zip_file(BAD_MEMBERS[case])
    (member,) = members(content)
    with pytest.raises(ValueError, match=r"length or the CRC|damaged|should"):
        list(unpack(io.BytesIO(content), member, LIMITS))


def test_more_bytes_than_told_are_not_handed_on() -> None:
    content = zip_file(Entry("a", b"abc", DEFLATED, packed=deflate(bytes(64 << 20))))
    (member,) = members(content)
    given: list[bytes] = []
    with pytest.raises(ValueError, match="length or the CRC"):
        given.extend(unpack(io.BytesIO(content), member, LIMITS))
    assert given == []


BOMB = Entry("a", bytes(17 << 20), DEFLATED)


@pytest.mark.parametrize(
    ("content", "limits", "setting"),
    [
        (zip_file(BOMB), Limits(), "UNPACK_RATIO"),
        (zip_file("a", "b", "c"), Limits(archive_files=2), "ARCHIVE_FILES"),
        (zip_file("a", "b"), Limits(unpacked_bytes=13), "UNPACKED_BYTES"),
        (zip_file("a"), Limits(unpacked_bytes=6), "UNPACKED_BYTES"),
        (zip_file("a" * 200), Limits(path_bytes=199), "PATH_BYTES"),
        (zip_file("ü" * 100), Limits(path_bytes=199), "PATH_BYTES"),
        (zip_file(DEEP), Limits(), "PATH_DEPTH"),
        (zip64_end(zip_file("a"), here=10**7, entries=10**7), Limits(), "FILES"),
        (zip64_end(zip_file("a"), here=2**63, entries=2**63), Limits(), "FILES"),
        (zip_file("a", here=9, entries=9), Limits(archive_files=8), "FILES"),
    ],
    ids=lambda value: "" if isinstance(value, bytes | Limits) else value,
)
def test_each_limit_is_named_in_its_error(
    content: bytes, limits: Limits, setting: str
) -> None:
    with pytest.raises(LimitExceededError, match=setting):
        contents(content, limits)


def test_absurd_number_of_entries_is_refused_at_once() -> None:
    content = zip64_end(zip_file("a"), here=4 * 10**5, entries=4 * 10**5)
    with pytest.raises(ValueError, match="too small"):
        members(content)


def test_directory_longer_than_what_is_read_at_once_is_read() -> None:
    entries = [Entry(f"{number:0200}", b"") for number in range(6000)]
    long = [Entry(f"long{number}", b"", central={"extra": extra(9, bytes(65000))})
            for number in range(20)]  # fmt: skip
    assert len(members(zip_file(*entries, *long))) == 6020


def test_directory_whose_last_entry_is_cut_is_refused() -> None:
    content = zip_file("a", "b" * 9)
    lying = content[:-23] + content[-22:-10] + struct.pack("<I", 47 + 54)
    lying += content[-6:]
    with pytest.raises(ValueError, match="directory is damaged"):
        members(lying)


NAMES = st.text(
    st.characters(blacklist_categories=["C", "Z"], blacklist_characters="/\\:"),
    min_size=1,
    max_size=5,
).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
CONTENTS = st.binary(max_size=300) | st.binary(max_size=9).map(lambda part: part * 999)
TREES = st.dictionaries(PATHS, st.tuples(CONTENTS, st.sampled_from([0, 8])), max_size=6)


def no_file_is_a_folder(tree: dict[str, Any]) -> bool:
    return not any(path.startswith(f"{other}/") for path in tree for other in tree)


def zipped(tree: dict[str, tuple[bytes, int]]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path, (content, method) in tree.items():
            archive.writestr(path, content, compress_type=method)
    return file.getvalue()


@given(TREES.filter(no_file_is_a_folder))
def test_archives_of_zipfile_are_read_alike(tree: dict[str, tuple[bytes, int]]) -> None:
    assert contents(zipped(tree)) == {
        path: content for path, (content, _) in tree.items()
    }


BASE = zip64_end(
    zip_file(
        Entry("d/", b""),
        Entry("a", b"abc" * 20, DEFLATED),
        Entry("ü", flags=0, extra=unicode_path("ü", "ü".encode())),
        Entry("b", b"abc", flags=UTF_8 | DESCRIBED_LATER, local=LATER,
              descriptor=described(b"abc", signed=True, wide_sizes=False)),
        Entry("c", b"abc", extra=wide(3, 3)),
    )
)  # fmt: skip
FILES = {"a": b"abc" * 20, "ü": b"content", "b": b"abc", "c": b"abc"}


@given(st.data())
def test_any_bytes_are_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(BASE)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(
            st.integers(0, 255)
        )
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    damaged = data.draw(st.binary(max_size=60)) * data.draw(st.booleans())
    damaged += bytes(content[:cut])
    try:
        found = contents(damaged)
    except (ValueError, UnsafeContentError, LimitExceededError):
        return
    assert sum(map(len, found.values())) <= 10 * len(BASE)


@pytest.mark.parametrize("at", range(len(BASE)))
def test_no_changed_byte_changes_what_a_file_holds(at: int) -> None:
    changed = bytearray(BASE)
    changed[at] ^= 1 << at % 8
    try:
        found = contents(bytes(changed))
    except (ValueError, UnsafeContentError, LimitExceededError):
        return
    assert sorted(found.values()) == sorted(FILES.values())
