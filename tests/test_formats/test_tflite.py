from __future__ import annotations

import io
import struct
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tflite as library  # type: ignore[import-untyped] # it has no types
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import model_files
from tests.fakes.real_files import real
from tests.fakes.tflite_files import (
    Repeated,
    Scalar,
    Scalars,
    appended,
    code,
    file_of,
    flatbuffer,
    graph,
    int32,
    int32s,
    metadata,
    model,
    operator,
    quantization,
    tensor,
    uint32,
    with_metadata,
)
from vision_o3.formats.limits import Limits
from vision_o3.formats.tflite import inspect
from vision_o3.schemas.facts import NEW_FACTS


def facts_of(content: bytes) -> dict[str, Any]:
    facts = inspect(io.BytesIO(content), len(content), Limits())
    NEW_FACTS.validate_python(facts)
    return facts


# What the library's generated reader reports, in the form of the facts.

NAMES = {
    number: name
    for name, number in vars(library.BuiltinOperator).items()
    if not name.startswith("_")
}
TYPES = {
    number: name.lower()
    for name, number in vars(library.TensorType).items()
    if not name.startswith("_")
}


def names_of(loaded: Any) -> list[str]:
    names = []
    for index in range(loaded.OperatorCodesLength()):
        told = loaded.OperatorCodes(index)
        number = max(told.DeprecatedBuiltinCode(), told.BuiltinCode())
        names.append(
            told.CustomCode().decode() if NAMES[number] == "CUSTOM" else NAMES[number]
        )
    return names


def value_of(told: Any) -> dict[str, Any]:
    shape = told.ShapeSignatureAsNumpy()
    if not told.ShapeSignatureLength():
        shape = told.ShapeAsNumpy()
    quantized = told.Quantization()
    given_scale = quantized is not None and quantized.ScaleLength()
    return {
        "name": told.Name().decode(),
        "dtype": TYPES[told.Type()],
        "shape": [int(dim) if dim >= 0 else None for dim in np.atleast_1d(shape)],
        "quantization": {
            "scale": quantized.Scale(0),
            "zero_point": quantized.ZeroPoint(0),
            "channels": quantized.ScaleLength(),
        }
        if given_scale
        else None,
    }


def reported(content: bytes) -> dict[str, Any]:
    loaded = library.Model.GetRootAs(content)
    names = names_of(loaded)
    graphs = [loaded.Subgraphs(i) for i in range(loaded.SubgraphsLength())]
    tensors = [g.Tensors(i) for g in graphs for i in range(g.TensorsLength())]
    constants = [t for t in tensors if loaded.Buffers(t.Buffer()).DataLength()]
    by_buffer = {t.Buffer(): t for t in constants}
    operators = [
        names[g.Operators(i).OpcodeIndex()]
        for g in graphs
        for i in range(g.OperatorsLength())
    ]
    custom = {name for name in names if name not in NAMES.values()}
    first = graphs[0]
    return {
        "kind": "tflite",
        "schema_version": loaded.Version(),
        "description": loaded.Description().decode(),
        "inputs": [
            value_of(first.Tensors(first.Inputs(i)))
            for i in range(first.InputsLength())
        ],
        "outputs": [
            value_of(first.Tensors(first.Outputs(i)))
            for i in range(first.OutputsLength())
        ],
        "operators": dict(Counter(operators)),
        "operator_count": len(operators),
        "custom_operators": sorted(n for n in custom if not n.startswith("Flex")),
        "flex_operators": sorted(n for n in custom if n.startswith("Flex")),
        "subgraphs": len(graphs),
        "tensor_count": len(tensors),
        "parameters": sum(
            int(np.prod(t.ShapeAsNumpy(), dtype=np.int64)) for t in by_buffer.values()
        ),
        "quantized": any(
            TYPES[t.Type()] in {"int8", "uint8", "int16", "int4"}
            and t.Quantization() is not None
            and t.Quantization().ScaleLength() > 0
            for t in constants
        ),
    }


