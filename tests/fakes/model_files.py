"""Small files that are good models of their format, with any content."""

from __future__ import annotations

import random
import struct


def tflite(seed: int = 0, size: int = 64) -> bytes:
    """Return a TFLite model with an empty graph, of ``size`` ≥ 48 bytes.

    What follows its 48 bytes is of no meaning to a reader, and depends on the seed.
    """
    model = struct.pack("<I4s", 20, b"TFL3")
    model += struct.pack("<5H2x", 10, 12, 4, 0, 8)  # vtable: version, subgraphs
    model += struct.pack("<iII", 12, 3, 4)  # the model, of version 3
    model += struct.pack("<II", 1, 8)  # its one subgraph
    model += struct.pack("<HHi", 4, 4, 4)  # which has nothing
    return model + random.Random(seed).randbytes(size - len(model))


def onnx() -> bytes:
    """Return an ONNX model: IR version 8, an empty graph with a name, opset 17."""
    return b"\x08\x08" + b"\x3a\x07\x12\x05graph" + b"\x42\x02\x10\x11"
