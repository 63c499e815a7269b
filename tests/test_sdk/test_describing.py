"""Versions and their facts as people read them."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision_o3.sdk.describing import describe_version
from vision_o3.sdk.output import Shown, printable, printed, table


def described(**facts: Any) -> List[str]:
    return list(describe_version({"name": "m", "facts": facts}))[2:]


ONNX: Dict[str, Any] = {
    "kind": "onnx",
    "opset_import": {"ai.onnx": 17},
    "producer_name": "",
    "inputs": [
        {"name": "images", "dtype": "float32", "shape": [1, 3, 640, 640]},
        {"name": "sizes", "dtype": "int64", "shape": ["batch", None]},
    ],
    "outputs": [{"name": "boxes", "dtype": "float32", "shape": None}],
    "operators": {f"Op{n}": 100 - n for n in range(12)},
    "node_count": 1134,
    "custom_domains": [],
    "parameters": 3151904,
    "quantized": False,
    "metadata": {"author": "ann", "task": "detect"},
}


def test_a_model_is_shown_by_lines() -> None:
    assert described(**ONNX) == [
        "  kind: onnx",
        "  opset_import: ai.onnx 17",
        "  inputs:",
        "    images: float32[1,3,640,640]",
        "    sizes: int64[batch,?]",
        "  outputs:",
        "    boxes: float32[…]",
        f"  operators: {', '.join(f'Op{n} {100 - n}' for n in range(8))}, … 4 more",
        "  node_count: 1,134",
        "  parameters: 3,151,904",
        "  quantized: no",
        "  metadata:",
        "    author: ann",
        "    task: detect",
    ]


def test_unsafe_is_hard_to_miss() -> None:
    lines = described(safety={"verdict": "unsafe", "findings": ["os.system", 5]})
    assert lines == [
        "  safety: UNSAFE – loading this file may run its author's code",
        "    ! os.system",
        "    ! 5",
    ]
    assert described(safety={"verdict": "safe", "findings": []}) == ["  safety: safe"]
    assert "UNKNOWN" in described(safety={"findings": None})[0]
    assert described(safety="odd") == ["  safety: odd"]


def test_long_lists_are_cut_and_counted() -> None:
    tensors = [{"name": f"w{n}", "dtype": "int8", "shape": [n]} for n in range(20)]
    lines = described(tensors=tensors, tensor_count=321, labels=list("abcdefghijk"))
    assert lines[0] == "  tensors:"
    assert lines[8:11] == ["    w7: int8[7]", "    … 313 more", "  tensor_count: 321"]
    assert lines[11] == "  labels: a, b, c, d, e, f, g, h, … 3 more"


def test_quantization_is_shown() -> None:
    tensor = {"name": "x", "dtype": "uint8", "shape": [1]}
    one = {**tensor, "quantization": {"scale": 0.0078125, "zero_point": 128}}
    odd = {**tensor, "quantization": {"scale": None, "zero_point": 0}}
    assert described(inputs=[one, odd]) == [
        "  inputs:",
        "    x: uint8[1]  scale 0.0078125  zero point 128",
        "    x: uint8[1]  zero point 0",
    ]


def test_a_dataset_is_shown_by_lines() -> None:
    lines = described(
        kind="archive",
        files=20001,
        unpacked_bytes=5 << 20,
        media_types={"image/jpeg": {"files": 20000, "bytes": 5 << 20}},
        splits={"train": {"files": 80, "images": 90}, "val": {}},
        images=None,
        annotations={
            "format": "coco",
            "boxes": 0,
            "classes": {"cat": 5, "dog": 1500},
            "class_count": 40,
        },
    )
    assert lines == [
        "  kind: archive",
        "  files: 20,001",
        "  unpacked_bytes: 5.0 MiB",
        "  media_types:",
        "    image/jpeg: files 20,000, bytes 5.0 MiB",
        "  splits:",
        "    train: images 90, files 80",
        "  annotations:",
        "    format: coco",
        "    boxes: 0",
        "    classes: dog 1,500, cat 5, … 38 more",
        "    class_count: 40",
    ]


def test_versions_of_before_have_facts_of_any_shape() -> None:
    assert described(a=[{"b": 1}], c=1.5, d={"x": [1, "y"]}) == [
        '  a: {"b": 1}',
        "  c: 1.5",
        "  d:",
        "    x: 1, y",
    ]
    deep: Any = "end"
    for _ in range(20):
        deep = {"in": deep}
    assert described(deep=deep)[-1].endswith("}")
    assert list(
        describe_version({"name": "m", "tags": ["a", "b"], "stale": False})
    ) == [
        "name:         m",
        "tags:         a, b",
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=10)
        | st.dictionaries(
            st.sampled_from([*ONNX, "safety", "name", "dtype", "shape", "bytes"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


def test_absurd_numbers_are_shown() -> None:
    (line,) = described(bytes=10**400)
    assert line.startswith("  bytes: 10,000,000")


@given(json_values)
def test_any_facts_are_shown(value: Any) -> None:
    for line in printed(Shown({}, described(facts=value, x=value)), as_json=False):
        assert line.isprintable()


@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_that_steers_a_terminal_is_printed(as_json: bool) -> None:
    line = "\x1b[2Jname\r\n\x07\u202e\x9b"
    found = "".join(printed(Shown(line, [line]), as_json=as_json))
    assert found.isprintable()
    assert "[2Jname" in found
    assert printable("größe 日本 →") == "größe 日本 →"


def test_nothing_is_printed_where_nothing_is_to_be_shown() -> None:
    assert list(printed(Shown(None), as_json=True)) == []


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        ([("A", "B")], ["A   B"]),
        ([("A", "B"), ("long", "")], ["A      B", "long"]),
    ],
)
def test_columns_are_aligned(rows: Any, lines: List[str]) -> None:
    assert list(table(rows)) == lines