def network() -> bytes:
    per_channel = quantization([0.1, 0.2, 0.3], [0, 0, 0])
    tensors = [
        tensor("x", (1, 8, 8, 1), 9, f4=quantization(), f7=int32s(-1, 8, 8, 1)),
        tensor("w", (3, 2, 2, 1), 9, 1, f4=per_channel),
        tensor("b", (3,), 2, 2, f4={2: Scalars("Float32", []), 6: int32(0)}),
        tensor("y", (1, 8, 8, 3)),
        tensor("w again", (12,), 9, 1),
        tensor("z", (2, 5), f9=[{0: int32s(1), 1: Scalar("Int8", 0)}]),
    ]
    calls = [
        operator(0, (0, 1, 2), (3,))
        | {4: {0: Scalar("Int8", 1)}, 3: Scalar("Uint8", 1)},
        operator(1, (3, -1), (5,)) | {5: b"options", 7: b"\1", 8: int32s()},
        operator(2, (3,), (5,)),
        operator(2, (3,), (5,)),
        operator(3, (3,), (5,)) | {12: {}},
    ]
    second = graph([tensor("s", (), 2, 3)], [operator(4, (), (0,))])
    signature = {
        0: [{0: "image", 1: uint32(0)}],
        1: [{0: "scores", 1: uint32(5)}],
        2: "serving_default",
    }
    return model(
        graph(tensors, calls, (0,), (3, 5)),
        second,
        codes=[
            code(3),
            code(32, "TFLite_Detection_PostProcess"),
            code(32, "FlexErf"),
            code(206),
            code(118),
            code(32, "Unused"),
        ],
        buffers=(b"", bytes(12), bytes(12), bytes(4)),
        f5=int32s(0),
        f7=[signature],
    )


def test_facts_are_what_the_library_reports() -> None:
    content = network()
    facts = facts_of(content)
    assert facts == reported(content) | {
        "metadata": {},
        "labels": [],
        "label_count": 0,
    }
    assert facts["flex_operators"] == ["FlexErf"]
    assert facts["custom_operators"] == ["TFLite_Detection_PostProcess", "Unused"]
    assert facts["operators"]["FlexErf"] == 2
    assert facts["inputs"][0]["shape"] == [None, 8, 8, 1]
    assert facts["parameters"] == 12 + 3 + 1
    assert facts["quantized"]


@pytest.mark.integration
def test_facts_of_a_real_model_are_what_the_library_reports() -> None:
    path = real("tflite")
    with path.open("rb") as file:
        facts = inspect(file, path.stat().st_size, Limits())
    assert facts.pop("metadata") == {"min_runtime_version": "2.4.0"}
    assert (facts.pop("labels"), facts.pop("label_count")) == ([], 0)
    assert facts == reported(path.read_bytes())
    assert facts["parameters"] > 50_000


@pytest.mark.integration
def test_truncations_of_a_real_model_are_refused() -> None:
    content = real("tflite").read_bytes()
    sizes = {*range(0, len(content), 997), *range(len(content) - 50, len(content))}
    for size in sizes:
        with pytest.raises(ValueError, match=r"."):
            facts_of(content[:size])


@pytest.mark.parametrize("number", sorted(NAMES))
def test_builtin_operators_have_the_names_of_the_schema(number: int) -> None:
    content = model(graph([tensor("x")], [operator(0)]), codes=[code(number)])
    assert facts_of(content)["operators"] == {NAMES[number]: 1}


def test_newer_operators_and_types_are_told_by_number() -> None:
    tensors = [tensor("x", (2,), 77, 1)]
    content = model(
        graph(tensors, [operator(0), operator(1)], (0,)),
        codes=[code(209), {3: int32(-5), 0: Scalar("Int8", -3)}],
        buffers=(b"", bytes(9)),
    )
    facts = facts_of(content)
    assert facts["operators"] == {"BUILTIN_-3": 1, "BUILTIN_209": 1}
    assert facts["inputs"][0]["dtype"] == "type 77"
    assert facts["parameters"] == 2


