from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.fakes.onnx_files import (
    ENTRY,
    GRAPH,
    OPSET,
    field,
    initializer,
    message,
    model,
    nested_graphs,
    nested_types,
    tensor,
    value,
)
from tests.fakes.real_files import real
from vision_o3.errors import UnsafeContentError
from vision_o3.formats.limits import Limits
from vision_o3.formats.onnx import inspect, read_header
from vision_o3.formats.protobuf import BYTES, Message, Wire
from vision_o3.schemas.facts import NEW_FACTS

STANDARD = {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training"}
DTYPES = sorted(set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED})
SMALL = {TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT4, TensorProto.INT4}
SMALL |= {TensorProto.UINT2, TensorProto.INT2}


def facts_of(content: bytes) -> dict[str, Any]:
    facts = inspect(io.BytesIO(content), len(content), Limits())
    NEW_FACTS.validate_python(facts)
    return facts


# What the library reports of a model, in the form of the facts.


def graphs_of(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from graphs_of(inner)


def inner_graphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nodes_of(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        yield node
        for graph in inner_graphs(node):
            yield from nodes_of(graph.node)


def value_of(info: Any) -> dict[str, Any]:
    told = info.type.tensor_type
    shape = None
    if told.HasField("shape"):
        shape = [
            dim.dim_param
            if dim.HasField("dim_param")
            else dim.dim_value
            if dim.HasField("dim_value") and dim.dim_value >= 0
            else None
            for dim in told.shape.dim
        ]
    dtype = helper.tensor_dtype_to_np_dtype(told.elem_type).name
    return {"name": info.name, "dtype": dtype, "shape": shape}


def reported(loaded: onnx.ModelProto) -> dict[str, Any]:
    graph = loaded.graph
    nodes = list(nodes_of(graph.node))
    for function in loaded.functions:
        nodes += nodes_of(function.node)
    weights = [t for g in graphs_of(graph) for t in g.initializer]
    weights += [s.values for g in graphs_of(graph) for s in g.sparse_initializer]
    constants = [
        attribute.t
        for node in nodes
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.HasField("t")
    ]
    held = {tensor.name for tensor in graph.initializer}
    operators = Counter(
        node.op_type if node.domain in STANDARD else f"{node.domain}:{node.op_type}"
        for node in nodes
    )
    return {
        "kind": "onnx",
        "ir_version": loaded.ir_version,
        "opset_import": {o.domain or "ai.onnx": o.version for o in loaded.opset_import},
        "producer_name": loaded.producer_name,
        "producer_version": loaded.producer_version,
        "domain": loaded.domain,
        "model_version": loaded.model_version,
        "graph_name": graph.name,
        "inputs": [value_of(info) for info in graph.input if info.name not in held],
        "outputs": [value_of(info) for info in graph.output],
        "operators": dict(operators),
        "node_count": len(nodes),
        "custom_domains": sorted({node.domain for node in nodes} - STANDARD),
        "parameters": sum(math.prod(t.dims) for t in weights + constants),
        "initializer_count": len(weights),
        "quantized": any(t.data_type in SMALL for t in weights + constants)
        or any("Quantize" in name or "QLinear" in name for name in operators),
        "metadata": {prop.key: prop.value[:200] for prop in loaded.metadata_props},
    }


# Models of all kinds, made by the library.


def info(name: str, shape: Any = (1,), dtype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def built(graph: Any, **kwargs: Any) -> onnx.ModelProto:
    kwargs.setdefault("opset_imports", [helper.make_opsetid("", 21)])
    made: onnx.ModelProto = helper.make_model(graph, ir_version=10, **kwargs)
    return made


def conv_net() -> onnx.ModelProto:
    weights = np.ones((8, 3, 3, 3), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["y"], ["z"]),
        ],
        "net",
        [info("x", ("batch", 3, None, 32)), info("w", (8, 3, 3, 3))],
        [info("z", ("batch", 8, None, 32)), info("y", None)],
        [
            numpy_helper.from_array(weights, "w"),
            helper.make_tensor("b", TensorProto.FLOAT, [8], [0.5] * 8),
        ],
        value_info=[info("y", ("batch", 8, None, 32))],
    )
    made = built(
        graph,
        producer_name="exporter",
        producer_version="2.1",
        domain="org.example",
        model_version=-3,
    )
    helper.set_model_props(made, {"author": "A. Person", "labels": "cat dog"})
    return made


def with_subgraphs() -> onnx.ModelProto:
    def branch(name: str, number: float) -> Any:
        constant = helper.make_tensor("c", TensorProto.FLOAT, [2], [number] * 2)
        node = helper.make_node("Constant", [], [name], value=constant)
        return helper.make_graph(
            [node], name, [], [info(name, (2,))], [numpy_helper.from_array(np.ones(5))]
        )

    body = helper.make_graph(
        [
            helper.make_node(
                "If",
                ["go"],
                ["o"],
                then_branch=branch("t", 1),
                else_branch=branch("e", 2),
            ),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [info("i", (), TensorProto.INT64), info("go", (), TensorProto.BOOL)],
        [info("go_on", (), TensorProto.BOOL), info("o", (2,))],
    )
    loop = helper.make_node("Loop", ["n", "c"], ["r"], body=body)
    graph = helper.make_graph(
        [loop],
        "outer",
        [info("n", (), TensorProto.INT64), info("c", (), TensorProto.BOOL)],
        [info("r", (None, 2))],
    )
    return built(graph)


def with_functions() -> onnx.ModelProto:
    function = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 21)],
        attribute_protos=[helper.make_attribute("alpha", 0.5)],
        value_info=[info("a")],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Twice", ["x"], ["y"], domain="local"),
            helper.make_node("Own", ["y"], ["z"], domain="com.acme"),
            helper.make_node("Scaler", ["z"], ["u"], domain="ai.onnx.ml", scale=[1.0]),
        ],
        "g",
        [info("x")],
        [info("u")],
    )
    names = [("", 21), ("local", 1), ("com.acme", 2), ("ai.onnx.ml", 3)]
    return built(
        graph,
        functions=[function],
        opset_imports=[helper.make_opsetid(*name) for name in names],
    )


