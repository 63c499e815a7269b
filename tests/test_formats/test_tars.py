from __future__ import annotations

import gzip
import io
import random
import tarfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.archive_files import (
    BLOCK,
    padded,
    pax,
    tar_gz,
    tar_header,
    tar_member,
)
from vision_o3.errors import LimitExceededError, UnsafeContentError
from vision_o3.formats.archives import Source
from vision_o3.formats.gzips import LONGEST_HEADER, unpack_gzip
from vision_o3.formats.limits import Limits
from vision_o3.formats.tars import TarMember, TarReader

LIMITS = Limits()
GNU = b"ustar  \0"
OLD = bytes(8)


def gunzip(content: bytes, limits: Limits = LIMITS) -> bytes:
    return b"".join(unpack_gzip(Source(io.BytesIO(content), len(content)), limits))


def contents(
    tar: bytes, limits: Limits = LIMITS, piece: int = 1000
) -> dict[str, bytes | None]:
    """Paths with contents, ``None`` for folders."""
    pieces = (tar[at : at + piece] for at in range(0, len(tar), piece))
    reader = TarReader(pieces, limits)
    found: dict[str, bytes | None] = {}
    for member in reader.members():
        content = b"".join(reader.content())
        if not member.is_folder:
            assert tar[member.data_at : member.data_at + member.size] == content
        found[member.path] = None if member.is_folder else content
    return found


def tar(*members: bytes, end: bytes = bytes(2 * BLOCK)) -> bytes:
    return b"".join(members) + end


def gnu_long(path: bytes, kind: bytes = b"L") -> bytes:
    return tar_member(b"././@LongLink", path, kind, magic=GNU)


def with_field(begin: int, field: bytes, made: bytes | None = None) -> bytes:
    """A file whose header has another field, and the checksum for it."""
    content = bytearray(tar_member(b"a") if made is None else made)
    content[begin : begin + len(field)] = field
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:BLOCK])
    return bytes(content)


FIELDS = {
    "mode": (100, 8),
    "owner": (108, 8),
    "group": (116, 8),
    "time": (136, 12),
    "major device": (329, 8),
    "minor device": (337, 8),
}
NUMBERS = {
    "octal": b"0000644\0",
    "octal, with spaces": b"   644 \0",
    "octal, to its end": b"00000644",
    "octal of 12 digits": b"00000644",
    "nothing": bytes(8),
    "spaces": b" " * 8,
    "a large number": b"\x80" + bytes(6) + b"\7",
    "a negative number": b"\xff" * 8,
}
NO_NUMBERS = {
    "letters": b"zzzzzzz\0",
    "decimal digits": b"9999999\0",
    "a sign": b"-000644\0",
    "digits after a NUL": b"644\x000 7\0",
    "digits after a space": b"644 0  \0",
    "hexadecimal digits": b"0x00644\0",
    "a byte that is neither": b"\x81" + bytes(7),
    "a byte of no number": b"\xfe" + b"\xff" * 7,
    "a digit of another script": "\N{FULLWIDTH DIGIT SIX}".encode() + bytes(5),
}


def filled(field: bytes, size: int) -> bytes:
    """A number of 8 bytes in a field of more."""
    more = size - len(field)
    if field[0] in (0x80, 0xFF):
        return field[:1] + (b"\xff" if field[0] == 0xFF else b"\0") * more + field[1:]
    if field[:1] in b" 0":
        return field[:1] * more + field
    return field + bytes(more)