@pytest.mark.parametrize("number", sorted(TYPES))
def test_every_type_of_element_is_measured(number: int) -> None:
    name = TYPES[number]
    bits = {"bool": 8, "int4": 4, "bfloat16": 16}.get(name, 0)
    if not bits and name not in {"string", "resource", "variant"}:
        bits = np.dtype(name).itemsize * 8
    buffers = (b"", bytes(5 * bits // 8 + bool(5 * bits % 8)) or bytes(40))
    content = model(graph([tensor("w", (5,), number, 1)], (), (0,)), buffers=buffers)
    facts = facts_of(content)
    assert facts["parameters"] == 5
    assert facts["inputs"][0]["dtype"] == name
    if bits:
        content = model(graph([tensor("w", (9,), number, 1)]), buffers=buffers)
        with pytest.raises(ValueError, match=f"its 9 elements of {name} take"):
            facts_of(content)


@pytest.mark.parametrize(
    ("told", "shape"),
    [
        (tensor("x", (1, 2)), [1, 2]),
        (tensor("x", ()), []),
        (tensor("x", (1, -1)), [1, None]),
        (tensor("x", (1, 1), f7=int32s(-1, 5)), [None, 5]),
        (tensor("x", (1, 1), f7=int32s()), [1, 1]),
        ({3: "x"}, None),
        ({3: "x", 8: Scalar("Bool", 1)}, []),
    ],
)
def test_shapes_are_as_exported(told: Any, shape: Any) -> None:
    assert facts_of(model(graph([told], (), (0,))))["inputs"][0]["shape"] == shape


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, None),
        ({2: Scalars("Float32", [])}, None),
        ({2: Scalars("Float32", [0.5])}, (0.5, 0, 1)),
        (quantization([0.5, 1.5], [7, 8]), (0.5, 7, 2)),
        ({2: Scalars("Float32", [2.0]), 3: Scalars("Int64", [])}, (2.0, 0, 1)),
    ],
)
def test_quantization_is_told(told: Any, expected: Any) -> None:
    facts = facts_of(model(graph([tensor("x", f4=told)], (), (0,))))
    found = facts["inputs"][0]["quantization"]
    assert (found and tuple(found.values())) == expected


def test_sparse_weights_count_as_they_are_stored() -> None:
    sparsity = {0: int32s(0), 2: [{0: Scalar("Int8", 1), 3: {0: int32s(0, 2)}}]}
    content = model(
        graph([tensor("w", (100,), 0, 1, f6=sparsity)]), buffers=(b"", bytes(12))
    )
    assert facts_of(content)["parameters"] == 3


def test_buffers_may_be_behind_the_flatbuffer(tmp_path: Path) -> None:
    def built(offset: int, size: int) -> bytes:
        behind = {1: Scalar("Uint64", offset), 2: Scalar("Uint64", size)}
        return model(graph([tensor("w", (4,), 0, 1)]), buffers=(b"", behind))

    start = len(built(2**40, 16))
    content = built(start, 16)
    path = tmp_path / "m.tflite"
    path.write_bytes(content + bytes(16))
    with path.open("rb") as file:
        assert inspect(file, start + 16, Limits())["parameters"] == 4
    with pytest.raises(ValueError, match="ends behind the file"):
        facts_of(content + bytes(15))
    with pytest.raises(ValueError, match="ends behind the file"):
        facts_of(built(2**63, 2**63))
    assert facts_of(built(1, 16))["parameters"] == 0


def test_long_lists_are_cut_and_counted() -> None:
    tensors = [tensor(f"t{number}") for number in range(300)]
    codes = [code(32, f"Op{number}") for number in range(300)]
    calls = [operator(number) for number in range(300)]
    facts = facts_of(model(graph(tensors, calls, range(300)), codes=codes))
    assert len(facts["inputs"]) == len(facts["operators"]) == 200
    assert len(facts["custom_operators"]) == 200
    assert (facts["operator_count"], facts["tensor_count"]) == (300, 300)


LABELS = "cat\r\ndog\n\nfür\n\n".encode()
FACTS = {
    "name": "Classifier",
    "description": "Tells cats from dogs",
    "version": "v1",
    "author": "A. Person",
    "license": "Apache-2.0",
    "min_runtime_version": "1.14.0",
}