def quantized() -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
        ],
        "q",
        [info("x")],
        [info("y")],
        [numpy_helper.from_array(np.array(0.1, np.float32), "s")],
    )
    return built(graph)


def with_small_weights() -> onnx.ModelProto:
    weights = [numpy_helper.from_array(np.ones(7, np.int8), "w")]
    return built(helper.make_graph([], "g", [], [], weights))


def with_sparse() -> onnx.ModelProto:
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("s", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
        helper.make_tensor("i", TensorProto.INT64, [3], [0, 7, 99]),
        [10, 10],
    )
    flat = helper.make_sparse_tensor(
        helper.make_tensor("f", TensorProto.FLOAT, [2], [1.0, 2.0]),
        helper.make_tensor("i", TensorProto.INT64, [2, 2], [0, 7, 1, 3]),
        [10, 10],
    )
    graph = helper.make_graph(
        [helper.make_node("Foo", [], ["y"], at=sparse, many=[sparse, flat])],
        "g",
        [],
        [info("y")],
        sparse_initializer=[sparse, flat],
    )
    return built(graph)


def with_attributes() -> onnx.ModelProto:
    texts: Any = [b"a", b"b"]
    small = helper.make_tensor("t", TensorProto.STRING, [2], texts)
    types = [helper.make_tensor_type_proto(1, [2])]
    node = helper.make_node(
        "Foo",
        ["x"],
        ["y"],
        name="n",
        doc_string="text",
        tensors=[small, small],
        graphs=[helper.make_graph([], "a", [], []), helper.make_graph([], "b", [], [])],
        types=types,
        one_type=types[0],
        numbers=[1, 2, -3],
        strings=["a", "b"],
    )
    node.metadata_props.add(key="namespace", value="layer1")
    device = node.device_configurations.add(configuration_id="c", pipeline_stage=1)
    sharding = device.sharding_spec.add(tensor_name="x", device=[0, 1])
    sharding.index_to_device_group_map.add(key=1, value=[0])
    sharding.sharded_dim.add(axis=0).simple_sharding.add(dim_value=2, num_shards=2)
    made = built(helper.make_graph([node], "g", [info("x")], [info("y")]))
    made.configuration.add(name="c", num_devices=2, device=["a", "b"])
    made.graph.metadata_props.add(key="k", value="v")
    annotation = made.graph.quantization_annotation.add(tensor_name="x")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    training = made.training_info.add()
    training.algorithm.CopyFrom(conv_net().graph)
    training.update_binding.add(key="a", value="b")
    return made


