"""What hostile files are put together from, on top of the builders of each format."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from tests.fakes import archive_files, pt_files
from tests.fakes.archive_files import Entry, zip_file
from tests.fakes.onnx_files import varint

MISMATCH = (422, "format_mismatch")
UNSAFE = (422, "unsafe_content")
TOO_LARGE = (413, "too_large")

Content = bytes | Callable[[], bytes]
Case = tuple[str, Content, tuple[int, str], str]
"""A file's extension, its content, how it is answered, and a word of the answer."""

CRASHED = "looking into it failed"
"""What is said when the process that looked into a file died, or had no answer."""

COMMAND = pt_files.text("touch /tmp/harm")
LAST_32 = 2**32 - 1


# Pickles: a name may have dots, which ``pt_files`` takes for the module's.


def imported(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def imported_by_stack(module: str, name: str) -> bytes:
    return pt_files.text(module) + pt_files.text(name) + b"\x93"


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + pt_files.row(*arguments or [COMMAND]) + b"R"


def calling(module: str, name: str) -> bytes:
    """A pickle that calls a function with a command."""
    return pt_files.pickled(called(imported(module, name)))


WEIGHTS = pt_files.pickled(pt_files.table(w=pt_files.tensor()))


def torch_zip(
    main: bytes = WEIGHTS, members: Mapping[str, bytes] | None = None
) -> bytes:
    """A file as ``torch.save`` writes it, around any bytes as its main pickle."""
    return pt_files.torch_zip(members={"data.pkl": main} | dict(members or {}))


def torch_legacy(value: bytes) -> bytes:
    """A file as ``torch.save`` wrote it before version 1.6, without tensors."""
    return pt_files.legacy(value, {})


# Archives.


def wide(*values: int) -> bytes:
    """A zip64 extra field."""
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)


def overlapping() -> bytes:
    """Two members, the second of which lies within the first, as in a better bomb."""
    inner = zip_file(Entry("b", b"inner"))
    header_and_content = inner[: inner.index(b"PK\1\2")]
    outer = zip_file(Entry("a", header_and_content))
    directory_at = outer.index(b"PK\1\2")
    at = directory_at - len(header_and_content)
    moved = zip_file(Entry("b", b"inner", central={"header_at": at}))
    directory = outer[directory_at:-22] + moved[moved.index(b"PK\1\2") : -22]
    end = (2, 2, len(directory), directory_at, 0)
    return (
        outer[:directory_at]
        + directory
        + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *end)
    )


def tar_member(
    path: str,
    content: bytes = b"",
    kind: bytes = b"0",
    *,
    size: int | None = None,
    **fields: bytes,
) -> bytes:
    told = len(content) if size is None else size
    header = archive_files.tar_header(path.encode(), told, kind, **fields)
    return header + archive_files.padded(content)


def gnu_long(path: bytes) -> bytes:
    """What GNU tar writes before a file whose path is too long for a header."""
    return tar_member("././@LongLink", path + b"\0", b"L", magic=b"ustar  \0")


# Messages within messages: to put each into the next would copy all of them each time.


def nested(
    depth: int, opening: Callable[[int], bytes], innermost: bytes = b""
) -> bytes:
    """Messages within each other; ``opening`` gives what is before one so long."""
    pieces, length = [innermost], len(innermost)
    for _ in range(depth):
        start = opening(length)
        pieces.append(start)
        length += len(start)
    return b"".join(reversed(pieces))


def within(*numbers: int) -> Callable[[int], bytes]:
    """What begins protobuf fields of these numbers, the last innermost."""

    def opening(length: int) -> bytes:
        start = b""
        for number in reversed(numbers):
            start = varint(number << 3 | 2) + varint(length + len(start)) + start
        return start

    return opening
