"""Hostile datasets: what each is, how it is answered, and what the answer says."""

from __future__ import annotations

import gzip
import struct
import zlib

from tests.fakes import hostile_files as made
from tests.fakes.archive_files import (
    DESCRIBED_LATER,
    UTF_8,
    Entry,
    extra,
    pax,
    tar_gz,
    unicode_path,
    zip64_end,
    zip_file,
)
from tests.fakes.hostile_files import (
    MISMATCH,
    TOO_LARGE,
    UNSAFE,
    Case,
    Content,
    tar_member,
)
from tests.test_gateway.running import MIB

FILES = [Entry("train/cat/1.jpg"), Entry("train/dog/ü.jpg", b"dog" * 99, 8)]

# Archives.

LINK, DEVICE = 0o120777, 0o020666
TWO_ENDS = b"a" + struct.pack("<4s3I", b"PK\7\x08", zlib.crc32(b"a"), 1, 1) + bytes(9)


def zip_cases() -> dict[str, Case]:
    paths = {
        "../slip.txt": UNSAFE,
        "a/../../slip.txt": UNSAFE,
        "..": UNSAFE,
        "/etc/passwd": UNSAFE,
        "//host/share": UNSAFE,
        "C:/autoexec.bat": UNSAFE,
        "c:relative": UNSAFE,
        "..\\slip.txt": UNSAFE,
        "a\\b": UNSAFE,
        "a//b": UNSAFE,
        ".": UNSAFE,
        "./../a": UNSAFE,
        ".//a": UNSAFE,
        "a/.. /b": UNSAFE,
        "a\nb": UNSAFE,
        "a\0b": UNSAFE,
        "": UNSAFE,
        "x" * 300: UNSAFE,
    }
    cases: dict[str, Case] = {
        f"zip: the path {path[:20]!r}": ("zip", zip_file(Entry(path)), expected, "")
        for path, expected in paths.items()
    }
    a, b = Entry("a", b"a" * 50), Entry("b", b"b" * 50, 8)
    spoilt: dict[str, tuple[Content, tuple[int, str], str]] = {
        "a symbolic link": (zip_file(Entry("a", b"/etc", mode=LINK)), UNSAFE, "link"),
        "a device": (zip_file(Entry("a", b"", mode=DEVICE)), UNSAFE, "device"),
        "one name twice": (zip_file(a, a), UNSAFE, "twice"),
        "a file that is a folder": (zip_file(a, Entry("a/b")), UNSAFE, "folder"),
        "members that overlap": (made.overlapping(), MISMATCH, "two"),
        "two entries of one member": (
            zip_file(a, Entry("b", b"", central={"header_at": 0})), MISMATCH, "two",
        ),
        "an encrypted member": (zip_file(Entry("a", flags=1)), MISMATCH, "encrypted"),
        "a strongly encrypted one": (zip_file(Entry("a", flags=65)), MISMATCH, "crypt"),
        "a hidden directory": (zip_file(Entry("a", flags=1 << 13)), MISMATCH, "crypt"),
        "an unknown method": (zip_file(Entry("a", method=14)), MISMATCH, "method 14"),
        "a size too large": (
            zip_file(Entry("a", central={"unpacked": 9}, local={"unpacked": 9})),
            MISMATCH, "",
        ),
        "a deflated size too small": (
            zip_file(Entry("a", bytes(50), 8, central={"unpacked": 9},
                          local={"unpacked": 9})), MISMATCH, "length",
        ),
        "a deflated size too large": (
            zip_file(Entry("a", bytes(50), 8, central={"unpacked": 99},
                          local={"unpacked": 99})), MISMATCH, "length",
        ),
        "a wrong CRC": (
            zip_file(Entry("a", central={"crc": 1}, local={"crc": 1})), MISMATCH, "CRC",
        ),
        "a deflate stream that is none": (
            zip_file(Entry("a", b"\xff" * 9, 0, central={"method": 8, "unpacked": 8},
                          local={"method": 8, "unpacked": 8})), MISMATCH, "",
        ),
        "another name in the header": (
            zip_file(Entry("a", local={"name": b"b"})), MISMATCH, "contradicts",
        ),
        "another size in the header": (
            zip_file(Entry("a", local={"packed": 6})), MISMATCH, "contradicts",
        ),
        "another method in the header": (
            zip_file(Entry("a", local={"method": 8})), MISMATCH, "contradicts",
        ),
        "other flags in the header": (
            zip_file(Entry("a", local={"flags": 8})), MISMATCH, "contradicts",
        ),
        "a name that is not UTF-8": (
            zip_file(Entry("a", central={"name": b"\xff", "flags": 1 << 11},
                          local={"name": b"\xff", "flags": 1 << 11})),
            MISMATCH, "UTF-8",
        ),
        "another name in Unicode": (
            zip_file(Entry("a", central={"extra": unicode_path("../b", b"a")})),
            MISMATCH, "one name for some",
        ),
        "a program before it": (zip_file(a, prefix=b"MZ" + bytes(98)), MISMATCH, ""),
        "a name in UTF-8 or not, another's": (
            zip_file(Entry("é", flags=0), Entry("é".encode().decode("cp437"))),
            UNSAFE, "twice",
        ),
        "a name in two normal forms": (
            zip_file(Entry("\u00e9"), Entry("e\u0301")), UNSAFE, "twice",
        ),
        "a link to bsdtar alone": (
            zip_file(Entry("a", b"/etc", local={"extra": extra(
                0x6C78, b"\5\x1e\3" + (LINK << 16).to_bytes(4, "little"))})),
            MISMATCH, "only some programs",
        ),
        "an end within a file, its size after it": (
            zip_file(Entry("a", TWO_ENDS, flags=UTF_8 | DESCRIBED_LATER,
                           descriptor=struct.pack("<3I", zlib.crc32(TWO_ENDS),
                                                  len(TWO_ENDS), len(TWO_ENDS)))),
            MISMATCH, "look like its end",
        ),
        "bytes between": (
            zip_file(Entry("a", descriptor=b"xx"), b), MISMATCH, "no file",
        ),
        "bytes behind the directory": (
            zip_file(a)[:-22] + b"xx" + zip_file(a)[-22:], MISMATCH, "added",
        ),
        "bytes behind the end": (zip_file(a) + b"x", MISMATCH, "end"),
        "an archive in its comment": (
            zip_file(a, comment=zip_file(b)), MISMATCH, "two end records",
        ),
        "an archive in its comment, not to the end": (
            zip_file(a, comment=zip_file(b) + b"x"), MISMATCH, "not at the end",
        ),
        "another disk": (zip_file(a, disk=1), MISMATCH, "several"),
        "10,000,000 entries": (
            zip64_end(zip_file(a), here=10**7, entries=10**7), TOO_LARGE, "FILES",
        ),
        "10,000,000 entries in a huge directory": (
            zip64_end(
                zip_file(a), here=10**7, entries=10**7, length=46 * 10**7
            ),
            MISMATCH, "",
        ),
        "65,535 entries": (
            zip_file(a, here=0xFFFF, entries=0xFFFF), MISMATCH, "too small",
        ),
        "more entries than told": (
            zip_file(a, b, here=1, entries=1), MISMATCH, "more than",
        ),
        "a zip64 record elsewhere": (
            zip64_end(zip_file(a), locator_at=0), MISMATCH, "zip64",
        ),
        "a zip64 record beyond": (
            zip64_end(zip_file(a), locator_at=2**64 - 1), MISMATCH, "zip64",
        ),
        "a zip64 start beyond": (zip64_end(zip_file(a), start=2**63), MISMATCH, ""),
        "a zip64 length beyond": (
            zip64_end(zip_file(a), length=2**64 - 1), MISMATCH, "",
        ),
        "a zip64 size beyond": (
            zip_file(Entry("a", central={
                "unpacked": made.LAST_32, "packed": made.LAST_32,
                "extra": made.wide(2**64 - 1, 2**64 - 1),
            })),
            MISMATCH, "impossible",
        ),
        "a zip64 size of 8 EiB": (
            zip_file(Entry("a", b"x" * 9, 8,
                          central={"unpacked": made.LAST_32,
                                 "extra": made.wide(2**63 - 1)})),
            TOO_LARGE, "VISION_O3_MAX_UNPACKED_BYTES",
        ),
        "a zip64 field that is missing": (
            zip_file(Entry("a", central={"unpacked": made.LAST_32})), MISMATCH, "zip64",
        ),
        "two zip64 fields": (
            zip_file(Entry("a", central={"extra": made.wide(7) * 2})), MISMATCH, "two",
        ),
        "a member as 42.zip has": (
            lambda: zip_file(Entry("0.dll", bytes(64 * MIB), 8)), TOO_LARGE, "RATIO",
        ),
        "many that are small in ratio each": (
            lambda: zip_file(*(Entry(str(n), bytes(8 * MIB), 8) for n in range(3))),
            TOO_LARGE, "RATIO",
        ),
        "a number of 64 MiB in a JSON file": (
            lambda: zip_file(Entry("a.json", b"[" + b"1" * (64 * MIB) + b"]", 8)),
            TOO_LARGE, "RATIO",
        ),
    }  # fmt: skip
    return cases | {f"zip: {kind}": ("zip", *case) for kind, case in spoilt.items()}


