"""TFLite models: FlatBuffers of the schema 3 (``schema.fbs`` as of TFLite 2.18).

All that the schema's tables lead to is checked to be inside the file, except what the
options of single operators hold. Weights are stepped over.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from vision_o3.formats.bounded import LISTED, clean, most
from vision_o3.formats.flatbuffer import FlatBuffer, Shape, Table
from vision_o3.formats.mapped import Content, mapped
from vision_o3.formats.tflite_metadata import read_metadata
from vision_o3.formats.tflite_operators import CUSTOM, operator_name

if TYPE_CHECKING:
    from vision_o3.formats.limits import Limits

IDENTIFIER = b"TFL3"
_SCHEMA_VERSION = 3
_FLEX = "Flex"
_MOST_VISITED = 1_000_000
"""Tables and numbers: a model of 10,000 operators has about 100,000."""
_MOST_DIMENSIONS = 64
_MOST_TENSORS = 100_000
"""Tensors of a graph, or buffers; each takes some 300 bytes of memory."""
_MOST_OPERANDS = 100_000
"""Inputs or outputs of one operator."""
_MOST_TYPES = 10_000

# TensorType: name as NumPy has it, and bits of an element, 0 if it has no fixed size.
_TYPES = {
    0: ("float32", 32),
    1: ("float16", 16),
    2: ("int32", 32),
    3: ("uint8", 8),
    4: ("int64", 64),
    5: ("string", 0),
    6: ("bool", 8),
    7: ("int16", 16),
    8: ("complex64", 64),
    9: ("int8", 8),
    10: ("float64", 64),
    11: ("complex128", 128),
    12: ("uint64", 64),
    13: ("resource", 0),
    14: ("variant", 0),
    15: ("uint32", 32),
    16: ("uint16", 16),
    17: ("int4", 4),
    18: ("bfloat16", 16),
}
_QUANTIZED_TYPES = {"int8", "uint8", "int16", "int4"}

_ANY = Shape()
_DIMENSION_METADATA = Shape(tables={3: _ANY, 5: _ANY})
_TENSOR = Shape(
    strings=(3,),
    vectors={0: 4, 7: 4},
    tables={
        4: Shape(vectors={0: 4, 1: 4, 2: 4, 3: 8}, tables={5: _ANY}),
        6: Shape(vectors={0: 4, 1: 4}, lists={2: _DIMENSION_METADATA}),
    },
    lists={9: Shape(vectors={0: 4})},
)
_OPERATOR = Shape(vectors={1: 4, 2: 4, 5: 1, 7: 1, 8: 4}, tables={4: _ANY, 12: _ANY})
_TENSOR_MAP = Shape(strings=(0,))
_SIGNATURE = Shape(strings=(2, 3), lists={0: _TENSOR_MAP, 1: _TENSOR_MAP})
_MODEL = Shape(strings=(3,), vectors={5: 4}, lists={7: _SIGNATURE})


@dataclass(slots=True)
class _Tally:
    """What the subgraphs add up to."""

    codes: list[tuple[int, str]]
    buffers: list[tuple[int, int]]
    counted: set[int] = field(default_factory=set)
    operators: Counter[str] = field(default_factory=Counter)
    subgraphs: int = 0
    tensors: int = 0
    parameters: int = 0
    quantized: bool = False


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor: its type, and the numbers of its shape."""

    table: Table
    dtype: str
    bits: int

    @classmethod
    def of(cls, table: Table) -> _Tensor:
        number = table.number(1, "b")
        dtype, bits = _TYPES.get(number, (f"type {number}", 0))
        return cls(table, dtype, bits)

    def facts(self) -> dict[str, Any]:
        return {
            "name": clean(self.table.string(3)),
            "dtype": self.dtype,
            "shape": self._shape(),
            "quantization": self._quantization(),
        }

    def _shape(self) -> list[int | None] | None:
        """Return the shape as exported: unknown dimensions are −1 in the signature."""
        told = self.table.integers(0, "i", _MOST_DIMENSIONS)
        shape = self.table.integers(7, "i", _MOST_DIMENSIONS) or told
        if shape is None:
            return [] if self.table.number(8, "?") else None
        return [dim if dim >= 0 else None for dim in shape]

    def _quantization(self) -> dict[str, Any] | None:
        told = self.table.table(4)
        channels = told.vector(2, 4)[1] if told is not None else 0
        if told is None or not channels:
            return None
        (scale,) = told.scalars(2, "f", 1)
        if not math.isfinite(scale):
            raise ValueError("the scale of a tensor is not a number")
        (zero_point,) = told.scalars(3, "q", 1) or (0,)
        return {
            "scale": scale,
            "zero_point": zero_point,
            "channels": channels,
        }