def without_shape() -> onnx.ModelProto:
    return built(helper.make_graph([], "g", [info("x", None)], [info("y", ())]))


MADE = [
    conv_net,
    with_subgraphs,
    with_functions,
    quantized,
    with_small_weights,
    with_sparse,
    with_attributes,
    without_shape,
]


@pytest.mark.parametrize("make", MADE)
def test_facts_are_what_the_library_reports(make: Any) -> None:
    made = make()
    assert facts_of(made.SerializeToString()) == reported(made)


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["onnx-cls", "onnx-det", "onnx-rec"])
def test_facts_of_real_models_are_what_the_library_reports(kind: str) -> None:
    path = real(kind)
    with path.open("rb") as file:
        facts = inspect(file, path.stat().st_size, Limits())
    expected = reported(onnx.load(path))
    long = expected["metadata"].pop("character", None)
    told = facts["metadata"].pop("character", None)
    assert facts == expected
    # A dictionary of one character a line, cut and on one line.
    assert long is None or told.startswith("".join(long.split("\n"))[:50])
    assert facts["parameters"] > 100_000


@pytest.mark.parametrize("dtype", DTYPES, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_every_type_of_element_is_measured(dtype: int, raw: bool, count: int) -> None:
    numbers: Any = [b"text"] * count
    if dtype == TensorProto.STRING:
        raw = False
    else:
        numbers = np.ones(count).astype(helper.tensor_dtype_to_np_dtype(dtype))
    if raw:
        made = numpy_helper.from_array(numbers, "w")
    else:
        made = helper.make_tensor("w", dtype, [count], numbers)
    graph = helper.make_graph([], "g", [info("x", (2,), dtype)], [], [made])
    content = built(graph).SerializeToString()
    facts = facts_of(content)
    assert facts["parameters"] == count
    assert facts["quantized"] == (dtype in SMALL)
    if dtype != TensorProto.STRING:
        assert (
            facts["inputs"][0]["dtype"] == helper.tensor_dtype_to_np_dtype(dtype).name
        )
    if count:
        made.dims[0] += 8
        graph = helper.make_graph([], "g", [], [], [made])
        with pytest.raises(ValueError, match="has not the data that its"):
            facts_of(built(graph).SerializeToString())


INT64 = TensorProto.INT64
FLOAT_TYPE = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])


@pytest.mark.parametrize(
    ("proto", "dtype", "shape"),
    [
        (helper.make_sequence_type_proto(FLOAT_TYPE), "sequence(float32)", None),
        (helper.make_optional_type_proto(FLOAT_TYPE), "optional(float32)", None),
        (helper.make_map_type_proto(INT64, FLOAT_TYPE), "map(int64, float32)", None),
        (
            helper.make_sequence_type_proto(helper.make_map_type_proto(8, FLOAT_TYPE)),
            "sequence(map(string, float32))",
            None,
        ),
        (helper.make_sparse_tensor_type_proto(1, [2, 3]), "sparse(float32)", [2, 3]),
        (onnx.TypeProto(), "unknown", None),
        (onnx.TypeProto(denotation="IMAGE"), "unknown", None),
        (onnx.TypeProto(tensor_type={}), "unknown", None),
        (onnx.TypeProto(sequence_type={}), "sequence(unknown)", None),
        (onnx.TypeProto(map_type={}), "map(unknown, unknown)", None),
        (onnx.TypeProto(opaque_type={"name": "a"}), "opaque", None),
        (onnx.TypeProto(tensor_type={"elem_type": 99}), "type 99", None),
        (onnx.TypeProto(tensor_type={"shape": {"dim": [{}]}}), "unknown", [None]),
    ],
)
def test_types_of_values_have_names(proto: Any, dtype: str, shape: Any) -> None:
    graph = helper.make_graph([], "g", [helper.make_value_info("x", proto)], [])
    expected = {"name": "x", "dtype": dtype, "shape": shape}
    assert facts_of(built(graph).SerializeToString())["inputs"] == [expected]


def test_a_value_may_have_no_type() -> None:
    content = model(message((2, b"g"), (12, message((1, b"y")))))
    expected = {"name": "y", "dtype": "unknown", "shape": None}
    assert facts_of(content)["outputs"] == [expected]