def tar_cases() -> dict[str, Case]:
    a = tar_member("a", b"a" * 600)
    links = {
        "a symbolic link out": tar_member("a", kind=b"2", link=b"/etc/passwd"),
        "a symbolic link within": tar_member("b", kind=b"2", link=b"a"),
        "a hard link out": tar_member("a", kind=b"1", link=b"../../etc/passwd"),
        "a hard link within": a + tar_member("b", kind=b"1", link=b"a"),
        "a character device": tar_member("a", kind=b"3"),
        "a block device": tar_member("a", kind=b"4"),
        "a FIFO": tar_member("a", kind=b"6"),
        "a sparse file of GNU tar": tar_member("a", kind=b"S", magic=b"ustar  \0"),
        "a sparse file in pax": (
            pax(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"),
                ("GNU.sparse.name", "b"), ("GNU.sparse.realsize", "9999999999")) + a
        ),
        "an absolute path": tar_member("/etc/passwd"),
        "a path that slips out": tar_member("../a"),
        "a path that slips out further": tar_member("a/../../b"),
        "a drive letter": tar_member("C:/a"),
        "a backslash": tar_member("..\\a"),
        "a long path of GNU tar that slips out": made.gnu_long(b"../" * 99 + b"a") + a,
        "a path in pax that slips out": pax(("path", "../a")) + a,
        "a link in pax": (
            pax(("linkpath", "/etc")) + tar_member("l", kind=b"2", link=b"x")
        ),
        "one name twice": a + a,
        "a file that is a folder": a + tar_member("a/b"),
    }  # fmt: skip
    cases: dict[str, Case] = {
        f"tar: {kind}": ("tar.gz", tar_gz(content), UNSAFE, "")
        for kind, content in links.items()
    }
    damaged = {
        "a NUL in pax": tar_gz(pax(("path", "a\0../b")) + a),
        "a NUL in a long path": tar_gz(made.gnu_long(b"a\0../b") + a),
        "a wrong checksum": tar_gz(tar_member("a", checksum=b"000001\0 ")),
        "a size beyond the end": tar_gz(tar_member("a", size=8**10)),
        "a negative size": tar_gz(
            tar_member("a").replace(
                b"00000000000\0" * 2, b"\xff" * 12 + b"0" * 11 + b"\0"
            )
        ),
        "a size in pax beyond the end": tar_gz(pax(("size", "9999999")) + a),
        "a size in pax that is none": tar_gz(pax(("size", "-1")) + a),
        "a record in pax that lies": tar_gz(tar_member("x", b"99 path=a\n", b"x") + a),
        "a long path without its file": tar_gz(made.gnu_long(b"a")),
        "a folder of old tar, a file in pax": tar_gz(
            pax(("path", "b")) + tar_member("d/", kind=b"\0")
        ),
        "two headers in pax for a file": tar_gz(
            pax(("path", "b")) + pax(("mtime", "1")) + a
        ),
        "no end": tar_gz(a, end=b""),
        "bytes behind its end": tar_gz(a, end=bytes(1024) + b"x" * 512),
        "trailing garbage": tar_gz(a) + b"garbage",
        "trailing zeros": tar_gz(a) + bytes(512),
        "a second gzip member that is cut": tar_gz(a) + tar_gz(a)[:20],
        "a wrong CRC": tar_gz(a)[:-8] + bytes(4) + tar_gz(a)[-4:],
        "a wrong length": tar_gz(a)[:-4] + bytes(4),
        "no tar archive": gzip.compress(b"text " * 999),
        "a tar archive that is not packed": a + bytes(1024),
        "a ZIP archive": gzip.compress(zip_file(*FILES)),
        "gzip within gzip": gzip.compress(tar_gz(a)),
    }
    for kind, content in damaged.items():
        cases[f"tar: {kind}"] = ("tar.gz", content, MISMATCH, "")
    huge = tar_gz(pax(("comment", "x" * (2 * MIB))) + a)
    cases["tar: a header of 2 MiB in pax"] = ("tar.gz", huge, MISMATCH, "header")
    size = tar_gz(pax(("size", "9" * 18)) + a)
    cases["tar: a size of 1 EB in pax"] = ("tar.gz", size, TOO_LARGE, "UNPACKED_BYTES")
    cases["tar: a bomb"] = (
        "tar.gz", lambda: tar_gz(tar_member("a", bytes(64 * MIB))), TOO_LARGE, "RATIO",
    )  # fmt: skip
    return cases