LONG = "d" * 90 + "/" + "e" * 90 + "/a"
GOOD = {
    "nothing": (tar(), {}),
    "nothing, one block": (tar(end=bytes(BLOCK)), {}),
    "nothing, more zeros": (tar(end=bytes(9999)), {}),
    "a file": (tar(tar_member(b"a")), {"a": b"content"}),
    "an empty file": (tar(tar_member(b"a", b"")), {"a": b""}),
    "a whole block": (tar(tar_member(b"a", bytes(BLOCK))), {"a": bytes(BLOCK)}),
    "one zero block at the end": (
        tar(tar_member(b"a"), end=bytes(BLOCK)), {"a": b"content"}),
    "a file of old type": (tar(tar_member(b"a", kind=b"\0")), {"a": b"content"}),
    "a contiguous file": (tar(tar_member(b"a", kind=b"7")), {"a": b"content"}),
    "of old tar": (tar(tar_member(b"a", magic=OLD)), {"a": b"content"}),
    "of GNU tar": (tar(tar_member(b"a", magic=GNU)), {"a": b"content"}),
    "a prefix": (tar(tar_member(b"a", prefix=b"d/e")), {"d/e/a": b"content"}),
    "a name that fills its field": (
        tar(tar_member(b"a" * 100)), {"a" * 100: b"content"}),
    "a folder": (tar(tar_member(b"d/", b"", b"5"), tar_member(b"d/a")),
                 {"d": None, "d/a": b"content"}),
    "a folder without a slash": (tar(tar_member(b"d", b"", b"5")), {"d": None}),
    **{
        f"{number} in the field {field}": (
            tar(tar_member(b"b"),
                with_field(FIELDS[field][0], filled(told, FIELDS[field][1]))),
            {"b": b"content", "a": b"content"})
        for number, told in NUMBERS.items()
        for field in FIELDS
    },
    "a PAX header after a GNU long name": (
        tar(gnu_long(b"b\0"), pax(("mtime", "1")), tar_member(b"a")),
        {"b": b"content"}),
    "a GNU long name after a PAX header": (
        tar(pax(("mtime", "1")), gnu_long(b"b\0"), tar_member(b"a")),
        {"b": b"content"}),
    "a long name and a long link": (
        tar(gnu_long(b"b\0"), gnu_long(b"c\0", b"K"), tar_member(b"a")),
        {"b": b"content"}),
    "a global PAX header after that of a file": (
        tar(pax(("path", "b")), pax(("comment", "x"), kind=b"g"),
            pax(kind=b"g"), tar_member(b"a")),
        {"b": b"content"}),
    "PAX headers of two files": (
        tar(pax(("path", "b")), tar_member(b"a"), pax(("path", "c")), tar_member(b"a")),
        {"b": b"content", "c": b"content"}),
    "a folder of old tar with a PAX path": (
        tar(pax(("path", "e/")), tar_member(b"d/", b"", b"\0")), {"e": None}),
    "a file of old type with a PAX path": (
        tar(pax(("path", "e")), tar_member(b"d", kind=b"\0")), {"e": b"content"}),
    "a file whose short name is cut at a slash": (
        tar(gnu_long(b"d" * 99 + b"/a"), tar_member(b"d" * 99 + b"/")),
        {"d" * 99 + "/a": b"content"}),
    "a folder of old tar": (tar(tar_member(b"d/", b"", b"\0")), {"d": None}),
    "a folder twice": (tar(2 * tar_member(b"d/", b"", b"5")), {"d": None}),
    "this folder": (
        tar(tar_member(b"./", b"", b"5"), tar_member(b".", b"", b"5"),
            tar_member(b"./d/", b"", b"5"), tar_member(b"./d/a"),
            tar_member(b"././b")),
        {"d": None, "d/a": b"content", "b": b"content"}),
    "a GNU long name": (
        tar(gnu_long(LONG.encode() + b"\0"), tar_member(b"ddd")), {LONG: b"content"}),
    "a GNU long name without its end": (
        tar(gnu_long(LONG.encode()), tar_member(b"ddd")), {LONG: b"content"}),
    "a GNU long link of a file": (
        tar(gnu_long(b"x", b"K"), tar_member(b"a")), {"a": b"content"}),
    "a PAX path": (tar(pax(("path", LONG)), tar_member(b"ddd")), {LONG: b"content"}),
    "a PAX path of a folder": (
        tar(pax(("path", "d/e/")), tar_member(b"ddd", b"", b"5")), {"d/e": None}),
    "a PAX size": (tar(pax(("size", "7")), tar_header(b"a", 0), padded(b"content")),
                   {"a": b"content"}),
    "other PAX keywords": (
        tar(pax(("mtime", "1.5"), b"15 SCHILY.x=\xff\0\n", ("comment", "")),
            tar_member(b"a")), {"a": b"content"}),
    "a global PAX header": (
        tar(pax(("comment", "0" * 40), kind=b"g"), tar_member(b"a")),
        {"a": b"content"}),
    "an empty PAX header": (tar(pax(), tar_member(b"a")), {"a": b"content"}),
    **{
        f"a size told as {told!r}": (
            tar(tar_member(b"a", told_size=told)), {"a": b"content"})
        for told in (b"\x80" + bytes(10) + b"\7", b"          7 ", b"000000000007",
                     b"7\0         \0", b"7" + bytes(11))
    },
    "an empty file without a size": (
        tar(tar_member(b"a", b"", told_size=bytes(12))), {"a": b""}),
    "padding that is not zero": (
        tar(tar_member(b"a")[:-1] + b"x"), {"a": b"content"}),
    "a path in UTF-8": (tar(tar_member("ü".encode())), {"ü": b"content"}),
}  # fmt: skip


