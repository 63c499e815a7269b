"""Check a file's content against its declared format, and read facts from its header.

Every check reads a bounded number of bytes, in memory that does not grow with the
file. No pickle, no code and no external file is ever opened. These are checks of
headers: they tell what a file is, not that a framework can load it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

from vision_o3.errors import FormatError
from vision_o3.formats import hdf5, onnx, text
from vision_o3.formats.archives import ZIP_MEMBER, check_tar_gz, zip_names
from vision_o3.formats.magic import AS_DECLARED, HEAD, describe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODEL_FORMATS = ("pt", "onnx", "tflite", "h5")
DATASET_FORMATS = ("zip", "tar.gz", "json", "xml")

_EXTENSIONS = {
    **{name: name for name in MODEL_FORMATS + DATASET_FORMATS},
    "pth": "pt",
    "hdf5": "h5",
    "tgz": "tar.gz",
}
_TORCH_MAGIC = re.compile(
    rb"\x80[\x02-\x05](\x95.{8})?"  # protocol, and from 4 on a frame
    rb"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\.",
    re.DOTALL,
)
"""How ``torch.save`` began files before 1.6: a pickle of 0x1950a86a20f9469cfc6c."""
_TORCH_PICKLE = re.compile(rb"[^/]+/data\.pkl")
_TORCHSCRIPT = re.compile(rb"[^/]+/(constants\.pkl|code/.*)", re.DOTALL)
_MOST_MEMBERS = 100_000
"""Members of a PyTorch file that are looked at."""
_XML = re.compile(r"<(\?xml\s|!--|!DOCTYPE\s|[^\W\d]|:)")
_HTML = re.compile(r"<(!DOCTYPE\s+html|html)\b", re.IGNORECASE)
_TFLITE_LEAST = 12
"""Bytes: root offset, identifier, one table."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a file is: its format, by extension, and facts read from its header."""

    file_format: str
    facts: dict[str, Any]


def format_of_filename(filename: str) -> str | None:
    """Return the format that a file's extension names, or ``None``."""
    parts = filename.lower().split(".")[1:]
    for start in range(len(parts)):
        found = _EXTENSIONS.get(".".join(parts[start:]))
        if found is not None:
            return found
    return None


def inspect(path: Path, declared: str) -> Inspection:
    """Return what a file of a declared format is, if its content is that.

    Raises:
        FormatError: The content is something else, which the message names.
    """
    check = _CHECKS.get(declared)
    if check is None:
        raise FormatError(
            f"{declared!r} is not a known format. Known: {', '.join(_CHECKS)}.",
            declared=declared,
        )
    with path.open("rb") as file:
        head = file.read(HEAD)
        size = os.fstat(file.fileno()).st_size
        try:
            facts = check(head, size, file)
        except ValueError as error:
            detected = describe(head, file, size)
            raise FormatError(
                _mismatch(declared, detected, str(error)),
                declared=declared,
                detected=detected,
            ) from error
    return Inspection(declared, facts)


def _mismatch(declared: str, detected: str, reason: str) -> str:
    if detected in AS_DECLARED.get(declared, ()):
        return (
            f"The file was declared as .{declared} and is {detected}, but not a good "
            f"one: {reason}. Upload the whole, right file."
        )
    return (
        f"The file was declared as .{declared}, but it is {detected}: {reason}. "
        "Upload the right file, or declare what it is."
    )


def _pt(head: bytes, size: int, file: BinaryIO) -> dict[str, Any]:
    if _TORCH_MAGIC.match(head):
        return {"container": "legacy"}
    if not head.startswith(ZIP_MEMBER):
        raise ValueError("a PyTorch file is a zip by torch.save or its older form")
    has_pickle = has_code = False
    for name in islice(zip_names(file, size), _MOST_MEMBERS):
        has_pickle = has_pickle or _TORCH_PICKLE.fullmatch(name) is not None
        has_code = has_code or _TORCHSCRIPT.fullmatch(name) is not None
    if not has_pickle and not has_code:
        raise ValueError("it has no member data.pkl, which a PyTorch file has")
    return {"container": "zip", "torchscript": has_code}


def _onnx(_: bytes, size: int, file: BinaryIO) -> dict[str, Any]:
    return onnx.read_header(file, size)


def _tflite(head: bytes, size: int, _: BinaryIO) -> dict[str, Any]:
    if head[4:8] != b"TFL3":
        raise ValueError("a TFLite model has the identifier TFL3 at byte 4")
    root = int.from_bytes(head[:4], "little")
    if size < _TFLITE_LEAST or not _TFLITE_LEAST - 4 <= root <= size - 4:
        raise ValueError("its root table lies outside the file")
    return {"schema": "TFL3"}


def _h5(_: bytes, size: int, file: BinaryIO) -> dict[str, Any]:
    return {"superblock_version": hdf5.superblock_version(file, size)}


def _zip(_: bytes, size: int, file: BinaryIO) -> dict[str, Any]:
    next(zip_names(file, size), None)
    return {}


def _tar_gz(_: bytes, __: int, file: BinaryIO) -> dict[str, Any]:
    check_tar_gz(file)
    return {}


def _json(head: bytes, size: int, _: BinaryIO) -> dict[str, Any]:
    if not text.utf8(head, size).lstrip(" \t\r\n").startswith(("{", "[")):
        raise ValueError("a JSON dataset begins with { or [")
    return {}


def _xml(head: bytes, _: int, __: BinaryIO) -> dict[str, Any]:
    # XML may state an encoding of its own.
    start = text.in_any_encoding(head).lstrip(" \t\r\n")
    if not _XML.match(start):
        raise ValueError("an XML dataset begins with <?xml or its root element")
    if _HTML.match(start):
        raise ValueError("it is HTML")
    return {}


_CHECKS: dict[str, Callable[[bytes, int, BinaryIO], dict[str, Any]]] = {
    "pt": _pt,
    "onnx": _onnx,
    "tflite": _tflite,
    "h5": _h5,
    "zip": _zip,
    "tar.gz": _tar_gz,
    "json": _json,
    "xml": _xml,
}
