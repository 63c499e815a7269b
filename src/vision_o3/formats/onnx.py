"""ONNX models, read without a protobuf library and without their weights.

A model is one ``ModelProto`` (``onnx.proto``, IR version 14). All its messages are
walked, so that what passes is well-formed; the data of tensors are stepped over.
Memory does not grow with them: a model of gigabytes takes as long as its nodes do.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from vision_o3.formats import onnx_messages as messages
from vision_o3.formats.bounded import LISTED, clean, most
from vision_o3.formats.mapped import mapped
from vision_o3.formats.onnx_tensors import (
    HeldTensor,
    read_sparse_tensor,
    read_tensor,
    read_value,
)
from vision_o3.formats.protobuf import Wire

if TYPE_CHECKING:
    from vision_o3.formats.limits import Limits

_NUMBERS = {1: "ir_version", 5: "model_version"}
_TEXTS = {2: "producer_name", 3: "producer_version", 4: "domain"}
_GRAPH, _OPSET, _METADATA, _TRAINING, _FUNCTION = 7, 8, 14, 20, 25
_PARTS = {_GRAPH, _METADATA, _TRAINING, _FUNCTION}
_MOST_OPSETS = 100
_MOST_VERSION = 1_000
"""Far above any IR or opset version (14 and 26 in 2026), far below random bytes."""
_FIRST_WITH_OPSETS = 3
"""IR version from which a model must say which operator sets it uses."""
_MOST_FIELDS_OF_HEADER = 100_000
_MOST_FIELDS = 5_000_000
"""A model of 100,000 nodes has about 2,000,000."""
_MOST_GRAPHS_WITHIN = 32
"""Graphs within each other; parsers in C++ stop at 100 messages, three for each."""
_MOST_NAMES = 64 << 20
"""Bytes of the names of inputs and initializers that are kept while reading."""
_MOST_TYPES = 10_000
_MOST_METADATA = 50

_STANDARD = {
    "ai.onnx",
    "ai.onnx.ml",
    "ai.onnx.preview.training",
    "ai.onnx.training",
}
_QUANTIZED_OPERATORS = {
    "MatMulBnb4",
    "MatMulNBits",
    "QAttention",
    "QGemm",
    "QMoE",
    "QOrderedMatMul",
}


@dataclass(slots=True)
class _Tally:
    """What nodes and initializers add up to."""

    operators: Counter[str] = field(default_factory=Counter)
    nodes: int = 0
    custom_domains: set[str] = field(default_factory=set)
    parameters: int = 0
    initializers: int = 0
    quantized: bool = False

    def add_node(self, domain: str, operator: str) -> None:
        self.nodes += 1
        if domain and domain not in _STANDARD:
            self.custom_domains.add(domain)
            name = f"{domain}:{operator}"
        else:
            name = operator
        self.operators[name] += 1
        if len(self.operators) > _MOST_TYPES:
            raise ValueError(f"it has more than {_MOST_TYPES} types of operators")

    def add_weights(self, tensor: HeldTensor) -> None:
        self.parameters = min(self.parameters + tensor.elements, (1 << 63) - 1)
        self.quantized = self.quantized or tensor.is_quantized


@dataclass(slots=True)
class _Interface:
    """What the outermost graph says of itself. Values are spans of their messages."""

    name: str = ""
    inputs: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    outputs: list[tuple[int, int]] = field(default_factory=list)
    initializers: set[bytes] = field(default_factory=set)
    names_left: int = _MOST_NAMES

    def kept(self, name: bytes) -> bytes:
        # What a set or dictionary needs for an entry, too.
        self.names_left -= len(name) + 200
        if self.names_left < 0:
            raise ValueError("the names of its inputs and initializers are too many")
        return name


def inspect(file: BinaryIO, size: int, limits: Limits) -> dict[str, Any]:
    """Return the facts of an ONNX model (``OnnxFacts``).

    Operators are counted in the graph, the graphs within it, and the model's own
    functions, once for each place that they are written at. Parameters are the elements
    of initializers and, as some exporters keep all weights there, of the tensors of
    ``Constant`` nodes; a sparse tensor counts the elements that it stores. What is for
    training only is checked, and not counted.

    Raises:
        ValueError: Not a well-formed model.
        UnsafeContentError: A tensor's data are in another file.
    """
    del limits  # time and memory are bounded by what is walked here
    with mapped(file, size) as content:
        wire = Wire(content, _MOST_FIELDS)
        facts, parts = _header(wire, size)
        reader = _Reader(wire)
        interface = _Interface()
        metadata: dict[str, str] = {}
        for number, at, stop in parts:
            if number == _GRAPH:
                reader.graph(at, stop, 0, interface)
            elif number == _FUNCTION:
                reader.function(at, stop)
            elif number == _TRAINING:
                _Reader(wire).training(at, stop)
            elif len(metadata) < _MOST_METADATA:
                metadata.update([_entry(wire, at, stop)])
            else:
                wire.check(at, stop, messages.ENTRY)
        inputs = [
            span
            for name, span in interface.inputs.items()
            if name not in interface.initializers
        ]
        tally = reader.tally
        return {
            "kind": "onnx",
            **facts,
            "graph_name": interface.name,
            "inputs": [read_value(wire, *span) for span in inputs[:LISTED]],
            "outputs": [read_value(wire, *span) for span in interface.outputs[:LISTED]],
            "operators": most(tally.operators),
            "node_count": tally.nodes,
            "custom_domains": sorted({clean(name) for name in tally.custom_domains})[
                :LISTED
            ],
            "parameters": tally.parameters,
            "initializer_count": tally.initializers,
            "quantized": tally.quantized,
            "metadata": metadata,
        }


def read_header(file: BinaryIO, size: int) -> dict[str, Any]:
    """Return the facts of a model's outermost message alone, which is quick.

    Raises:
        ValueError: Not a ``ModelProto`` with an IR version, opsets and a graph.
    """
    with mapped(file, size) as content:
        facts, _ = _header(Wire(content, _MOST_FIELDS_OF_HEADER), size)
    return facts


def _header(wire: Wire, size: int) -> tuple[dict[str, Any], list[tuple[int, int, int]]]:
    """Return the facts of the outermost message, and its parts that hold more."""
    facts: dict[str, Any] = {
        **dict.fromkeys(_NUMBERS.values(), 0),
        **dict.fromkeys(_TEXTS.values(), ""),
        "opset_import": {},
    }
    parts: list[tuple[int, int, int]] = []
    opsets = facts["opset_import"]
    has_graph = False
    for number, at, stop in wire.fields(0, size, messages.MODEL):
        if number in _NUMBERS:
            facts[_NUMBERS[number]] = at
        elif number in _TEXTS:
            facts[_TEXTS[number]] = clean(wire.text(at, stop))
        elif number == _OPSET:
            domain, version = _opset(wire, at, stop)
            opsets[domain] = version
            if len(opsets) > _MOST_OPSETS:
                raise ValueError(f"it names more than {_MOST_OPSETS} opsets")
        elif number in _PARTS:
            parts.append((number, at, stop))
            has_graph = has_graph or (number == _GRAPH and at < stop)
            if len(parts) > _MOST_FIELDS_OF_HEADER:
                raise ValueError(f"it has more than {_MOST_FIELDS_OF_HEADER} parts")
        elif number in messages.MODEL.inner:
            wire.check(at, stop, messages.MODEL.inner[number])
    _check_header(facts, has_graph=has_graph)
    return facts, parts


def _check_header(facts: dict[str, Any], *, has_graph: bool) -> None:
    if not has_graph or not 1 <= facts["ir_version"] <= _MOST_VERSION:
        raise ValueError("an ONNX model has an IR version and a graph")
    if not facts["opset_import"] and facts["ir_version"] >= _FIRST_WITH_OPSETS:
        raise ValueError("an ONNX model names its opsets; it names none")


def _opset(wire: Wire, at: int, stop: int) -> tuple[str, int]:
    domain, version = "", 0
    for number, start, end in wire.fields(at, stop, messages.OPSET):
        if number == 1:
            domain = wire.text(start, end)
        elif number == 2:  # noqa: PLR2004 - OperatorSetIdProto.version
            version = start
    if not 1 <= version <= _MOST_VERSION:
        raise ValueError("an opset has no version")
    return clean(domain or "ai.onnx"), version


def _entry(wire: Wire, at: int, stop: int) -> tuple[str, str]:
    key, value = "", ""
    for number, start, end in wire.fields(at, stop, messages.ENTRY):
        if number == 1:
            key = clean(wire.text(start, end))
        elif number == 2:  # noqa: PLR2004 - StringStringEntryProto.value
            value = clean(wire.text(start, end))
    return key, value


class _Reader:
    """Walks graphs and what is in them, and adds up what it meets."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.tally = _Tally()

    def graph(
        self, at: int, stop: int, depth: int, interface: _Interface | None = None
    ) -> None:
        """Walk a ``GraphProto``; fill in the interface of the outermost one."""
        if depth > _MOST_GRAPHS_WITHIN:
            raise ValueError("its graphs are nested too deeply")
        wire, inner = self._wire, messages.GRAPH.inner
        for number, start, end in wire.fields(at, stop, messages.GRAPH):
            match number:
                case 1:
                    self._node(start, end, depth)
                case 5:
                    self._initializer(read_tensor(wire, start, end), interface)
                case 15:
                    self._initializer(read_sparse_tensor(wire, start, end), interface)
                case _:
                    if number in inner:
                        wire.check(start, end, inner[number])
                    if interface is not None:
                        self._describe(interface, number, start, end)

    def function(self, at: int, stop: int) -> None:
        """Walk a ``FunctionProto``."""
        wire, inner = self._wire, messages.FUNCTION.inner
        for number, start, end in wire.fields(at, stop, messages.FUNCTION):
            if number == 7:  # noqa: PLR2004 - FunctionProto.node
                self._node(start, end, 0)
            elif number == 11:  # noqa: PLR2004 - FunctionProto.attribute_proto
                self._attribute(start, end, 0)
            elif number in inner:
                wire.check(start, end, inner[number])

    def training(self, at: int, stop: int) -> None:
        """Walk a ``TrainingInfoProto``."""
        wire, inner = self._wire, messages.TRAINING.inner
        for number, start, end in wire.fields(at, stop, messages.TRAINING):
            if number in messages.TRAINING.single:
                self.graph(start, end, 0)
            elif number in inner:
                wire.check(start, end, inner[number])

    def _describe(
        self, interface: _Interface, number: int, start: int, end: int
    ) -> None:
        match number:
            case 2:
                interface.name = clean(self._wire.text(start, end))
            case 11:
                name = interface.kept(_value_name(self._wire, start, end))
                interface.inputs[name] = (start, end)
            case 12:
                interface.kept(b"")
                interface.outputs.append((start, end))
            case _:
                pass

    def _initializer(self, tensor: HeldTensor, interface: _Interface | None) -> None:
        self.tally.initializers += 1
        self.tally.add_weights(tensor)
        if interface is not None:
            interface.initializers.add(interface.kept(tensor.name))

    def _node(self, at: int, stop: int, depth: int) -> None:
        wire, inner = self._wire, messages.NODE.inner
        operator = domain = ""
        constant: HeldTensor | None = None
        for number, start, end in wire.fields(at, stop, messages.NODE):
            match number:
                case 4:
                    operator = wire.text(start, end)
                case 5:
                    constant = self._attribute(start, end, depth) or constant
                case 7:
                    domain = wire.text(start, end)
                case 9 | 10:
                    wire.check(start, end, inner[number])
                case _:
                    pass
        if not operator:
            raise ValueError("a node has no operator")
        self.tally.add_node(domain, operator)
        if operator == "Constant" and constant is not None:
            self.tally.add_weights(constant)
        if _is_quantized(operator):
            self.tally.quantized = True

    def _attribute(self, at: int, stop: int, depth: int) -> HeldTensor | None:
        """Walk an ``AttributeProto``; return the one tensor that it is, if it is."""
        wire = self._wire
        tensor: HeldTensor | None = None
        for number, start, end in wire.fields(at, stop, messages.ATTRIBUTE):
            match number:
                case 5:
                    tensor = read_tensor(wire, start, end)
                case 22:
                    tensor = read_sparse_tensor(wire, start, end)
                case 6 | 11:
                    self.graph(start, end, depth + 1)
                case 10:
                    read_tensor(wire, start, end)
                case 23:
                    read_sparse_tensor(wire, start, end)
                case 14 | 15:
                    wire.check(start, end, messages.TYPE)
                case 7 | 8:
                    wire.count(start, end, 4 if number == 7 else 0)  # noqa: PLR2004 - floats
                case _:
                    pass
        return tensor


def _value_name(wire: Wire, at: int, stop: int) -> bytes:
    name = b""
    for number, start, end in wire.fields(at, stop, messages.VALUE_INFO):
        if number == 1:
            name = wire.octets(start, min(end, start + (1 << 16)))
    return name


def _is_quantized(operator: str) -> bool:
    """Say whether an operator computes on, or makes, quantised numbers."""
    return (
        operator in _QUANTIZED_OPERATORS
        or operator.startswith(("QLinear", "DynamicQuantize"))
        or "QuantizeLinear" in operator
        or "Integer" in operator
    )