@pytest.mark.parametrize("piece", [1, 511, 512, 100_000])
@pytest.mark.parametrize("case", GOOD)
def test_good_archives_give_their_files(case: str, piece: int) -> None:
    content, files = GOOD[case]
    assert contents(content, piece=piece) == files


def test_what_is_not_taken_is_skipped() -> None:
    reader = TarReader(iter([tar(tar_member(b"a"), tar_member(b"b", b"abc"))]), LIMITS)
    assert list(reader.members()) == [
        TarMember("a", 7, 512, is_folder=False),
        TarMember("b", 3, 1536, is_folder=False),
    ]


def test_content_may_be_left_half_way() -> None:
    reader = TarReader(
        iter(
            [
                tar(tar_member(b"a", b"x" * 999))[:700],
                tar(tar_member(b"a", b"x" * 999))[700:],
            ]
        ),
        LIMITS,
    )
    for _ in reader.members():
        assert len(next(reader.content())) == 188


UNSAFE = {
    "a path up": tar_member(b"../a"),
    "a path up inside": tar_member(b"d/../../a"),
    "an absolute path": tar_member(b"/etc/passwd"),
    "an absolute prefix": tar_member(b"passwd", prefix=b"/etc"),
    "a prefix up": tar_member(b"a", prefix=b".."),
    "a drive": tar_member(b"C:/a"),
    "a backslash": tar_member(b"..\\a"),
    "no name": tar_member(b""),
    "a file that ends in a slash": tar_member(b"a/"),
    "a PAX path that ends in a slash": pax(("path", "d/f/")) + tar_member(b"a"),
    "a GNU path that ends in a slash": gnu_long(b"d/f/\0") + tar_member(b"a"),
    "a path in two normal forms": (
        tar_member("\u00e9".encode()) + tar_member("e\u0301".encode())
    ),
    "two slashes": tar_member(b"a//", b"", b"5"),
    "this folder as a file": tar_member(b"."),
    "this folder inside": tar_member(b"a/./b"),
    "an absolute PAX path": pax(("path", "/etc/passwd")) + tar_member(b"a"),
    "a PAX path up": pax(("path", "d/../../a")) + tar_member(b"a"),
    "a PAX path with a line break": pax(("path", "a\nb")) + tar_member(b"a"),
    "an absolute GNU path": gnu_long(b"/etc/passwd\0") + tar_member(b"a"),
    "a symbolic link out": tar_member(b"a", b"", b"2", link=b"/etc/passwd"),
    "a symbolic link inside": tar_member(b"a", b"", b"2", link=b"b"),
    "a long symbolic link": gnu_long(b"/etc/" * 50, b"K") + tar_member(b"a", b"", b"2"),
    "a hard link out": tar_member(b"a", b"", b"1", link=b"/etc/passwd"),
    "a hard link inside": tar_member(b"a") + tar_member(b"b", b"", b"1", link=b"a"),
    "a character device": tar_member(b"a", b"", b"3"),
    "a block device": tar_member(b"a", b"", b"4"),
    "a pipe": tar_member(b"a", b"", b"6"),
    "a sparse file of GNU tar": tar_member(b"a", kind=b"S", magic=GNU),
    "a sparse file in PAX 0": pax(("GNU.sparse.numblocks", "1")) + tar_member(b"a"),
    "a sparse file in PAX 1": pax(("GNU.sparse.major", "1")) + tar_member(b"a"),
    "a sparse file of Solaris": pax(("SUN.holesdata", " 0 1")) + tar_member(b"a"),
    "sparse files all over": (
        pax(("GNU.sparse.major", "1"), kind=b"g") + tar_member(b"a")
    ),
    "a path twice": tar_member(b"a") + tar_member(b"a"),
    "a path twice, once with a dot": tar_member(b"a") + tar_member(b"./a"),
    "a path twice, once in PAX": (
        tar_member(b"a") + pax(("path", "a")) + tar_member(b"b")
    ),
    "a file that is a folder": tar_member(b"a") + tar_member(b"a/b"),
    "a file that is told as a folder": tar_member(b"a") + tar_member(b"a", b"", b"5"),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_what_is_not_safe_to_extract_is_refused(case: str) -> None:
    with pytest.raises(UnsafeContentError):
        contents(tar(UNSAFE[case]))


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (tar_member(b"a", kind=b"S", magic=GNU), "--no-read-sparse"),
        (pax(("GNU.sparse.major", "1")) + tar_member(b"a"), "--no-read-sparse"),
        (tar_member(b"a", b"", b"2", link=b"b"), "--dereference"),
        (tar_member(b"d\\a"), "PowerShell 6"),
        (tar_member(b"Icon\r", b""), r"--exclude=\$'Icon\\r'"),
    ],
)
def test_what_is_refused_says_what_to_do(content: bytes, hint: str) -> None:
    with pytest.raises(UnsafeContentError, match=hint):
        contents(tar(content))


