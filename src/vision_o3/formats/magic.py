"""What a file is, in words, when it is not what was declared."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import BinaryIO

from vision_o3.formats import hdf5, onnx, text
from vision_o3.formats.archives import ZIP_END, ZIP_MEMBER

HEAD = 4096
"""Bytes read from the front of every file."""

AS_DECLARED = {
    "pt": {"a PyTorch file", "a PyTorch file of the older form"},
    "onnx": {"an ONNX model"},
    "zip": {"a ZIP archive", "an empty ZIP archive"},
    "tar.gz": {"gzip-compressed"},
    "h5": {"an HDF5 file"},
    "tflite": {"a TFLite model"},
    "json": {"JSON or the like"},
    "xml": {"XML or the like"},
}
"""What ``describe`` says of files that begin as their declared format does."""

_SIGNATURES = (
    (0, ZIP_END, "an empty ZIP archive"),
    (0, b"\x1f\x8b", "gzip-compressed"),
    *((at, hdf5.SIGNATURE, "an HDF5 file") for at in (0, 512, 1024, 2048)),
    (4, b"TFL3", "a TFLite model"),
    (0, b"\x80\x02\x8a\x0a", "a PyTorch file of the older form"),
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
_FIRST_MEMBERS = (
    (re.compile(rb"[^/]+/(data\.pkl|constants\.pkl|version)"), "a PyTorch file"),
    (re.compile(rb"metadata\.json"), "a Keras 3 file (.keras)"),
    (re.compile(rb"AndroidManifest\.xml|META-INF/.*"), "a Java or Android program"),
)
"""How the first member of a ZIP archive of some kind is called."""


def describe(head: bytes, file: BinaryIO, size: int) -> str:
    """Return what a file that begins with ``head`` is, as the end of a sentence."""
    if not size:
        return "empty"
    if head.startswith(ZIP_MEMBER):
        return _zip_kind(head)
    for offset, signature, name in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return name
    # Safetensors: the length of a JSON header, and the header.
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") <= size - 8:
        return "a safetensors file"
    with suppress(ValueError):
        onnx.read_header(file, size)
        return "an ONNX model"
    return _text_kind(head, size) or "of a kind not known here"


def _text_kind(head: bytes, size: int) -> str | None:
    with suppress(ValueError):
        start = text.in_any_encoding(head).lstrip()[:_MARKUP_HEAD].lower()
        for opening, name in _MARKUP:
            if start.startswith(opening):
                return name
        text.utf8(head, size)
        return "text"
    return None


def _zip_kind(head: bytes) -> str:
    """Return what a ZIP archive is, by its first member (APPNOTE 4.3.7)."""
    length = int.from_bytes(head[26:28], "little")
    name = head[30 : 30 + length]
    for pattern, kind in _FIRST_MEMBERS:
        if pattern.fullmatch(name):
            return kind
    return "a ZIP archive"