@pytest.mark.parametrize("where", ["outputs", "inputs", "graph", "model"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("relative", [False, True])
def test_metadata_and_labels_are_read(where: str, method: int, relative: bool) -> None:
    files = {"other.txt": b"no", "labels.txt": LABELS}
    content = with_metadata(metadata([file_of("labels.txt")], where))
    if relative:
        content += appended(b"", files, method)
    else:
        content = appended(content, files, method)
    facts = facts_of(content)
    assert facts["metadata"] == FACTS
    assert facts["labels"] == ["cat", "dog", "", "für"]
    assert facts["label_count"] == 4


@pytest.mark.parametrize(
    ("files", "packed", "labels"),
    [
        ([], {"labels.txt": b"cat"}, []),
        ([file_of("labels.txt", 0)], {"labels.txt": b"cat"}, []),
        ([file_of("labels.txt", 3)], {"labels.txt": b"cat"}, ["cat"]),
        ([file_of("l.txt")], {"labels.txt": b"cat"}, []),
        ([file_of("a"), file_of("b")], {"b": b"cat", "a": b"dog"}, ["dog"]),
        ([file_of("a"), file_of("b")], {"a": bytes(1 << 20) + b"x", "b": b"c"}, ["c"]),
        ([file_of("a")], {"a": b" \n "}, []),
        ([file_of("a")], {"a": b"\xff\n\x07b"}, ["�", "b"]),
    ],
)
def test_only_files_of_labels_are_labels(files: Any, packed: Any, labels: Any) -> None:
    facts = facts_of(appended(with_metadata(metadata(files)), packed))
    assert facts["labels"] == labels
    assert facts["label_count"] == len(labels)


def test_many_labels_are_cut_and_counted() -> None:
    labels = "\n".join(f"label {number}" for number in range(1001)).encode()
    content = with_metadata(metadata([file_of("l")]))
    facts = facts_of(appended(content, {"l": labels}))
    assert facts["label_count"] == 1001
    assert facts["labels"] == [f"label {number}" for number in range(200)]


def changed(content: bytes, signature: bytes, at: int, new: bytes) -> bytes:
    """The content with bytes changed after the last signature of this kind."""
    place = content.rindex(signature) + at
    return content[:place] + new + content[place + len(new) :]


PACKED = appended(with_metadata(metadata([file_of("l")])), {"l": b"cat\n" * 99})
ENTRY, LOCAL, END = b"PK\1\2", b"PK\3\4", b"PK\5\6"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (PACKED[:-1] + b"\1", None),
        (PACKED[:-30], "missing, as if it were cut short"),
        (PACKED[:-3], "missing, as if it were cut short"),
        (changed(PACKED, END, 12, struct.pack("<I", 1 << 21)), "is damaged"),
        (changed(PACKED, END, 12, struct.pack("<I", 1 << 20)), "is damaged"),
        (changed(PACKED, END, 12, b"\1"), "is damaged"),
        (changed(PACKED, END, 16, b"\xff\xff\xff\xff"), "is damaged"),
        (changed(PACKED, ENTRY, 0, b"KP"), "is damaged"),
        (changed(PACKED, ENTRY, 28, b"\xff\xff"), None),  # another name
        (changed(PACKED, ENTRY, 16, b"\0\0\0\0"), "is damaged"),  # CRC
        (changed(PACKED, ENTRY, 10, b"\0"), "is damaged"),  # not stored
        (changed(PACKED, ENTRY, 24, b"\1"), "is damaged"),  # size
        (changed(PACKED, ENTRY, 42, b"\xff\xff\xff\xff"), "is damaged"),
        (changed(PACKED, LOCAL, 0, b"KP"), "is damaged"),
        (changed(PACKED, LOCAL, 31, b"\xff\xff\xff"), "is damaged"),
        (changed(PACKED, ENTRY, 10, b"\x0e"), None),  # LZMA
        (changed(PACKED, ENTRY, 8, b"\1"), None),  # encrypted
        (changed(PACKED, b"M001", 0, b"M002"), "identifier is not M001"),
        (with_metadata(b"M001"), "cut short"),
        (with_metadata(metadata([file_of("l")] * 1001)), "more than 1000 files"),
        (with_metadata(flatbuffer({0: "Name alone"}, b"M001")), None),
        (
            model(graph(), f6=[{0: "TFLITE_METADATA", 1: uint32(9)}]),
            "a buffer that does not exist",
        ),
        (
            model(graph(), f6=[{0: f"{number}"} for number in range(201)]),
            "more than 200 entries",
        ),
    ],
    ids=lambda part: part if isinstance(part, str) else "model",
)
def test_hostile_metadata(content: bytes, said: str | None) -> None:
    if said is None:
        assert facts_of(content)["label_count"] in {0, 99}
        return
    with pytest.raises(ValueError, match=said):
        facts_of(content)


