"""What a file is, in words, when it is not what was declared."""

from __future__ import annotations

from contextlib import suppress
from typing import BinaryIO

from vision_o3.formats import hdf5, onnx, text
from vision_o3.formats.archives import ZIP_END, ZIP_MEMBER

HEAD = 4096
"""Bytes read from the front of every file."""

AS_DECLARED = {
    "zip": {"a ZIP archive", "an empty ZIP archive"},
    "h5": {"an HDF5 file"},
    "tflite": {"a TFLite model"},
    "json": {"JSON or the like"},
    "xml": {"XML or the like"},
}
"""What ``describe`` says of files that begin as their declared format does."""

_SIGNATURES = (
    (0, ZIP_MEMBER, "a ZIP archive"),
    (0, ZIP_END, "an empty ZIP archive"),
    (0, b"\x1f\x8b", "gzip-compressed"),
    *((at, hdf5.SIGNATURE, "an HDF5 file") for at in (0, 512, 1024, 2048)),
    (4, b"TFL3", "a TFLite model"),
    (0, b"\x80\x02\x8a\x0a", "a PyTorch file of the older form"),
    (8, b'{"', "a safetensors file"),
    (0, b"GGUF", "a GGUF model"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"),
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
    ("<!doctype html", "an HTML page"),
    ("<html", "an HTML page"),
    ("<", "XML or the like"),
    ("{", "JSON or the like"),
    ("[", "JSON or the like"),
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
    with suppress(ValueError):
        start = text.in_any_encoding(head).lstrip()[:_MARKUP_HEAD].lower()
        for opening, name in _MARKUP:
            if start.startswith(opening):
                return name
        text.utf8(head, size)
        return "text"
    return "of a kind not known here"
