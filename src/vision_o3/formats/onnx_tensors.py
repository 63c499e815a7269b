"""Tensors and types of values in an ONNX model (TensorProto, TypeProto)."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from vision_o3.errors import UnsafeContentError
from vision_o3.formats import onnx_messages as messages
from vision_o3.formats.bounded import clean

if TYPE_CHECKING:
    from vision_o3.formats.protobuf import Wire

_MOST_DIMENSIONS = 64
_MOST_ELEMENTS = (1 << 63) - 1
_LONGEST_NAME = 1 << 16
_EXTERNAL = 1
"""``DataLocation.EXTERNAL``."""
_MOST_NESTING = 16
"""Types of sequences, maps and optionals within each other."""


class HeldTensor(NamedTuple):
    """A tensor that the file holds."""

    name: bytes
    dtype: str
    elements: int

    @property
    def is_quantized(self) -> bool:
        """Whether its type is one that weights are quantised to."""
        return self.dtype in messages.QUANTIZED_TYPES


def read_tensor(wire: Wire, at: int, stop: int) -> HeldTensor:
    """Return what a ``TensorProto`` is, without reading its data.

    Raises:
        ValueError: Its data are not as long as its type and dimensions ask.
        UnsafeContentError: Its data are in another file.
    """
    dims: list[int] = []
    data_type, name, location = 0, b"", None
    counts: dict[int, int] = {}
    for number, start, end in wire.fields(at, stop, messages.TENSOR):
        if number in messages.DATA:
            _count(wire, number, start, end, counts)
        elif number == 1:
            _add_dimensions(wire, start, end, dims)
        elif number == 2:  # noqa: PLR2004 - TensorProto.data_type
            data_type = start
        elif number == 8:  # noqa: PLR2004 - TensorProto.name
            name = wire.octets(start, min(end, start + _LONGEST_NAME))
        elif number == 13:  # noqa: PLR2004 - TensorProto.external_data
            location = _location(wire, start, end) or location or ""
        elif number == 14 and start == _EXTERNAL:  # noqa: PLR2004 - data_location
            location = location or ""
        elif number in messages.TENSOR.inner:
            wire.check(start, end, messages.TENSOR.inner[number])
    if location is not None:
        raise _external(name, location)
    elements = _elements(dims)
    _check_length(name, data_type, elements, counts)
    return HeldTensor(name, dtype_name(data_type), elements)


def read_sparse_tensor(wire: Wire, at: int, stop: int) -> HeldTensor:
    """Return the values of a ``SparseTensorProto``: the elements that it stores.

    Raises:
        ValueError: Its indices do not fit its values and dimensions.
        UnsafeContentError: Its data are in another file.
    """
    values: HeldTensor | None = None
    indices = 0
    dims: list[int] = []
    for number, start, end in wire.fields(at, stop, messages.SPARSE_TENSOR):
        if number == 1:
            values = read_tensor(wire, start, end)
        elif number == 2:  # noqa: PLR2004 - SparseTensorProto.indices
            indices = read_tensor(wire, start, end).elements
        elif number == 3:  # noqa: PLR2004 - SparseTensorProto.dims
            _add_dimensions(wire, start, end, dims)
    if values is None:
        raise ValueError("a sparse tensor has no values")
    if values.elements > _elements(dims) or indices not in {
        values.elements,
        values.elements * max(1, len(dims)),
    }:
        raise ValueError("a sparse tensor has not one index for each value")
    return values


def read_value(wire: Wire, at: int, stop: int) -> dict[str, Any]:
    """Return the name, type and shape of an input or output (``ValueInfoProto``)."""
    name, dtype = "", "unknown"
    shape: list[int | str | None] | None = None
    for number, start, end in wire.fields(at, stop, messages.VALUE_INFO):
        if number == 1:
            name = clean(wire.text(start, end))
        elif number == 2:  # noqa: PLR2004 - ValueInfoProto.type
            dtype, shape = _type(wire, start, end, 0)
    return {"name": name, "dtype": clean(dtype), "shape": shape}


def dtype_name(number: int) -> str:
    """Return the name of a ``TensorProto.DataType``."""
    known = messages.ELEMENT_TYPES.get(number)
    if known is not None:
        return known.name
    return f"type {number}" if number else "unknown"


def _type(
    wire: Wire, at: int, stop: int, depth: int
) -> tuple[str, list[int | str | None] | None]:
    if depth > _MOST_NESTING:
        raise ValueError("a type is nested too deeply")
    found: tuple[str, list[int | str | None] | None] | None = None
    for number, start, end in wire.fields(at, stop, messages.TYPE):
        if number not in messages.TYPE.single:
            continue
        if found is not None:
            raise ValueError("a value has two types")
        match number:
            case 1:
                found = _tensor_type(wire, start, end)
            case 8:
                dtype, shape = _tensor_type(wire, start, end)
                found = f"sparse({dtype})", shape
            case 4:
                found = f"sequence({_container(wire, start, end, depth)})", None
            case 9:
                found = f"optional({_container(wire, start, end, depth)})", None
            case 5:
                found = f"map({_map(wire, start, end, depth)})", None
            case _:
                found = "opaque", None
    return found or ("unknown", None)


def _container(wire: Wire, at: int, stop: int, depth: int) -> str:
    held = "unknown"
    for number, start, end in wire.fields(at, stop, messages.CONTAINER_TYPE):
        if number == 1:
            held, _ = _type(wire, start, end, depth + 1)
    return held


def _map(wire: Wire, at: int, stop: int, depth: int) -> str:
    key, held = "unknown", "unknown"
    for number, start, end in wire.fields(at, stop, messages.MAP_TYPE):
        if number == 1:
            key = dtype_name(start)
        elif number == 2:  # noqa: PLR2004 - TypeProto.Map.value_type
            held, _ = _type(wire, start, end, depth + 1)
    return f"{key}, {held}"


def _tensor_type(
    wire: Wire, at: int, stop: int
) -> tuple[str, list[int | str | None] | None]:
    dtype = "unknown"
    shape: list[int | str | None] | None = None
    for number, start, end in wire.fields(at, stop, messages.TENSOR_TYPE):
        if number == 1:
            dtype = dtype_name(start)
        elif number == 2:  # noqa: PLR2004 - TypeProto.Tensor.shape
            shape = []
            for field, first, last in wire.fields(start, end, messages.SHAPE):
                if field == 1:
                    shape.append(_dimension(wire, first, last))
                if len(shape) > _MOST_DIMENSIONS:
                    raise ValueError(
                        f"a shape has more than {_MOST_DIMENSIONS} numbers"
                    )
    return dtype, shape


def _dimension(wire: Wire, at: int, stop: int) -> int | str | None:
    """Return a number, a name, or ``None``; exporters write −1 for unknown, too."""
    found: int | str | None = None
    for number, start, end in wire.fields(at, stop, messages.DIMENSION):
        if number == 1:
            found = start if start >= 0 else None
        elif number == 2:  # noqa: PLR2004 - Dimension.dim_param
            found = clean(wire.text(start, end)) or None
    return found


def _add_dimensions(wire: Wire, at: int, stop: int, dims: list[int]) -> None:
    dims += wire.numbers(at, stop, _MOST_DIMENSIONS)
    if len(dims) > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor has more than {_MOST_DIMENSIONS} dimensions")


def _count(wire: Wire, number: int, at: int, stop: int, counts: dict[int, int]) -> None:
    """Add what a field of data holds: strings, numbers, or bytes of raw data."""
    if number == messages.RAW_DATA:
        counts[number] = stop - at  # parsers keep the last
    elif number == messages.STRING_DATA:
        counts[number] = counts.get(number, 0) + 1
    else:
        counts[number] = counts.get(number, 0) + wire.count(
            at, stop, messages.WIDTHS.get(number, 0)
        )


def _elements(dims: list[int]) -> int:
    if any(dim < 0 for dim in dims):
        raise ValueError("a tensor has a negative dimension")
    elements = prod(dims)
    if elements > _MOST_ELEMENTS:
        raise ValueError("a tensor has more elements than there are numbers")
    return elements


def _check_length(
    name: bytes, data_type: int, elements: int, counts: dict[int, int]
) -> None:
    """Check that one of the places for data holds all elements, and no other does."""
    told = messages.ELEMENT_TYPES.get(data_type)
    if told is None:
        # Types are added to ONNX with time; how long theirs are is not known.
        if data_type:
            return
        raise ValueError(f"the tensor '{_shown(name)}' has no type")
    in_field, asked = counts.pop(messages.RAW_DATA, 0), -(-elements * told.bits // 8)
    if not in_field:
        numbers, held = told.packed
        in_field, asked = counts.pop(told.field, 0), -(-elements * numbers // held)
    if in_field != asked or any(counts.values()):
        raise ValueError(
            f"the tensor '{_shown(name)}' has not the data that its {elements} "
            f"elements of {told.name} take"
        )


def _location(wire: Wire, at: int, stop: int) -> str:
    """Return the file that an entry of ``external_data`` names, or nothing."""
    key, value = "", ""
    for number, start, end in wire.fields(at, stop, messages.ENTRY):
        if number == 1:
            key = wire.text(start, end)
        elif number == 2:  # noqa: PLR2004 - StringStringEntryProto.value
            value = wire.text(start, end)
    return clean(value) if key == "location" else ""


def _external(name: bytes, location: str) -> UnsafeContentError:
    shown, other = _shown(name), f"'{location}'" if location else "without a name"
    return UnsafeContentError(
        f"The tensor '{shown}' keeps its data in another file, {other}, and no file "
        "outside is ever read. Save the model as one file: "
        "onnx.save(model, path, save_as_external_data=False).",
        findings=[f"tensor '{shown}' refers to the file '{location}'"],
    )


def _shown(name: bytes) -> str:
    return clean(name.decode("utf-8", "replace"), 80)
