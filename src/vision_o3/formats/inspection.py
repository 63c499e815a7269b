"""Check a file's content against its declared format, and read facts from its header.

Every check reads a bounded number of bytes, at most ``HEAD`` and what an ONNX file's
top-level fields need. No pickle, no code and no external file is ever opened.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from vision_o3.errors import FormatError
from vision_o3.formats import onnx
from vision_o3.formats.magic import HEAD, describe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODEL_FORMATS = ("pt", "onnx", "tflite", "h5")
DATASET_FORMATS = ("zip", "tar.gz", "json", "xml")

_EXTENSIONS = {
    **{name: name for name in MODEL_FORMATS + DATASET_FORMATS},
    "pth": "pt",
    "hdf5": "h5",
    "keras.h5": "h5",
    "tgz": "tar.gz",
}
_HDF5 = b"\x89HDF\r\n\x1a\n"
_TORCH_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"
"""How ``torch.save`` began files before 1.6: a pickle of 0x1950a86a20f9469cfc6c."""
_ZIP_MEMBER = b"PK\x03\x04"
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
                f"The file was declared as .{declared}, but it is {detected}: {error}. "
                "Upload the right file, or declare what it is.",
                declared=declared,
                detected=detected,
            ) from error
    return Inspection(declared, facts)


def _pt(head: bytes, _: int, __: BinaryIO) -> dict[str, Any]:
    if head.startswith(_TORCH_MAGIC):
        return {"container": "legacy"}
    if not head.startswith(_ZIP_MEMBER):
        raise ValueError("a PyTorch file is a zip by torch.save or its older form")
    # torch writes `<archive>/data.pkl` (or, for TorchScript, code and constants) first.
    member = _first_member(head)
    if re.fullmatch(r"[^/]+/data\.pkl", member):
        return {"container": "zip"}
    if re.match(
        r"[^/]+/(code/|constants\.pkl|version|byteorder|\.format_version)", member
    ):
        return {"container": "zip"}
    raise ValueError(f"its first member is {member[:80]!r}, not data.pkl")


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
    # HDF5 file format 3.0, II.A: the superblock is at 0, 512, 1024, 2048, …
    at = 0
    while at + len(_HDF5) < size:
        file.seek(at)
        block = file.read(len(_HDF5) + 1)
        if block[:-1] == _HDF5:
            return {"superblock_version": block[-1]}
        at = max(512, 2 * at)
    raise ValueError("an HDF5 file has the signature \\x89HDF")


def _zip(head: bytes, size: int, file: BinaryIO) -> dict[str, Any]:
    # APPNOTE 4.3.16: the end record is in the last 22 bytes and a comment of ≤ 65,535.
    file.seek(max(0, size - 65_557))
    if not head.startswith((_ZIP_MEMBER, b"PK\x05\x06")):
        raise ValueError("a ZIP archive begins with PK")
    if b"PK\x05\x06" not in file.read():
        raise ValueError("its end record is missing; is the file cut short?")
    return {}


def _tar_gz(head: bytes, _: int, __: BinaryIO) -> dict[str, Any]:
    if head[:3] != b"\x1f\x8b\x08":
        raise ValueError("a tar.gz begins as gzip does")
    return {}


def _json(head: bytes, size: int, _: BinaryIO) -> dict[str, Any]:
    text = _text(head, size).lstrip(" \t\r\n")
    if not text.startswith(("{", "[")):
        raise ValueError("a JSON dataset begins with { or [")
    return {}


def _xml(head: bytes, size: int, _: BinaryIO) -> dict[str, Any]:
    if not re.match(r"\s*<(\?xml\s|!--|!DOCTYPE|[A-Za-z_])", _text(head, size)):
        raise ValueError("an XML dataset begins with <?xml or its root element")
    if re.match(r"\s*(<!DOCTYPE\s+html|<html)", _text(head, size), re.IGNORECASE):
        raise ValueError("it is HTML")
    return {}


def _text(head: bytes, size: int) -> str:
    """Return the head as text; it may end within a character if the file goes on."""
    try:
        return head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if size > len(head) and error.start >= len(head) - 3:
            return head[: error.start].decode("utf-8-sig")
        raise ValueError("it is not UTF-8 text") from error


def _first_member(head: bytes) -> str:
    """Return the name of a zip's first member (APPNOTE 4.3.7)."""
    length = int.from_bytes(head[26:28], "little")
    return head[30 : 30 + length].decode("utf-8", "replace")


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