X = tensor("x")
NAN = {2: Scalars("Float32", [float("nan")])}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "nothing in it"),
        (b"\x14\0\0\0TFL", "cut short"),
        (b"\x14\0\0\0TFL2" + bytes(50), "identifier is not TFL3"),
        (b"\x14\0\0\0TFL3", "leads out of it"),
        (b"\0\0\0\0TFL3" + bytes(50), "leads nowhere"),
        (b"\x15\0\0\0TFL3" + bytes(50), "between two places"),
        (b"\xff\xff\xff\xffTFL3" + bytes(50), "leads out of it"),
        (b"\x14\0\0\0TFL3" + bytes(50), "not laid out"),
        (model(graph(), f0=uint32(2)), "version is 2, not 3"),
        (flatbuffer({2: [graph()]}, b"TFL3"), "version is 0, not 3"),
        (flatbuffer({0: uint32(3)}, b"TFL3"), "has no graph"),
        (flatbuffer({0: uint32(3), 2: []}, b"TFL3"), "has no graph"),
        (flatbuffer({0: uint32(3), 2: [{0: [{}]}]}, b"TFL3"), None),
        (model(graph([X], [operator(0)])), "of a type that the model does not have"),
        (model(graph([X], [operator(0, (1,))]), codes=[code(0)]), "tensor that does"),
        (model(graph([X], [operator(0, (-2,))]), codes=[code(0)]), "tensor that does"),
        (model(graph([X], (), (1,))), "tensor that does not exist"),
        (model(graph([X], (), (), (-2,))), "tensor that does not exist"),
        (model(graph([X], (), (-1,))), None),
        (model(graph([tensor("x", (2,), 0, 1)])), "buffer that does not exist"),
        (model(graph([tensor("x", (2,), 0, -1 % 2**32)])), "buffer that does not"),
        (model(graph([tensor("x", (-1,), 0, 0)]), buffers=(b"1",)), "negative dim"),
        (model(graph([tensor("x", (1,) * 65)], (), (0,))), "more than 64 numbers"),
        (model(graph([tensor("x", f4=NAN)], (), (0,))), "is not a number"),
        (
            model(graph([X], [operator(0, (0,) * 100_001)]), codes=[code(0)]),
            "more than 100000 numbers",
        ),
        (model(codes=[code(0)] * 10_001), "more than 10000 types"),
        (model(f3=b"\xff\0"), "not UTF-8"),
        (model(f3="x" * 5_000), None),
    ],
    ids=lambda part: part if isinstance(part, str) else "model",
)
def test_hostile_models(content: bytes, said: str | None) -> None:
    if said is None:
        facts_of(content)
        return
    with pytest.raises(ValueError, match=said):
        facts_of(content)


def test_a_string_must_end_with_a_zero() -> None:
    content = model(f3="A model!")
    place = content.index(b"A model!") + 8
    with pytest.raises(ValueError, match="does not end with a zero"):
        facts_of(content[:place] + b"!" + content[place + 1 :])


def test_a_field_must_be_inside_its_table() -> None:
    content = model_files.tflite()
    for offset in (2, 9, 65_535):
        with pytest.raises(ValueError, match="a field is outside its table"):
            facts_of(content[:12] + struct.pack("<H", offset) + content[14:])


def test_what_is_shared_counts_each_time() -> None:
    small = {0: Repeated(X, 5)}
    assert facts_of(model(f2=Repeated(small, 3)))["tensor_count"] == 15
    operands = {1: np.zeros(100_000, np.int32)}
    with pytest.raises(ValueError, match="more than 1000000 tables and items"):
        facts_of(model({0: [X], 3: Repeated(operands, 11)}, codes=[code(0)]))


def test_too_many_tensors_or_buffers_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 100000 tensors"):
        facts_of(model({0: Repeated({}, 100_001)}))
    with pytest.raises(ValueError, match="more than 100000 buffers"):
        facts_of(model(f4=Repeated({}, 100_001)))


@pytest.mark.parametrize("size", [48, 64, 100, 1000])
def test_the_sample_model_is_a_model_of_any_size(size: int) -> None:
    content = model_files.tflite(7, size)
    assert len(content) == size
    assert facts_of(content)["subgraphs"] == 1
    assert library.Model.GetRootAs(content).SubgraphsLength() == 1
    for cut in range(48):
        with pytest.raises(ValueError, match=r"."):
            facts_of(content[:cut])


SMALL = [network(), PACKED]


@pytest.mark.parametrize("content", SMALL, ids=["network", "packed"])
def test_truncations_are_refused(content: bytes) -> None:
    # What is left may be whole only if nothing but padding was cut.
    whole = []
    for size in range(len(content)):
        try:
            facts_of(content[:size])
        except ValueError:
            continue
        whole.append(size)
    assert all(size >= len(content) - 8 for size in whole)


def refused_or_inspected(content: bytes) -> None:
    try:
        facts_of(content)
    except ValueError:
        return


@given(st.binary(max_size=300))
def test_any_bytes_are_inspected_or_refused(content: bytes) -> None:
    refused_or_inspected(content)
    refused_or_inspected(b"\x10\0\0\0TFL3" + content)


@given(st.data())
def test_any_damage_is_inspected_or_refused(draw: st.DataObject) -> None:
    content = bytearray(draw.draw(st.sampled_from(SMALL)))
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(content) - 1))
        content[at] = draw.draw(st.integers(0, 255))
    refused_or_inspected(bytes(content))