def test_long_lists_are_cut_and_counted() -> None:
    inputs = [info(f"x{number}") for number in range(300)]
    nodes = [helper.make_node(f"Op{number}", [], []) for number in range(300)]
    weights = [helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0])] * 300
    made = built(helper.make_graph(nodes, "g", inputs, inputs, weights))
    helper.set_model_props(made, {f"key{number}": "v" for number in range(300)})
    facts = facts_of(made.SerializeToString())
    assert len(facts["inputs"]) == len(facts["outputs"]) == 200
    assert len(facts["operators"]) == 200
    assert (facts["node_count"], facts["initializer_count"]) == (300, 300)
    assert len(facts["metadata"]) == 50


def external(name: str = "w", location: str = "weights.bin") -> Any:
    made = TensorProto(name=name, dims=[2], data_type=1)
    made.external_data.add(key="offset", value="0")
    made.external_data.add(key="location", value=location)
    made.external_data.add(key="length", value="8")
    made.data_location = TensorProto.EXTERNAL
    return made


def holding(place: str) -> onnx.ModelProto:  # noqa: C901 - a case for each place
    """A model with an external tensor in one of the places that can have one."""
    outside = external()
    node = helper.make_node("Constant", [], ["y"], value=outside)
    graph = helper.make_graph([], "g", [], [])
    made = built(graph)
    inside = helper.make_tensor("i", INT64, [2], [0, 1])
    match place:
        case "initializer":
            made.graph.initializer.append(outside)
        case "sparse values":
            made.graph.sparse_initializer.add(values=outside, indices=inside, dims=[4])
        case "sparse indices":
            made.graph.sparse_initializer.add(values=inside, indices=outside, dims=[4])
        case "constant":
            made.graph.node.append(node)
        case "attribute":
            made.graph.node.append(
                helper.make_node("Op", [], [], list=[inside, outside])
            )
        case "sparse attribute":
            sparse = helper.make_sparse_tensor(inside, inside, [4])
            made.graph.node.append(helper.make_node("Op", [], [], one=sparse))
            made.graph.node[0].attribute[0].sparse_tensor.values.CopyFrom(outside)
        case "subgraph":
            inner = helper.make_graph([node], "inner", [], [])
            made.graph.node.append(helper.make_node("If", [], [], then_branch=inner))
        case "subgraphs":
            inner = helper.make_graph([], "inner", [], [], [outside])
            made.graph.node.append(helper.make_node("Op", [], [], many=[inner]))
        case "function":
            names = [helper.make_opsetid("", 21)]
            made.functions.append(helper.make_function("l", "F", [], [], [node], names))
        case "default of a function":
            made.functions.add(name="F").attribute_proto.add(name="a", t=outside)
        case "training":
            made.training_info.add().initialization.initializer.append(outside)
        case _:
            made.training_info.add().algorithm.node.append(node)
    return made


@pytest.mark.parametrize(
    "place",
    [
        "initializer",
        "sparse values",
        "sparse indices",
        "constant",
        "attribute",
        "sparse attribute",
        "subgraph",
        "subgraphs",
        "function",
        "default of a function",
        "training",
        "training node",
    ],
)
def test_data_in_another_file_are_refused_wherever_they_are(place: str) -> None:
    content = holding(place).SerializeToString()
    with pytest.raises(UnsafeContentError, match=r"'w' .* 'weights\.bin'") as caught:
        facts_of(content)
    assert "onnx.save" in caught.value.message
    assert len(caught.value.values["findings"]) == 1


@pytest.mark.parametrize(
    "fields",
    [
        ((14, 1),),
        ((13, message((1, b"location"), (2, b"../../etc/passwd"))), (9, bytes(8))),
        ((9, bytes(8)), (14, 1), (14, 0)),
        ((13, b""), (9, bytes(8))),
    ],
)
def test_any_sign_of_another_file_is_enough(fields: Any) -> None:
    with pytest.raises(UnsafeContentError, match="no file outside is ever read"):
        facts_of(model(initializer((2,), 1, *fields)))


def test_a_model_saved_in_two_files_is_refused(tmp_path: Path) -> None:
    made = conv_net()
    path = tmp_path / "m.onnx"
    onnx.save(
        made, path, save_as_external_data=True, location="m.data", size_threshold=0
    )
    with path.open("rb") as file, pytest.raises(UnsafeContentError, match=r"'m\.data'"):
        inspect(file, path.stat().st_size, Limits())
    onnx.save(onnx.load(path), path, save_as_external_data=False)
    assert facts_of(path.read_bytes()) == reported(conv_net())


