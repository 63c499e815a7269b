"""What a file is, in words, when it is not what was declared."""

from __future__ import annotations

from contextlib import suppress
from typing import BinaryIO

from vision_o3.formats import onnx

HEAD = 4096
"""Bytes read from the front of every file."""

_SIGNATURES = (
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"PK\x05\x06", "an empty ZIP archive"),
    (0, b"\x1f\x8b", "gzip-compressed"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (4, b"TFL3", "a TFLite model"),
    (0, b"\x80\x02\x8a\x0a", "a PyTorch file of the older form"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"\x7fELF", "an ELF program"),
    (0, b"MZ", "a Windows program"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"BZh", "bzip2-compressed"),
    (0, b"\xfd7zXZ\0", "xz-compressed"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (257, b"ustar", "a tar archive"),
    (0, b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file"),
    *((0, bytes([0x80, protocol]), "a Python pickle") for protocol in range(2, 6)),
)
_MARKUP = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<", "XML or the like"),
    (b"{", "JSON or the like"),
    (b"[", "JSON or the like"),
)
_MARKUP_HEAD = 100


def describe(head: bytes, file: BinaryIO, size: int) -> str:
    """Return what a file that begins with ``head`` is, as the end of a sentence."""
    if not size:
        return "empty"
    for offset, signature, name in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return name
    with suppress(ValueError):
        onnx.read_header(file, size)
        return "an ONNX model"
    return _describe_text(head)


def _describe_text(head: bytes) -> str:
    start = head.lstrip()[:_MARKUP_HEAD].lower()
    for opening, name in _MARKUP:
        if start.startswith(opening):
            return name
    with suppress(UnicodeDecodeError):
        if b"\0" not in head:
            head[:-4].decode()  # the head may end within a character
            return "text"
    return "of a kind not known here"