# Documents.


def json_cases() -> dict[str, Case]:
    deep = 100_000
    cases: dict[str, tuple[Content, tuple[int, str], str]] = {
        "arrays 100,000 deep": (b"[" * deep + b"]" * deep, TOO_LARGE, "JSON_DEPTH"),
        "objects 100,000 deep": (b'{"a":' * deep + b"1" + b"}" * deep, TOO_LARGE, ""),
        "arrays never closed": (b"[" * deep, TOO_LARGE, "JSON_DEPTH"),
        "a key twice": (b'{"images": [], "images": [1]}', MISMATCH, "images"),
        "a key twice, escaped": (b'{"images": [], "\\u0069mages": []}', MISMATCH, ""),
        "NaN": (b'{"a": NaN}', MISMATCH, ""),
        "Infinity": (b"[-Infinity]", MISMATCH, ""),
        "invalid UTF-8": (b'["\xff"]', MISMATCH, "UTF-8"),
        "an overlong encoding": (b'["\xc0\xaf"]', MISMATCH, "UTF-8"),
        "an encoded surrogate": (b'["\xed\xa0\x80"]', MISMATCH, "UTF-8"),
        "UTF-16": ('["a"]'.encode("utf-16"), MISMATCH, ""),
        "a second document": (b"{} {}", MISMATCH, ""),
        "a comment": (b"[1] // one", MISMATCH, ""),
        "a leading zero": (b"[01]", MISMATCH, ""),
        "a comma at the end": (b"[1,]", MISMATCH, ""),
        "a control character": (b'["a\nb"]', MISMATCH, ""),
        "a text alone": (b'"text"', MISMATCH, ""),
        "lines of documents": (b'{"a":1}\n{"a":2}\n', MISMATCH, ""),
        "a number of 64 MB": (lambda: b"[" + b"1" * 64_000_000 + b"]", TOO_LARGE, ""),
        "a text of 64 MB": (lambda: b'["' + b"a" * 64_000_000 + b'"]', TOO_LARGE, ""),
    }
    return {f"json: {kind}": ("json", *case) for kind, case in cases.items()}