def inspect(file: BinaryIO, size: int, limits: Limits) -> dict[str, Any]:
    """Return the facts of a TFLite model (``TfliteFacts``).

    Parameters are the elements of constant tensors, those that share a buffer once; a
    sparse tensor counts the elements that it stores. Operators are counted where they
    are used; custom and Flex ones are listed if the model asks for them at all, as
    an interpreter then needs them.

    Raises:
        ValueError: Not a whole, well-formed model.
    """
    del limits  # time and memory are bounded by what is visited here
    with mapped(file, size) as content:
        buffer = FlatBuffer(content, 0, size, _MOST_VISITED)
        model = buffer.root(IDENTIFIER)
        version = model.number(0, "I")
        if version != _SCHEMA_VERSION:
            raise ValueError(f"its schema's version is {version}, not 3")
        buffer.check(model, _MODEL)
        tally = _Tally(_codes(model), _buffers(model, size))
        inputs: list[dict[str, Any]] = []
        outputs: list[dict[str, Any]] = []
        for subgraph in model.tables(2):
            tensors = _read_subgraph(buffer, subgraph, tally)
            if tally.subgraphs == 1:
                inputs = _values(subgraph, 1, tensors)
                outputs = _values(subgraph, 2, tensors)
        if not tally.subgraphs:
            raise ValueError("it has no graph")
        return {
            "kind": "tflite",
            "schema_version": version,
            "description": clean(model.string(3)),
            "inputs": inputs,
            "outputs": outputs,
            "operators": most(tally.operators),
            "operator_count": tally.operators.total(),
            **_custom(tally.codes),
            "subgraphs": tally.subgraphs,
            "tensor_count": tally.tensors,
            "parameters": tally.parameters,
            "quantized": tally.quantized,
            **_packed(content, size, model, tally.buffers),
        }


def _codes(model: Table) -> list[tuple[int, str]]:
    """Return the operators that the model asks for, and the names of custom ones.

    Numbers over 127 did not fit the first field, so there is a second: the greater of
    the two is meant.
    """
    codes: list[tuple[int, str]] = []
    for code in model.tables(1):
        number = max(code.number(0, "b"), code.number(3, "i"))
        custom = code.string(1)
        codes.append((number, custom if number == CUSTOM else ""))
        if len(codes) > _MOST_TYPES:
            raise ValueError(f"it has more than {_MOST_TYPES} types of operators")
    return codes


def _custom(codes: list[tuple[int, str]]) -> dict[str, list[str]]:
    names = {clean(custom) for number, custom in codes if number == CUSTOM}
    flex = {name for name in names if name.startswith(_FLEX)}
    return {
        "custom_operators": sorted(names - flex)[:LISTED],
        "flex_operators": sorted(flex)[:LISTED],
    }


def _buffers(model: Table, size: int) -> list[tuple[int, int]]:
    """Return where each buffer's bytes are, and how many.

    They are in the FlatBuffer or, in models of more than 2 GiB, behind it. Offsets of 0
    and 1 stand for none.
    """
    found: list[tuple[int, int]] = []
    for table in model.tables(4):
        at, length = table.vector(0, 1)
        behind, behind_length = table.number(1, "Q"), table.number(2, "Q")
        if not length and behind > 1:
            at, length = behind, behind_length
            if at + length > size:
                raise ValueError(
                    "a buffer ends behind the file, as if it were cut short"
                )
        found.append((at, length))
        if len(found) > _MOST_TENSORS:
            raise ValueError(f"it has more than {_MOST_TENSORS} buffers")
    return found


