"""TFLite models built with the ``flatbuffers`` library: no more than a test asks for.

Tables are dictionaries of field numbers; what a value is tells how it is written.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import flatbuffers  # type: ignore[import-untyped] # it has no types
import numpy as np


class Scalar(NamedTuple):
    """A scalar of a kind that ``flatbuffers.Builder`` prepends, such as ``Int32``."""

    kind: str
    value: Any


class Scalars(NamedTuple):
    """A vector of scalars."""

    kind: str
    values: Sequence[Any]


class Repeated(NamedTuple):
    """A vector of tables that are all the same one."""

    table: Any
    times: int


Fields = dict[int, Any]
"""Values: those above, an array, str, bytes, a table, or a list of tables."""
WIDTHS = {"Int32": 4, "Float32": 4, "Int64": 8, "Uint8": 1, "Uint32": 4}


def flatbuffer(root: Fields, identifier: bytes) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(table(builder, root), identifier)
    return bytes(builder.Output())


def table(builder: Any, fields: Fields) -> int:
    """Write a table, and before it what it leads to; return its offset."""
    placed = {number: place(builder, value) for number, value in fields.items()}
    builder.StartObject(max(fields, default=-1) + 1)
    for number, value in fields.items():
        if isinstance(value, Scalar):
            # No default, so that zeros are written, too.
            getattr(builder, f"Prepend{value.kind}Slot")(number, value.value, None)
        else:
            builder.PrependUOffsetTRelativeSlot(number, placed[number], 0)
    return int(builder.EndObject())


def place(builder: Any, value: Any) -> int:
    if isinstance(value, Scalar):
        return 0
    if isinstance(value, str):
        return int(builder.CreateString(value))
    if isinstance(value, bytes):
        value = np.frombuffer(value, np.uint8)
    if isinstance(value, dict):
        return table(builder, value)
    if isinstance(value, Scalars):
        builder.StartVector(WIDTHS[value.kind], len(value.values), 8)
        for item in reversed(value.values):
            getattr(builder, f"Prepend{value.kind}")(item)
        return int(builder.EndVector())
    if isinstance(value, np.ndarray):
        return int(builder.CreateNumpyVector(value))
    if isinstance(value, Repeated):
        offsets = [table(builder, value.table)] * value.times
    else:
        offsets = [table(builder, item) for item in value]
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def int32(value: int) -> Scalar:
    return Scalar("Int32", value)


def uint32(value: int) -> Scalar:
    return Scalar("Uint32", value)


def int32s(*values: int) -> Scalars:
    return Scalars("Int32", values)


def tensor(
    name: str, shape: Sequence[int] = (2,), dtype: int = 0, buffer: int = 0, **more: Any
) -> Fields:
    """A tensor; ``more`` are the fields from 4 on, as ``f4=…``."""
    fields: Fields = {
        0: int32s(*shape),
        1: Scalar("Int8", dtype),
        2: uint32(buffer),
        3: name,
    }
    return fields | {int(key[1:]): value for key, value in more.items()}


def quantization(
    scales: Sequence[float] = (0.5,), zero_points: Sequence[int] = (-3,)
) -> Fields:
    return {2: Scalars("Float32", scales), 3: Scalars("Int64", zero_points)}


def code(number: int, custom: str | None = None) -> Fields:
    """An operator code: numbers over 127 are in a field of their own."""
    fields: Fields = {0: Scalar("Int8", min(number, 127)), 3: int32(number)}
    return fields if custom is None else fields | {1: custom}


def operator(
    index: int, inputs: Sequence[int] = (0,), outputs: Sequence[int] = (0,)
) -> Fields:
    return {0: uint32(index), 1: int32s(*inputs), 2: int32s(*outputs)}


def graph(
    tensors: Sequence[Fields] = (),
    operators: Sequence[Fields] = (),
    inputs: Sequence[int] = (),
    outputs: Sequence[int] = (),
) -> Fields:
    return {
        0: list(tensors),
        1: int32s(*inputs),
        2: int32s(*outputs),
        3: list(operators),
        4: "main",
    }


def model(
    *graphs: Fields,
    codes: Sequence[Fields] = (),
    buffers: Sequence[bytes | Fields] = (b"",),
    **more: Any,
) -> bytes:
    """A model; ``more`` are fields of it, as ``f3=…``, over those told."""
    fields: Fields = {
        0: uint32(3),
        1: list(codes),
        2: list(graphs) or [graph()],
        3: "A model",
        4: [buf if isinstance(buf, dict) else {0: buf} for buf in buffers],
    }
    fields |= {int(key[1:]): value for key, value in more.items()}
    return flatbuffer(fields, b"TFL3")


def metadata(files: Sequence[Fields] = (), where: str = "outputs") -> bytes:
    """The FlatBuffer of ``TFLITE_METADATA``, with associated files somewhere."""
    subgraph: Fields = {0: "main"}
    fields: Fields = {
        0: "Classifier",
        1: "Tells cats from dogs",
        2: "v1",
        3: [subgraph],
        4: "A. Person",
        5: "Apache-2.0",
        7: "1.0.0",
    }
    match where:
        case "outputs":
            subgraph[3] = [{0: "probability", 6: list(files)}]
        case "inputs":
            subgraph[2] = [{0: "image", 6: list(files)}]
        case "graph":
            subgraph[4] = list(files)
        case _:
            fields[6] = list(files)
    return flatbuffer(fields, b"M001")


def file_of(name: str, kind: int = 2) -> Fields:
    """An associated file; kind 2 is of labels."""
    return {0: name, 2: Scalar("Int8", kind)}


def with_metadata(content: bytes) -> bytes:
    """A model with such an entry of metadata."""
    entries = [
        {0: "TFLITE_METADATA", 1: uint32(1)},
        {0: "min_runtime_version", 1: uint32(2)},
    ]
    runtime = b"1.14.0".ljust(16, b"\0")
    return model(graph(), buffers=(b"", content, runtime), f6=entries)


def appended(
    content: bytes, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    """The model and an archive, whose offsets count from the model's start."""
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a", method) as archive:
        for name, held in files.items():
            archive.writestr(name, held)
    return file.getvalue()