DATA = (9, bytes(8))


def attribute(*fields: Any) -> bytes:
    """A graph with one node that has an attribute."""
    return field(1, message((4, b"Op"), (5, message(*fields))))


LONG_VARINT = b"\x3a" + b"\xff" * 10 + b"\1"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (model(GRAPH, (7, GRAPH)), "has field 7 twice"),
        (model() + b"\x4b\x4c", "not a protocol buffer"),  # a group
        (model() + field(9, 1), "no such field 9"),
        (model() + b"\x02\x00", "no such field 0"),
        (model(b"\x02\x00"), "not a protocol buffer"),
        (model(b"\xfa\xff\xff\xff\xff\x01\x00"), "not a protocol buffer"),
        (model(field(1, 7)), "a graph has no such field 1"),
        (LONG_VARINT, "not a protocol buffer"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "longer than what holds it"),
        (b"\x3a\xff\xff\xff\xff\x07", "longer than what holds it"),
        (model(b"\x2d\0\0"), "longer than what holds it"),
        (b"\x08", "cut short"),
        (b"", "nothing in it"),
        (message((1, 8), (8, OPSET)), "an IR version and a graph"),
        (message((1, 8), (7, b""), (8, OPSET)), "an IR version and a graph"),
        (message((1, 0), (7, GRAPH), (8, OPSET)), "an IR version and a graph"),
        (message((1, -1), (7, GRAPH), (8, OPSET)), "an IR version and a graph"),
        (message((1, 3), (7, GRAPH)), "names none"),
        (message((1, 3), (7, GRAPH), (8, b"")), "an opset has no version"),
        (message((1, 3), (7, GRAPH), (8, field(2, 1001))), "an opset has no version"),
        (
            model(
                GRAPH, *((8, message((1, b"%d" % n), (2, 1))) for n in range(100))
            ),
            "more than 100 opsets",
        ),
        (model(GRAPH, *(((14, ENTRY),) * 100_001)), "more than 100000 parts"),
        (model(GRAPH, (2, b"\xff")), "not UTF-8"),
        (model(GRAPH, (14, field(3, ENTRY) + b"\x0a\x09")), "longer than what holds"),
        (model(GRAPH, *(((14, ENTRY),) * 60), (14, b"\x08\1")), "no such field 1"),
        (model(GRAPH, (26, b"\x0a\x09")), "longer than what holds it"),
        (model(initializer((-1,), 1)), "negative dimension"),
        (model(initializer((0, -1), 1)), "negative dimension"),
        (model(initializer((1 << 62, 2), 1, DATA)), "more elements"),
        (model(initializer((1 << 62, 2, 0), 1)), None),
        (model(initializer((1,) * 65, 1, DATA)), "more than 64 dimensions"),
        (model(initializer((), 1, (1, b"\1" * 65), DATA)), "more than 64"),
        (model(initializer((), 1, (1, b"\2\xff"), DATA)), "cut short"),
        (model(initializer((), 1, (1, b"\2"), DATA)), None),
        (model(initializer((2,), 0, DATA)), "has no type"),
        (model(initializer((2,), 99, DATA)), None),
        (model(initializer((2,), 1)), "has not the data"),
        (model(initializer((2,), 1, (9, bytes(7)))), "has not the data"),
        (model(initializer((2,), 1, (9, bytes(9)))), "has not the data"),
        (model(initializer((2,), 1, DATA, (4, bytes(8)))), "has not the data"),
        (model(initializer((2,), 1, (9, bytes(3)), DATA)), None),  # the last counts
        (model(initializer((2,), 1, (4, bytes(8)))), None),
        (model(initializer((2,), 1, (4, bytes(7)))), "ends within one"),
        (model(initializer((2,), 1, (7, b"\1\1"))), "has not the data"),
        (model(initializer((2,), 7, (7, b"\1\1"))), None),
        (model(initializer((2,), 7, (7, 1), (7, -1))), None),
        (model(initializer((2,), 7, (7, 1), (7, b""), (7, b"\xff\1"))), None),
        (model(initializer((2,), 7, (7, b"\1\xff"))), "ends within one"),
        (model(initializer((1,), 7, (7, b"\xff" * 10 + b"\1"))), "not a protocol"),
        (model(initializer((2,), 8, (6, b"a"), (6, b"b"))), None),
        (model(initializer((2,), 8, (6, b"a"))), "has not the data"),
        (model(initializer((2,), 8, DATA)), "has not the data"),
        (model(initializer((2,), 1, DATA, (3, b""))), "no such field 3"),
        (model(initializer((2,), 1, DATA, (16, b"\x0a\x09"))), "longer than what"),
        (model(initializer((2,), 1, DATA, (99, b"new"))), None),
        (model(field(15, b"")), "no values"),
        (model(field(15, field(1, tensor((1,), 1, (9, bytes(4)))))), "one index"),
        (
            model(
                field(
                    15,
                    message(
                        (1, tensor((2,), 1, DATA)),
                        (2, tensor((2,), 7, (7, b"\0\1"))),
                        (3, 1),
                    ),
                )
            ),
            "one index",
        ),
        (model(field(15, message((1, b""), (1, b"")))), "has no type"),
        (model(field(1, b"")), "a node has no operator"),
        (model(field(1, message((4, b"A"), (9, b"\x0a\x09")))), "longer than what"),
        (model(field(1, message((4, b"\xff")))), "not UTF-8"),
        (model(attribute((7, bytes(7)))), "ends within one"),
        (model(attribute((7, bytes(8)))), None),
        (model(attribute((8, b"\1\xff"))), "ends within one"),
        (model(attribute((8, b"\1\1"), (8, 1))), None),
        (model(attribute((6, GRAPH), (6, GRAPH))), "has field 6 twice"),
        (
            model(field(1, message((4, b"A"), (10, field(2, field(2, b"\xff")))))),
            "ends within one",
        ),
        (
            model(b"".join(field(1, field(4, b"%d" % n)) for n in range(10_001))),
            "more than 10000 types",
        ),
        (model(field(11, value((1, b""), (1, b"")))), "has field 1 twice"),
        (model(field(11, value((1, b""), (4, b"")))), "two types"),
        (model(field(13, value((1, b"\x12\x09")))), "longer than what holds it"),
        (model(field(11, value((1, field(2, field(1, b"") * 65))))), "more than 64"),
        (model(field(11, message((2, nested_types(17))))), "nested too deeply"),
        (model(field(13, message((2, nested_types(60))))), "nested too deeply"),
        (model(nested_graphs(32)), None),
        (model(nested_graphs(33)), "nested too deeply"),
        (model(nested_graphs(3_000)), "nested too deeply"),
        (model(field(10, b"") * 1_000_000), None),
        (model(field(5, b"") * 10), "has no type"),
        (
            model(field(5, tensor((0,), 1, name=b"n" * 65_000)) * 1_100),
            "names of its inputs and initializers",
        ),
    ],
    ids=lambda part: part if isinstance(part, str) else "model",
)  # fmt: skip
def test_hostile_models(content: bytes, said: str | None) -> None:
    if said is None:
        facts_of(content)
        return
    with pytest.raises(ValueError, match=said):
        facts_of(content)