def _read_subgraph(buffer: FlatBuffer, subgraph: Table, tally: _Tally) -> list[_Tensor]:
    tally.subgraphs += 1
    subgraph.check_string(4)
    tensors: list[_Tensor] = []
    for table in subgraph.tables(0):
        buffer.check(table, _TENSOR)
        tensor = _Tensor.of(table)
        _count_tensor(tensor, tally)
        tensors.append(tensor)
        if len(tensors) > _MOST_TENSORS:
            raise ValueError(f"a graph has more than {_MOST_TENSORS} tensors")
    for operator in subgraph.tables(3):
        buffer.check(operator, _OPERATOR)
        _check_operands(operator, len(tensors))
        index = operator.number(0, "I")
        if index >= len(tally.codes):
            raise ValueError("an operator is of a type that the model does not have")
        tally.operators[operator_name(*tally.codes[index])] += 1
    return tensors


def _check_operands(operator: Table, tensors: int) -> None:
    """Check that an operator's tensors exist; −1 stands for one that is left out."""
    for number in (1, 2, 8):
        operands = operator.integers(number, "i", _MOST_OPERANDS)
        if operands and not -1 <= min(operands) <= max(operands) < tensors:
            raise ValueError("an operator names a tensor that does not exist")


def _count_tensor(tensor: _Tensor, tally: _Tally) -> None:
    tally.tensors += 1
    index = tensor.table.number(2, "I")
    if index >= max(1, len(tally.buffers)):
        raise ValueError("a tensor names a buffer that does not exist")
    length = tally.buffers[index][1] if tally.buffers else 0
    if not length:
        return
    elements = _elements(tensor, length)
    quantization = tensor.table.table(4)
    if quantization is not None and quantization.vector(2, 4)[1]:
        tally.quantized = tally.quantized or tensor.dtype in _QUANTIZED_TYPES
    if index not in tally.counted:
        tally.counted.add(index)
        tally.parameters += elements


def _elements(tensor: _Tensor, length: int) -> int:
    """Return the elements of a constant tensor, whose data must be as long.

    Strings and the like have no fixed length: the shape tells. Sparse tensors hold
    fewer than their shape has.
    """
    shape = tensor.table.integers(0, "i", _MOST_DIMENSIONS) or []
    if any(dim < 0 for dim in shape):
        raise ValueError("a constant tensor has a negative dimension")
    elements = math.prod(shape)
    if not tensor.bits:
        # Each takes some of the data, at least the offset of a string.
        return min(elements, length)
    if tensor.table.table(6) is not None:
        return min(elements, length * 8 // tensor.bits)
    if length != -(-elements * tensor.bits // 8):
        raise ValueError(
            f"the tensor '{clean(tensor.table.string(3), 80)}' has not the data that "
            f"its {elements} elements of {tensor.dtype} take"
        )
    return elements


def _values(
    subgraph: Table, number: int, tensors: list[_Tensor]
) -> list[dict[str, Any]]:
    """Return the facts of a graph's inputs or outputs."""
    indices = subgraph.integers(number, "i", _MOST_TENSORS) or []
    if indices and not -1 <= min(indices) <= max(indices) < len(tensors):
        raise ValueError("a graph names a tensor that does not exist")
    present = [index for index in indices if index >= 0]
    return [tensors[index].facts() for index in present[:LISTED]]


def _packed(
    content: Content, size: int, model: Table, buffers: list[tuple[int, int]]
) -> dict[str, Any]:
    """Return the facts of the metadata that are packed with the model."""
    found: dict[str, tuple[int, int]] = {}
    for entry in model.tables(6):
        index = entry.number(1, "I")
        if index >= len(buffers):
            raise ValueError("its metadata name a buffer that does not exist")
        found[entry.string(0)] = buffers[index]
        if len(found) > LISTED:
            raise ValueError(f"it has more than {LISTED} entries of metadata")
    return read_metadata(content, size, found)
