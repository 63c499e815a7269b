"""The messages of ``onnx.proto`` (IR version 14) and the types of their elements."""

from __future__ import annotations

from typing import NamedTuple

from vision_o3.formats.protobuf import BYTES, DOUBLES, FLOAT, FLOATS, INT, INTS, Message


class ElementType(NamedTuple):
    """How elements of a ``TensorProto.DataType`` are stored.

    Attributes:
        name: As NumPy, or ``ml_dtypes``, has it.
        bits: Of one element, in ``raw_data``; 0 if it cannot be there.
        field: Where they are if not in ``raw_data``.
        packed: (Numbers of that field, elements in them).
    """

    name: str
    bits: int
    field: int
    packed: tuple[int, int] = (1, 1)


FLOAT_DATA, INT32_DATA, STRING_DATA, INT64_DATA = 4, 5, 6, 7
RAW_DATA, DOUBLE_DATA, UINT64_DATA = 9, 10, 11
DATA = {4, 5, 6, 7, 9, 10, 11}
"""The fields of a ``TensorProto`` that can hold its elements."""
WIDTHS = {FLOAT_DATA: 4, DOUBLE_DATA: 8}
"""Bytes of the numbers in a field; the others' are varints."""

ELEMENT_TYPES = {
    1: ElementType("float32", 32, FLOAT_DATA),
    2: ElementType("uint8", 8, INT32_DATA),
    3: ElementType("int8", 8, INT32_DATA),
    4: ElementType("uint16", 16, INT32_DATA),
    5: ElementType("int16", 16, INT32_DATA),
    6: ElementType("int32", 32, INT32_DATA),
    7: ElementType("int64", 64, INT64_DATA),
    8: ElementType("string", 0, STRING_DATA),
    9: ElementType("bool", 8, INT32_DATA),
    10: ElementType("float16", 16, INT32_DATA),
    11: ElementType("float64", 64, DOUBLE_DATA),
    12: ElementType("uint32", 32, UINT64_DATA),
    13: ElementType("uint64", 64, UINT64_DATA),
    14: ElementType("complex64", 64, FLOAT_DATA, (2, 1)),
    15: ElementType("complex128", 128, DOUBLE_DATA, (2, 1)),
    16: ElementType("bfloat16", 16, INT32_DATA),
    17: ElementType("float8_e4m3fn", 8, INT32_DATA),
    18: ElementType("float8_e4m3fnuz", 8, INT32_DATA),
    19: ElementType("float8_e5m2", 8, INT32_DATA),
    20: ElementType("float8_e5m2fnuz", 8, INT32_DATA),
    21: ElementType("uint4", 4, INT32_DATA, (1, 2)),
    22: ElementType("int4", 4, INT32_DATA, (1, 2)),
    23: ElementType("float4_e2m1fn", 4, INT32_DATA, (1, 2)),
    24: ElementType("float8_e8m0fnu", 8, INT32_DATA),
    25: ElementType("uint2", 2, INT32_DATA, (1, 4)),
    26: ElementType("int2", 2, INT32_DATA, (1, 4)),
    27: ElementType("float6_e2m3fn", 6, INT32_DATA),
    28: ElementType("float6_e3m2fn", 6, INT32_DATA),
}
QUANTIZED_TYPES = {"uint8", "int8", "uint4", "int4", "uint2", "int2"}

ENTRY = Message("a key–value pair", {1: BYTES, 2: BYTES})
OPSET = Message("an opset", {1: BYTES, 2: INT})
MODEL = Message(
    "an ONNX model",
    {
        **dict.fromkeys((1, 5), INT),
        **dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), BYTES),
    },
    {14: ENTRY, 26: Message("a configuration", {1: BYTES, 2: INT, 3: BYTES})},
    single=frozenset({7}),
    closed=True,
)

TENSOR = Message(
    "a tensor",
    {
        **dict.fromkeys((6, 8, 9, 12, 13, 16), BYTES),
        **dict.fromkeys((1, 5, 7, 11), INTS),
        **dict.fromkeys((2, 14), INT),
        FLOAT_DATA: FLOATS,
        DOUBLE_DATA: DOUBLES,
        3: 1 << 3,  # segments, which no reader knows: only as a group, so never
    },
    {16: ENTRY},
)
SPARSE_TENSOR = Message(
    "a sparse tensor", {1: BYTES, 2: BYTES, 3: INTS}, single=frozenset({1, 2})
)

DIMENSION = Message("a dimension", {1: INT, 2: BYTES, 3: BYTES})
SHAPE = Message("a shape", {1: BYTES}, {1: DIMENSION})
TENSOR_TYPE = Message("a tensor's type", {1: INT, 2: BYTES}, {2: SHAPE}, frozenset({2}))
_within_types: dict[int, Message] = {1: TENSOR_TYPE, 8: TENSOR_TYPE}
TYPE = Message(
    "a type",
    dict.fromkeys((1, 4, 5, 6, 7, 8, 9), BYTES),
    _within_types,
    single=frozenset({1, 4, 5, 7, 8, 9}),
)
CONTAINER_TYPE = Message(
    "a sequence's type", {1: BYTES}, {1: TYPE}, single=frozenset({1})
)
MAP_TYPE = Message("a map's type", {1: INT, 2: BYTES}, {2: TYPE}, frozenset({2}))
_within_types |= {
    4: CONTAINER_TYPE,
    5: MAP_TYPE,
    7: Message("an opaque type", {1: BYTES, 2: BYTES}),
    9: CONTAINER_TYPE,
}
VALUE_INFO = Message(
    "a value's type",
    dict.fromkeys((1, 2, 3, 4), BYTES),
    {2: TYPE, 4: ENTRY},
    single=frozenset({2}),
)

ATTRIBUTE = Message(
    "an attribute",
    {
        **dict.fromkeys((1, 4, 5, 6, 9, 10, 11, 13, 14, 15, 21, 22, 23), BYTES),
        **dict.fromkeys((3, 20), INT),
        2: FLOAT,
        7: FLOATS,
        8: INTS,
    },
    single=frozenset({5, 6, 14, 22}),
)
_SIMPLE_SHARDING = Message("a sharding", {1: INT, 2: BYTES, 3: INT})
_SHARDED_DIMENSION = Message("a sharding", {1: INT, 2: BYTES}, {2: _SIMPLE_SHARDING})
_SHARDING = Message(
    "a sharding",
    {1: BYTES, 2: INTS, 3: BYTES, 4: BYTES},
    {3: Message("a sharding", {1: INT, 2: INTS}), 4: _SHARDED_DIMENSION},
)
NODE = Message(
    "a node",
    dict.fromkeys(range(1, 11), BYTES),
    {
        9: ENTRY,
        10: Message("a configuration", {1: BYTES, 2: BYTES, 3: INT}, {2: _SHARDING}),
    },
)
GRAPH = Message(
    "a graph",
    dict.fromkeys((1, 2, 5, 10, 11, 12, 13, 14, 15, 16), BYTES),
    {
        11: VALUE_INFO,
        12: VALUE_INFO,
        13: VALUE_INFO,
        14: Message("an annotation", {1: BYTES, 2: BYTES}, {2: ENTRY}),
        16: ENTRY,
    },
)
FUNCTION = Message(
    "a function",
    dict.fromkeys((1, *range(4, 15)), BYTES),
    {9: OPSET, 12: VALUE_INFO, 14: ENTRY},
)
TRAINING = Message(
    "training information",
    dict.fromkeys((1, 2, 3, 4), BYTES),
    {3: ENTRY, 4: ENTRY},
    single=frozenset({1, 2}),
)