ENTITIES = b"".join(
    b'<!ENTITY l%d "%s">' % (n, b"&l%d;" % (n - 1) * 10) for n in range(1, 10)
)


def xml_cases() -> dict[str, Case]:
    deep = 100_000
    cases = {
        "a billion laughs": (
            b'<!DOCTYPE a [<!ENTITY l0 "lol">' + ENTITIES + b"]><a>&l9;</a>",
            UNSAFE, "DOCTYPE",
        ),
        "quadratic expansion": (
            b'<!DOCTYPE a [<!ENTITY b "' + b"x" * 50_000 + b'">]><a>' + b"&b;" * 50_000
            + b"</a>", UNSAFE, "",
        ),
        "an external entity": (
            b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
            UNSAFE, "",
        ),
        "an external DTD": (
            b'<!DOCTYPE a SYSTEM "http://127.0.0.1/a.dtd"><a/>', UNSAFE, "DOCTYPE",
        ),
        "a parameter entity": (
            b'<!DOCTYPE a [<!ENTITY % b SYSTEM "file:///etc/passwd"> %b;]><a/>',
            UNSAFE, "",
        ),
        "a processing instruction": (
            b'<?xml-stylesheet href="http://127.0.0.1/"?><a/>', UNSAFE, "instruction",
        ),
        "an entity that is unknown": (b"<a>&b;</a>", MISMATCH, ""),
        "elements 100,000 deep": (
            b"<a>" * deep + b"</a>" * deep, TOO_LARGE, "XML_DEPTH",
        ),
        "elements never closed": (b"<a>" * deep, TOO_LARGE, "XML_DEPTH"),
        "elements closed wrongly": (b"<a><b></a></b>", MISMATCH, ""),
        "an attribute twice": (b'<a b="1" b="2"/>', MISMATCH, ""),
        "two roots": (b"<a/><b/>", MISMATCH, ""),
        "an encoding that runs code": (
            b'<?xml version="1.0" encoding="zip"?><a/>', MISMATCH, "",
        ),
        "UTF-7": (b'<?xml version="1.0" encoding="utf-7"?><a/>', MISMATCH, ""),
        "invalid UTF-8": (b"<a>\xff</a>", MISMATCH, ""),
        "a NUL": (b"<a>\0</a>", MISMATCH, ""),
        "a web page": (b"<!DOCTYPE html><html></html>", MISMATCH, "HTML"),
        "a tag of 5 MiB": (b"<a b='" + b"x" * (5 * MIB) + b"'/>", TOO_LARGE, ""),
    }  # fmt: skip
    return {f"xml: {kind}": ("xml", *case) for kind, case in cases.items()}
