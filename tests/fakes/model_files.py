"""Small files that pass the header-level check of their format, with any content."""

from __future__ import annotations

import random
import struct


def tflite(seed: int = 0, size: int = 64) -> bytes:
    """Return ``size`` ≥ 16 bytes that begin as a TFLite FlatBuffer does."""
    header = struct.pack("<I4s", 12, b"TFL3")
    return header + random.Random(seed).randbytes(size - len(header))


def onnx() -> bytes:
    """Return the header of an ONNX model: IR version 8, a graph, opset 17."""
    return b"\x08\x08" + b"\x3a\x07a graph" + b"\x42\x02\x10\x11"