A = tar_member(b"a")
DAMAGED = {
    "nothing at all": (b"", "cut short"),
    "text": (b"x" * 999, "not a tar archive"),
    "less than a block": (b"x" * 99, "cut short"),
    "no end": (A, "cut short"),
    "half an end": (A + bytes(99), "cut short"),
    "a header cut short": (A + A[:100], "cut short"),
    "a file cut short": (A[: BLOCK + 3], "cut short"),
    "padding cut short": (A[:-1], "cut short"),
    "a file after the end": (tar(A) + A, "after the end"),
    "a byte after the end": (tar(A) + b"x", "after the end"),
    "a byte far after the end": (tar(A) + bytes(9000) + b"x", "after the end"),
    "a wrong checksum": (tar(tar_member(b"a", checksum=b"000001\0 ")), "not a tar"),
    "no checksum": (tar(tar_member(b"a", checksum=bytes(8))), "not a tar"),
    "a checksum in decimal": (tar(tar_member(b"a", checksum=b"9999\0   ")), "not a"),
    "another magic": (tar(tar_member(b"a", magic=b"ustar\x0099")), "not known here"),
    "a prefix in GNU tar": (tar(tar_member(b"a", magic=GNU, prefix=b"d")),
                            "in different ways"),
    "a prefix in old tar": (tar(tar_member(b"a", magic=OLD, prefix=b"d")),
                            "in different ways"),
    "an unknown type": (tar(tar_member(b"a", kind=b"Z")), "unknown type"),
    "a part of several": (tar(tar_member(b"a", kind=b"M")), "--multi-volume"),
    "a volume's name": (tar(tar_member(b"a", b"", b"V")), "--label"),
    "a list of files": (tar(tar_member(b"a", kind=b"D")), "--listed-incremental"),
    "a list of long names": (tar(tar_member(b"a", kind=b"N")), "long names"),
    "times in place of a prefix": (
        tar(tar_member(b"a", magic=GNU, prefix=b"14760000000\0" * 2)),
        "--listed-incremental"),
    **{
        f"{number} in the field {field}": (
            tar(tar_member(b"b"), with_field(FIELDS[field][0], NO_NUMBERS[number])),
            "is no number")
        for number in NO_NUMBERS
        for field in FIELDS
    },
    "digits of another base in a field of PAX": (
        tar(with_field(108, b"9999999\0", pax(("mtime", "1"))), A), "is no number"),
    "a size of spaces": (tar(tar_member(b"a", b"", told_size=b" " * 12)),
                         "impossible size"),
    "a size of spaces and NULs": (
        tar(tar_member(b"a", b"", told_size=b" " * 11 + b"\0")), "impossible size"),
    "a folder of old tar that is a file in PAX": (
        tar(pax(("path", "good")), tar_member(b"d/", kind=b"\0")), "folder for others"),
    "a file of old tar that is a folder in PAX": (
        tar(pax(("path", "d/")), tar_member(b"d", b"", b"\0")), "folder for others"),
    "a folder of old tar that is a file in GNU tar": (
        tar(gnu_long(b"good\0"), tar_member(b"d/", kind=b"\0", magic=GNU)),
        "folder for others"),
    "a folder of old tar by its prefix that is a file": (
        tar(pax(("path", "good")), tar_member(b"d/", kind=b"\0", prefix=b"e")),
        "folder for others"),
    "a folder with content": (tar(tar_member(b"d/", kind=b"5")), "content of its own"),
    "a NUL in a name": (tar(tar_member(b"a\0b")), "NUL"),
    "a NUL in a prefix": (tar(tar_member(b"a", prefix=b"d\0e")), "NUL"),
    "a NUL in a PAX path": (tar(pax(("path", "a\0b")), A), "NUL"),
    "a NUL in a GNU path": (tar(gnu_long(b"a\0b"), A), "NUL"),
    "two NULs after a GNU path": (tar(gnu_long(b"a\0\0"), A), "NUL"),
    "an empty PAX path": (tar(pax(("path", "")), A), "empty"),
    "an empty GNU path": (tar(gnu_long(b""), A), "empty"),
    "a path that is not UTF-8": (tar(tar_member(b"\xff")), "not UTF-8"),
    "a PAX path that is not UTF-8": (tar(pax(b"9 path=\xff\n"), A), "not UTF-8"),
    "two PAX paths": (tar(pax(("path", "a"), ("path", "b")), A), "twice"),
    "two PAX sizes": (tar(pax(("size", "7"), ("size", "7")), A), "twice"),
    "two PAX headers of a path": (
        tar(pax(("path", "a")), pax(("path", "b")), A), "two extended headers"),
    "two PAX headers of different things": (
        tar(pax(("path", "b")), pax(("mtime", "1")), A), "two extended headers"),
    "a second PAX header that is empty": (
        tar(pax(("size", "7")), pax(), A), "two extended headers"),
    "two PAX headers with another between": (
        tar(pax(("path", "b")), pax(kind=b"g"), gnu_long(b"x", b"K"), pax(), A),
        "two extended headers"),
    "two GNU long names": (tar(gnu_long(b"a"), gnu_long(b"a"), A), "two extended"),
    "two GNU long links": (
        tar(gnu_long(b"x", b"K"), gnu_long(b"x", b"K"), A), "two extended headers"),
    "two PAX headers of a size": (
        tar(pax(("size", "7")), pax(("size", "7")), A), "two extended headers"),
    "a GNU and a PAX path": (tar(gnu_long(b"a"), pax(("path", "b")), A), "two paths"),
    "one path for all": (tar(pax(("path", "a"), kind=b"g"), A), "to all its files"),
    "one size for all": (tar(pax(("size", "7"), kind=b"g"), A), "to all its files"),
    "a PAX header at the end": (tar(pax(("mtime", "1"))), "after an extended header"),
    "a GNU header at the end": (tar(gnu_long(b"a")), "after an extended header"),
    "a negative PAX size": (tar(pax(("size", "-7")), A), "impossible size"),
    "a PAX size that is no number": (tar(pax(("size", "7_0")), A), "impossible size"),
    "a PAX size out of bounds": (tar(pax(("size", str(2**63))), A), "impossible size"),
    "a PAX size beyond the end": (tar(pax(("size", "99999")), A), "cut short"),
    "a negative size": (tar(tar_member(b"a", told_size=b"-0000000007\0")),
                        "impossible size"),
    "a negative size in base 256": (tar(tar_member(b"a", told_size=b"\xff" * 12)),
                                    "impossible size"),
    "a size in base 256 out of bounds": (
        tar(tar_member(b"a", told_size=b"\x80\xff" + bytes(10))), "impossible size"),
    "a size with something after it": (
        tar(tar_member(b"a", told_size=b"7\0         9")), "impossible size"),
    "a size beyond the end": (tar(tar_header(b"a", 9999)), "cut short"),
    "a PAX header of more than 1 MiB": (
        tar(tar_header(b"x", (1 << 20) + 1, b"x"), A), "more than 1 MiB"),
    "a PAX header beyond the end": (tar(tar_header(b"x", 9999, b"x")), "cut short"),
    **{
        f"a PAX header of {record!r}": (tar(pax(record), A), "malformed")
        for record in (
            b"x", b"0 ", b"3 \n", b"9 path=a\0", b"99 path=a\n", b"7 path\n",
            b"4 =\n", b" path=a\n", b"+9 path=a\n", b"9_0 path=a\n",
            b"000000009 path=a\n", b"9 path=a\n\0", b"1 path=a\n", b"2 \n",
            b"9" * 19 + b" path=a\n", b"9path=a\n", b"\xb2 path=a\n", b"-9 path=a\n",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_damaged_or_ambiguous_is_refused(case: str) -> None:
    content, reason = DAMAGED[case]
    with pytest.raises(ValueError, match=reason):
        contents(content)


@pytest.mark.parametrize(
    ("content", "limits", "setting"),
    [
        (tar(A, tar_member(b"b")), Limits(archive_files=1), "ARCHIVE_FILES"),
        (tar(pax(kind=b"g") * 12, A), Limits(archive_files=2), "ARCHIVE_FILES"),
        (tar(4 * tar_member(b"d", b"", b"5") + A), Limits(archive_files=0), "FILES"),
        (tar(A), Limits(unpacked_bytes=6), "UNPACKED_BYTES"),
        (tar(tar_header(b"a", 8**11 - 1)), Limits(unpacked_bytes=99), "UNPACKED"),
        (tar(pax(("path", "d/" * 500 + "a")), A), Limits(path_bytes=99), "PATH_BYTES"),
        (tar(tar_member(b"d/" * 32 + b"a")), Limits(), "PATH_DEPTH"),
    ],
)
def test_each_limit_is_named_in_its_error(
    content: bytes, limits: Limits, setting: str
) -> None:
    with pytest.raises(LimitExceededError, match=setting):
        contents(content, limits)


# gzip


def member(content: bytes, flags: int = 0, header: bytes = b"") -> bytes:
    packed = gzip.compress(content, mtime=0)
    return packed[:3] + bytes([flags]) + packed[4:10] + header + packed[10:]


def with_crc(flags: int, header: bytes = b"") -> bytes:
    whole = member(b"abc", flags | 2, header)
    told = zlib.crc32(whole[: 10 + len(header)]) & 0xFFFF
    return member(b"abc", flags | 2, header + told.to_bytes(2, "little"))


ABC = member(b"abc")
NOISE = random.Random(1).randbytes(300)


@pytest.mark.parametrize(
    ("packed", "content"),
    [
        (member(b""), b""),
        (ABC, b"abc"),
        (ABC + ABC + member(b"") + ABC, b"abcabcabc"),
        (member(b"abc", 1), b"abc"),
        (member(b"abc", 4, b"\2\0xx"), b"abc"),
        (member(b"abc", 4, b"\xff\xff" + bytes(65535)), b"abc"),
        (member(b"abc", 8, b"name\0"), b"abc"),
        (member(b"abc", 16, b"\0"), b"abc"),
        (member(b"abc", 28, b"\2\0\0\0" + b"n" * 9000 + b"\0c\0"), b"abc"),
        (with_crc(0), b"abc"),
        (with_crc(8, b"name\0"), b"abc"),
        (member(NOISE) * 2000, NOISE * 2000),
    ],
)
def test_gzip_files_of_all_forms_are_read(packed: bytes, content: bytes) -> None:
    assert gunzip(packed) == content


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (b"", "begins as gzip does"),
        (b"PK\3\4", "begins as gzip does"),
        (b"\x1f\x8b\x08", "header is damaged"),
        (b"\x1f\x8b\x07" + ABC[3:], "header is damaged"),
        (member(b"abc", 32), "header is damaged"),
        (member(b"abc", 128), "header is damaged"),
        (member(b"abc", 2, b"\1\1"), "header is damaged"),
        (ABC[:10], "cut short"),
        (ABC[:9], "damaged"),
        (ABC[:12], "cut short"),
        (ABC[:-8], "cut short"),
        (ABC[:-1], "cut short"),
        (ABC[:10] + b"\xff" * 20, "damaged"),
        (ABC[:-8] + bytes(4) + ABC[-4:], "CRC or length"),
        (ABC[:-4] + bytes(4), "CRC or length"),
        (ABC + b"garbage", "bytes after"),
        (ABC + b"\0", "bytes after"),
        (ABC + bytes(512), "bytes after"),
        (ABC + b"\x1f", "bytes after"),
        (ABC + ABC[:-1], "cut short"),
        (ABC + ABC[:5], "damaged"),
        (ABC[:3] + b"\4" + ABC[4:10] + b"\xff\xff", "cut short"),
        (ABC[:3] + b"\x08" + ABC[4:10] + b"name", "cut short"),
        (member(b"abc", 8, b"n" * LONGEST_HEADER + b"\0"), "too long"),
        (member(b"") * 2000, "too many, too small"),
    ],
)
def test_damaged_gzip_files_are_refused(packed: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        gunzip(packed)


@pytest.mark.parametrize(
    ("limits", "setting"),
    [(Limits(), "UNPACK_RATIO"), (Limits(unpacked_bytes=9999), "UNPACKED_BYTES")],
)
def test_bombs_stop_at_the_limit(limits: Limits, setting: str) -> None:
    packed = gzip.compress(bytes(64 << 20))
    given: list[int] = []
    source = Source(io.BytesIO(packed), len(packed))
    with pytest.raises(LimitExceededError, match=setting):
        given.extend(len(piece) for piece in unpack_gzip(source, limits))
    assert sum(given) <= (16 << 20) + LIMITS.unpack_ratio * len(packed)


@given(
    st.lists(st.tuples(st.binary(max_size=200), st.integers(1, 400)), max_size=4),
    st.binary(max_size=12),
)
def test_gzip_ends_where_its_last_member_ends(
    members: list[tuple[bytes, int]], rest: bytes
) -> None:
    content = [part * times for part, times in members] or [b""]
    packed = b"".join(gzip.compress(part) for part in content)
    assert gunzip(packed) == b"".join(content)
    if rest and not rest.startswith(b"\x1f\x8b"):
        with pytest.raises(ValueError, match=r"bytes after|damaged"):
            gunzip(packed + rest)


def test_gzip_ends_anywhere_in_what_is_read_at_once() -> None:
    body = random.Random(1).randbytes(1 << 14)
    for size in range((1 << 14) - 60, (1 << 14) + 9):
        packed = gzip.compress(body[:size], 1)
        assert gunzip(packed + packed) == 2 * body[:size]


# Both, as other programs write them.

NAMES = st.text(
    st.characters(blacklist_categories=["C", "Z"], blacklist_characters="/\\:"),
    min_size=1,
    max_size=60,
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
TREES = st.dictionaries(PATHS, st.binary(max_size=1100), max_size=6).filter(
    lambda tree: not any(p.startswith(f"{q}/") for p in tree for q in tree)
)


@given(TREES, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_archives_of_tarfile_are_read_alike(tree: dict[str, bytes], form: int) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for path, content in tree.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert contents(file.getvalue()) == tree


BASE = tar(
    tar_member(b"d/", b"", b"5"),
    tar_member(b"d/a", b"abc"),
    pax(("path", "d/ü"), ("mtime", "1.5")),
    tar_member(b"d/u"),
    gnu_long(b"d/b\0"),
    tar_member(b"d/b", b"x" * 600, magic=GNU),
)


@given(st.data())
def test_any_bytes_are_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(BASE)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(
            st.integers(0, 255)
        )
    for at in range(0, len(content) - BLOCK, BLOCK):  # right checksums, often
        if data.draw(st.booleans()):
            content[at + 148 : at + 156] = b" " * 8
            content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + BLOCK])
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    try:
        contents(bytes(content[:cut]))
    except (ValueError, UnsafeContentError, LimitExceededError):
        return


@given(st.binary(max_size=60), st.integers(0, 300), st.integers(0, 255))
def test_any_bytes_after_a_gzip_header_are_read_or_refused(
    rest: bytes, at: int, value: int
) -> None:
    packed = bytearray(tar_gz(A) + rest)
    packed[at % len(packed)] = value
    try:
        gunzip(bytes(packed))
    except (ValueError, LimitExceededError):
        return