def test_functions_and_training_are_walked() -> None:
    for fields in ((25, field(7, b"")), (20, field(1, field(1, b"")))):
        with pytest.raises(ValueError, match="a node has no operator"):
            facts_of(model(GRAPH, fields))
    for fields in ((25, field(9, b"\x0a\x09")), (20, field(3, b"\x0a\x09"))):
        with pytest.raises(ValueError, match="longer than what holds it"):
            facts_of(model(GRAPH, fields))
    more = (25, field(99, b"")), (20, field(99, b""))
    assert facts_of(model(GRAPH, *more))["node_count"] == 0


def test_fields_newer_than_this_reader_are_skipped_within_messages() -> None:
    new = (99, b"new")
    tensor_type = message((1, 1), (2, message((1, message((1, 8), new)), new)), new)
    sequence = message((1, message((1, tensor_type), new)), new)
    mapping = message((1, 7), (2, message((1, tensor_type), new)), new)
    types = ((1, tensor_type), (4, sequence), (5, mapping))
    weights = tensor((2,), 1, DATA, new)
    sparse = message((1, weights), (2, tensor((2,), 7, (7, b"\0\1"))), (3, 2), new)
    node = message((4, b"Op"), (5, message((5, weights), new)), new)
    graph = message(
        (1, node),
        (5, weights),
        (15, sparse),
        *(
            (11, message((1, b"%d" % kind), (2, field(kind, of)), new))
            for kind, of in types
        ),
        new,
    )
    content = model(
        graph, (8, message((2, 1), (1, b"d"), new)), (14, ENTRY + field(*new))
    )
    facts = facts_of(content)
    assert [told["dtype"] for told in facts["inputs"]] == [
        "float32",
        "sequence(float32)",
        "map(int64, float32)",
    ]
    assert facts["inputs"][0]["shape"] == [8]
    assert (facts["parameters"], facts["metadata"]) == (4, {"key": "value"})


def test_parameters_stay_a_count_that_can_be_stored() -> None:
    # Types that are not known here have no known length, so the shape alone tells.
    huge = field(5, tensor((1 << 62,), 99)) * 3
    assert facts_of(model(huge))["parameters"] == 2**63 - 1


def test_weights_are_never_read(tmp_path: Path) -> None:
    size = 4 << 30
    raw = b"\x4a" + b"\x80\x80\x80\x80\x10"  # field 9 of 4 GiB
    graph_end = message((8, b"w"))
    head = message((1, size // 4), (2, 1)) + raw
    length = len(head) + size + len(graph_end)

    def prefixed(number: int, length: int) -> bytes:
        return field(number, b"")[:-1] + field(1, length)[1:]

    start = prefixed(5, length) + head
    start = message((1, 8), (8, OPSET)) + prefixed(7, len(start) + size + 3) + start
    path = tmp_path / "m.onnx"
    with path.open("wb") as writer:
        writer.write(start)
        writer.seek(size, io.SEEK_CUR)  # a hole: it takes no room
        writer.write(graph_end)
    with path.open("rb") as file:
        facts = inspect(file, path.stat().st_size, Limits())
    assert facts["parameters"] == 1 << 30


SMALL_MODEL = conv_net().SerializeToString()
SMALL_MODELS = [make().SerializeToString() for make in MADE]


def refused_or_inspected(content: bytes) -> bool:
    try:
        facts_of(content)
    except (ValueError, UnsafeContentError):
        return False
    return True


@pytest.mark.parametrize("content", SMALL_MODELS, ids=[make.__name__ for make in MADE])
def test_no_truncation_is_another_model(content: bytes) -> None:
    # Cut at the end of a field, what is left is a message, which may be whole.
    whole = {
        size for size in range(len(content)) if refused_or_inspected(content[:size])
    }
    assert len(whole) <= 12
    for size in whole:
        onnx.load_from_string(content[:size])


@given(st.binary(max_size=300))
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
def test_any_bytes_are_inspected_or_refused(content: bytes) -> None:
    refused_or_inspected(content)


@given(st.binary(max_size=300))
def test_any_graph_is_inspected_or_refused(graph: bytes) -> None:
    refused_or_inspected(model(graph))


@given(st.data())
def test_any_damage_is_inspected_or_refused(draw: st.DataObject) -> None:
    content = bytearray(draw.draw(st.sampled_from(SMALL_MODELS)))
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(content) - 1))
        content[at] = draw.draw(st.integers(0, 255))
    refused_or_inspected(bytes(content))


def test_header_is_read_without_the_graph() -> None:
    content = model(b"not a graph", (2, b"exporter"))
    header = read_header(io.BytesIO(content), len(content))
    assert header["producer_name"] == "exporter"
    assert header["opset_import"] == {"ai.onnx": 17}
    with pytest.raises(ValueError, match="not a protocol buffer"):
        read_header(io.BytesIO(b"text that is no model"), 21)


def test_fields_are_bounded_in_all_not_each_message() -> None:
    inner = Message("a message", {1: BYTES})
    outer = Message("a message", {1: BYTES}, {1: inner})
    content = field(1, field(1, b"") * 9) * 10
    Wire(content, 100).check(0, len(content), outer)
    with pytest.raises(ValueError, match="more than 99 fields"):
        Wire(content, 99).check(0, len(content), outer)
    content = model(GRAPH, *(((14, ENTRY),) * 99_998))
    with pytest.raises(ValueError, match="more than 100000 fields"):
        read_header(io.BytesIO(content), len(content))


def test_a_file_that_is_shorter_than_said_is_refused() -> None:
    with pytest.raises(ValueError, match="cut short"):
        inspect(io.BytesIO(SMALL_MODEL), len(SMALL_MODEL) + 1, Limits())
