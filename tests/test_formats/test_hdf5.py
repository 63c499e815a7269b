from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped] # it has no types
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.real_models import real_model
from tests.fakes import hdf5_files as fakes
from tests.fakes.hdf5_files import bytecode, hdf5, keras_3, keras_model, layer, model
from vision_o3.errors import InputError, LimitExceededError, UnsafeContentError
from vision_o3.formats import hdf5 as reader
from vision_o3.formats import keras
from vision_o3.formats.limits import Limits
from vision_o3.schemas.facts import NEW_FACTS

SAFE = {"verdict": "safe", "findings": []}


def inspect(content: bytes, **limits: Any) -> dict[str, Any]:
    facts = reader.inspect(io.BytesIO(content), len(content), Limits(**limits))
    NEW_FACTS.validate_python(facts)
    return facts


def findings(config: Any, training: Any = None) -> list[str]:
    safety = inspect(keras_model(config, training))["safety"]
    assert (safety["verdict"] == "unsafe") == bool(safety["findings"])
    found: list[str] = safety["findings"]
    return found


def walked(content: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of all datasets, as h5py's own walk has them."""
    found = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = (item.dtype.name, item.shape)

    with h5py.File(io.BytesIO(content), "r") as file:
        file.visititems(visit)
    return found


WEIGHTS = [
    {"name": "model_weights/dense/dense/kernel:0", "dtype": "float16", "shape": [8, 2]},
    {"name": "model_weights/first/first/bias:0", "dtype": "float32", "shape": [8]},
    {"name": "model_weights/first/first/kernel:0", "dtype": "float32",
     "shape": [3, 3, 1, 8]},
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            fakes.SEQUENTIAL,
            {
                "model_class": "Sequential",
                "layers": {"Conv2D": 1, "Dense": 1, "Flatten": 1},
                "layer_count": 3,
                "inputs": [
                    {"name": "first", "dtype": "float32", "shape": [None, 28, 28, 1]}
                ],
            },
        ),
        (
            fakes.FUNCTIONAL,
            {
                "model_class": "Functional",
                "layers": {
                    "InputLayer": 3, "Dense": 2, "Concatenate": 1, "Functional": 1,
                    "TimeDistributed": 1,
                },
                "layer_count": 8,
                "inputs": [
                    {"name": "image", "dtype": "float16", "shape": [None, 8]},
                    {"name": "mask", "dtype": "bool", "shape": [1, None]},
                ],
            },
        ),
        (
            fakes.KERAS_3,
            {
                "model_class": "Functional",
                "layers": {"Dense": 1, "InputLayer": 1, "Mine": 1},
                "layer_count": 3,
                "inputs": [{"name": "image", "dtype": "bfloat16", "shape": [None, 3]}],
            },
        ),
    ],
    ids=["sequential", "functional", "keras 3"],
)  # fmt: skip
def test_models_are_described(config: Any, expected: dict[str, Any]) -> None:
    assert inspect(keras_model(config, fakes.TRAINING)) == {
        "kind": "h5",
        "superblock_version": 0,
        "keras_version": "2.15.0",
        "backend": "tensorflow",
        "model_name": "model",
        **expected,
        "weights": WEIGHTS,
        "weight_count": 3,
        "parameters": 16 + 8 + 72,
        "safety": SAFE,
    }


def test_weights_alone_are_described() -> None:
    assert inspect(fakes.keras_weights()) == {
        "kind": "h5",
        "superblock_version": 0,
        "keras_version": "2.15.0",
        "backend": "tensorflow",
        "layer_count": 3,
        "weights": [
            {"name": "first/first/kernel:0", "dtype": "float32", "shape": [3, 4]}
        ],
        "weight_count": 1,
        "parameters": 12,
        "safety": SAFE,
    }
    facts = inspect(fakes.keras_3_weights())
    assert [weight["name"] for weight in facts["weights"]] == [
        "layers/dense/vars/0", "layers/dense/vars/1",
    ]  # fmt: skip
    assert facts["parameters"] == 16


@pytest.mark.parametrize(
    ("config", "described"),
    [
        ([], {"model_class": None, "layer_count": 0, "inputs": []}),
        ("text", {"model_class": None, "layer_count": 0}),
        ({"class_name": 5, "config": 5}, {"model_class": None, "model_name": None}),
        ({"class_name": "Mine", "config": None}, {"model_class": "Mine"}),
        (
            {"class_name": "Sequential", "config": [layer("Dense", "d"), 5, {}]},
            {"layer_count": 1, "layers": {"Dense": 1}, "model_name": None},
        ),
        ({"config": {"layers": 5}}, {"layer_count": 0}),
        ({"config": {"layers": [{"class_name": 5}]}}, {"layers": {"?": 1}}),
        (
            model("M", layer("InputLayer", batch_shape=[1] * 65)),
            {"inputs": [], "layer_count": 1},
        ),
        (
            model("M", {"class_name": "InputLayer", "name": "a", "config": {
                "batch_input_shape": {"class_name": "__tuple__",
                                      "items": [None, 2**70, -1, "x", True, 3]}}}),
            {"inputs": [{"name": "a", "dtype": "float32",
                         "shape": [None, None, None, None, None, 3]}]},
        ),
        (model("M", {"class_name": "Dense", "config": [1]}), {"inputs": []}),
    ],
)  # fmt: skip
def test_odd_configurations_are_described(
    config: Any, described: dict[str, Any]
) -> None:
    facts = inspect(keras_model(config))
    assert {key: facts[key] for key in described} == described


TIME_DISTRIBUTED = layer("TimeDistributed", "each", layer=bytecode("hidden"))


@pytest.mark.parametrize(
    ("unsafe", "expected"),
    [
        (bytecode("evil"), "Lambda layer 'evil'"),
        (TIME_DISTRIBUTED, "Lambda layer 'hidden'"),
        (model("Sequential", TIME_DISTRIBUTED), "Lambda layer 'hidden'"),
        (layer("Bidirectional", "b", backward_layer=bytecode("back")),
         "Lambda layer 'back'"),
        (layer("Custom>Lambda", "evil"), "Lambda layer 'evil'"),
        (layer("Renamed", "evil", function_type="lambda"), "Lambda layer 'evil'"),
        (layer("Lambda", "by name", function="tanh", function_type="function"),
         "Lambda layer 'by name'"),
        (layer("Dense", "d", activation={
            "class_name": "__lambda__", "config": {"value": "4wEA"}}), "lambda"),
        ({"class_name": "Dense", "arguments": {"output_shape_type": "lambda"}},
         "lambda"),
        (keras_3(layer("system"), "os"), "os.system"),
        (keras_3(layer("Popen"), "subprocess"), "subprocess.Popen"),
        (keras_3(layer("Mine"), "keras_evil.layers"), "keras_evil.layers.Mine"),
        (keras_3(layer("Mine"), "my.keras.layers"), "my.keras.layers.Mine"),
        (keras_3(layer("exec"), "builtins"), "builtins.exec"),
        (keras_3({"class_name": "function", "config": "eval"}, "builtins"),
         "builtins.eval"),
        (keras_3({"class_name": "function", "config": "get_file"}, "keras.utils"),
         "keras.utils.get_file"),
        (keras_3({"class_name": "function", "config": "get_file"}, "keras.layers"),
         "keras.layers.get_file"),
        (keras_3({"class_name": "function",
                  "config": "enable_unsafe_deserialization"}, "keras.config"),
         "keras.config.enable_unsafe_deserialization"),
        (keras_3({"class_name": "function", "config": "load_model"}, "keras.models"),
         "keras.models.load_model"),
        (keras_3({"class_name": "function", "config": "x"}, "keras"), "keras.x"),
        ({"class_name": "Dense", "module": 5}, "5.Dense"),
        (keras_3(layer("TorchModuleWrapper", "t")), "TorchModuleWrapper 't', which"),
        (keras_3(layer("TFSMLayer", "t", filepath="/x")), "TFSMLayer 't', which loads"),
        (layer("StringLookup", "s", vocabulary="/etc/passwd"), "reads /etc/passwd"),
        (layer("TFOpLambda", "t", function="io.write_file"),
         "TFOpLambda 't' of io.write_file"),
        (layer("TFOpLambda", "t", function="raw_ops.WriteFile"), "raw_ops.WriteFile"),
        (layer("TFOpLambda", "t", function="load_op_library"), "load_op_library"),
        (layer("TFOpLambda", "t"), "no function"),
        *((layer("TFOpLambda", "t", function=name), f"TFOpLambda 't' of {name}")
          for name in (
              "print", "function", "py_function", "numpy_function", "Assert",
              "load_library", "io.read_file", "saved_model.load",
              "keras.utils.get_file",
              "compat.v1.py_func", "compat.v1.io.write_file", "keras.backend.function",
              "keras.backend.set_floatx", "keras.losses.deserialize",
              "keras.activations.get", "random.set_seed", "linalg.LinearOperator",
              "experimental.numpy.experimental_enable_numpy_behavior",
              "debugging.experimental.enable_dump_debug_info",
              "compat.v1.compat.v1.add", "raw_ops.ReadFile", "strings.a.b.c")),
        (layer("TFOpLambda", "t", function="math.add\n"), "of math.add"),
        (layer("SlicingOpLambda", "s", function="load_op_library"),
         "SlicingOpLambda 's' of load_op_library"),
        (layer("My>TFOpLambda", "t", function="print"), "of print"),
        (layer("ClassMethod", "c", cls_symbol="keras.utils.get_file",
               method_name="__call__"),
         "ClassMethod 'c' of keras.utils.get_file.__call__"),
        (layer("ClassMethod", "c", cls_symbol="RaggedTensor", method_name="__init__"),
         "RaggedTensor.__init__"),
        (layer("ClassMethod", "c"), "ClassMethod 'c' of ."),
        (layer("InstanceMethod", "i", method_name="__reduce__"), "of __reduce__"),
        (layer("InstanceMethod", "i", attr_name="shape"), "no method"),
        (layer("InstanceProperty", "i", attr_name="__class__"), "of __class__"),
        (layer("InstanceProperty", "i", attr_name=5), "no attribute"),
        (layer("TensorFlowOpLayer", "w", node_def={"op": "WriteFile"}),
         "TensorFlowOpLayer 'w' of WriteFile"),
        (layer("TensorFlowOpLayer", "w", node_def="\n\x01w\x12\x03Add"),
         "an unknown operation"),
        (layer("TensorFlowOpLayer", "w", node_def={"op": ["Add"]}),
         "an unknown operation"),
        (layer("DenseFeatures", "d", feature_columns=[{
            "class_name": "VocabularyFileCategoricalColumn",
            "config": {"key": "k", "vocabulary_file": "/etc/passwd"}}]),
         "vocabulary_file, which reads /etc/passwd"),
        (layer("DenseFeatures", "d", feature_columns=[{
            "class_name": "EmbeddingColumn", "config": {"ckpt_to_load_from": ["x"]}}]),
         "ckpt_to_load_from, which reads what it names"),
        ({"a": [{"vocabulary": "/etc/passwd"}]}, "vocabulary, which reads /etc/passwd"),
    ],
)  # fmt: skip
def test_what_could_run_code_is_found(unsafe: Any, expected: str) -> None:
    for config, training in (
        (model("Functional", layer("Dense"), unsafe), None),
        (fakes.SEQUENTIAL, {"loss": {"out": [unsafe]}}),
    ):
        (found,) = findings(config, training)
        assert expected in found


@pytest.mark.parametrize(
    "safe",
    [
        *(keras_3(layer("Dense"), module) for module in (
            "keras.layers", "keras.src.layers.core.dense", "keras.layers.core",
            "tensorflow.keras.layers", "tensorflow.python.keras.layers.core",
            "keras_core.layers", "tf_keras.src.layers.core.dense", None)),
        keras_3(model("Functional"), "keras.src.models.functional"),
        keras_3(layer("Sequential"), "keras"),
        keras_3(layer("Adam"), "keras.optimizers"),
        keras_3({"class_name": "function", "config": "my_loss"}, "builtins"),
        keras_3({"class_name": "function", "config": "relu"}, "keras.activations"),
        layer("My>Layer"),
        layer("StringLookup", vocabulary=["a", "b"]),
        layer("StringLookup", vocabulary=None, vocabulary_file=None),
        layer("Embedding", ckpt_to_load_from=None, tensor_name_in_ckpt=None),
        *(layer("SlicingOpLambda", function=name) for name in (
            "__operators__.getitem", "compat.v1.strided_slice")),
        *(layer("ClassMethod", cls_symbol=name, method_name=method)
          for name, method in (
              ("RaggedTensor", "from_row_splits"), ("SparseTensor", "from_value"),
              ("compat.v1.SparseTensor", "from_value"))),
        layer("InstanceMethod", method_name="to_tensor"),
        layer("InstanceProperty", attr_name="shape"),
        layer("TensorFlowOpLayer", node_def={"name": "a", "op": "AddV2"}),
        *(layer("TFOpLambda", function=name) for name in (
            "math.add", "nn.relu", "reshape", "__operators__.getitem", "cast",
            "compat.v1.nn.conv2d", "linalg.matmul", "shape", "compat.v1.shape",
            "compat.v1.gather", "compat.v1.transpose", "debugging.assert_equal",
            "compat.v1.debugging.assert_equal", "debugging.check_numerics",
            "image.resize", "compat.v1.image.resize_bilinear", "keras.backend.mean",
            "keras.losses.mean_squared_error", "keras.metrics.binary_crossentropy",
            "keras.activations.relu", "experimental.numpy.dot", "raw_ops.AddV2",
            "math.l2_normalize", "linalg.experimental.conjugate_gradient")),
    ],
)  # fmt: skip
def test_parts_of_keras_are_no_finding(safe: Any) -> None:
    assert findings(model("Sequential", safe), {"loss": safe}) == []


def test_findings_are_told_once_and_are_few() -> None:
    config = model("Sequential", *(bytecode(f"l{n % 70}") for n in range(140)))
    found = findings(config, model("Sequential", bytecode("other")))
    assert len(found) == len(set(found)) == keras.MOST_FINDINGS


def test_deep_configurations_do_not_matter() -> None:
    config = bytecode("deep")
    for _ in range(200):
        config = layer("TimeDistributed", layer=config)
    facts = inspect(keras_model(model("Sequential", config)))
    assert facts["layers"] == {"TimeDistributed": 200, "Lambda": 1}
    assert facts["safety"]["findings"] == ["Lambda layer 'deep'"]


def with_attribute(value: Any, name: str = "model_config") -> bytes:
    return hdf5(lambda file: file.attrs.create(name, value))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "signature"),
        (keras_model({})[:-1], "ends before"),
        (keras_model({})[:2000], "ends before"),
        (with_attribute("{"), "not JSON"),
        (with_attribute(b"{\xff}"), "not JSON"),
        (with_attribute("[" * 100_000 + "]" * 100_000), "not JSON"),
        (with_attribute("9" * 5000), "not JSON"),
        (with_attribute("{", "training_config"), "not JSON"),
        (keras_model({})[:48] + bytes(len(keras_model({})) - 48), "damaged"),
    ],
    ids=["empty", "cut by one", "cut", "half", "bytes", "deep", "number", "training",
         "zeros"],
)  # fmt: skip
def test_what_is_wrong_gets_said(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        inspect(content)


@pytest.mark.parametrize(
    "value",
    [5, np.zeros(3), [b"{", b"["], h5py.Empty("S1"), np.zeros((2, 2))],
    ids=["number", "numbers", "texts", "nothing", "matrix"],
)
def test_attributes_of_other_kinds_are_passed_over(value: Any) -> None:
    def fill(file: Any) -> None:
        for name in ("model_config", "training_config", "keras_version", "backend"):
            file.attrs.create(name, value)

    assert inspect(hdf5(fill)) == {
        "kind": "h5", "superblock_version": 0, "weights": [], "weight_count": 0,
        "parameters": 0, "safety": SAFE,
    }  # fmt: skip
    assert "layer_count" not in inspect(with_attribute(np.zeros((2, 2)), "layer_names"))
    assert "layer_count" not in inspect(with_attribute(h5py.Empty("f4"), "layer_names"))


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("userblock", [0, 1024])
def test_all_datasets_are_as_another_walk_has_them(libver: str, userblock: int) -> None:
    def fill(file: Any) -> None:
        for number in range(300):
            file[f"g{number % 7}/d{number}"] = np.zeros(number % 5, "uint8")
        file["scalar"] = 1.5
        file["bool"] = np.zeros((2, 2), bool)
        file["complex"] = np.zeros(3, "complex64")
        file.create_dataset("packed", data=np.zeros((99, 9)), compression="gzip")
        file["a type"] = np.dtype("float32")

    content = hdf5(fill, libver=libver, userblock_size=userblock)
    facts = inspect(content)
    expected = walked(content)
    assert facts["superblock_version"] == (0 if libver == "earliest" else 3)
    assert facts["weight_count"] == len(expected) == 304
    assert facts["parameters"] == sum(
        int(np.prod(shape)) for _, shape in expected.values()
    )
    assert len(facts["weights"]) == 200
    for weight in facts["weights"]:
        assert (weight["dtype"], tuple(weight["shape"])) == expected[weight["name"]]


def test_datasets_of_other_types_are_listed() -> None:
    def fill(file: Any) -> None:
        file["empty"] = h5py.Empty("f4")
        file["record"] = np.zeros(2, [("a", "f4"), ("b", "i4")])
        file["texts"] = ["a", "b"]
        file["fixed"] = np.array([b"abc"])
        file["name\n\udce9".encode("utf-8", "surrogateescape")] = 1

    facts = inspect(hdf5(fill))
    assert [tuple(weight.values()) for weight in facts["weights"]] == [
        ("empty", "float32", None),
        ("fixed", "string", [1]),
        ("name�", "int64", []),
        ("record", "void64", [2]),
        ("texts", "string", [2]),
    ]
    assert facts["parameters"] == 1


@pytest.mark.integration
def test_a_real_model_is_as_h5py_reads_it() -> None:
    try:
        path = real_model("h5")
    except OSError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"A package with a real model cannot be had: {error}")
    content = path.read_bytes()
    facts = inspect(content)
    expected = {
        name: found
        for name, found in walked(content).items()
        if name.startswith("model_weights/")
    }
    assert facts["parameters"] == sum(
        int(np.prod(shape)) for _, shape in expected.values()
    )
    assert {
        weight["name"]: (weight["dtype"], tuple(weight["shape"]))
        for weight in facts["weights"]
    } == expected
    with h5py.File(path) as file:
        config = json.loads(file.attrs["model_config"])
        assert facts["keras_version"] == file.attrs["keras_version"]
    assert facts["model_class"] == config["class_name"]
    assert facts["layer_count"] == len(config["config"]["layers"])
    assert facts["safety"] == SAFE


def external_link(file: Any) -> None:
    file["a/link"] = h5py.ExternalLink("/etc/other.h5", "/x")


def external_storage(file: Any) -> None:
    file.create_dataset("d", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "d", (4,))
    file.create_virtual_dataset("d", layout)


def endless_virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((4,), "u1", maxshape=(None,))
    source = h5py.VirtualSource("/dev/stdin", "d", (4,), maxshape=(None,))
    unlimited = h5py.h5s.UNLIMITED
    layout[:unlimited] = source[:unlimited]
    file.create_virtual_dataset("d", layout)


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (external_link, "'a/link' refers to the file '/etc/other.h5'"),
        (external_storage, "'d' refers to the file '/etc/passwd'"),
        (virtual, "'d' refers to the file '/etc/other.h5'"),
        (endless_virtual, "'d' refers to the file '/dev/stdin'"),
    ],
)
def test_other_files_are_refused(fill: Callable[[Any], object], said: str) -> None:
    with pytest.raises(UnsafeContentError, match=said) as caught:
        inspect(hdf5(fill))
    assert caught.value.values["findings"]


def test_links_of_an_unknown_kind_are_refused() -> None:
    content = hdf5(lambda file: file.update(link=h5py.ExternalLink("other.h5", "/x")))
    # A link message has its kind after its version and flags (IV.A.2.g).
    kind = content.index(b"\x01\x08\x40") + 2
    changed = content[:kind] + b"\x41" + content[kind + 1 :]
    with pytest.raises(UnsafeContentError, match="what only a plugin knows"):
        inspect(changed)


def test_sizes_beyond_all_files_are_refused() -> None:
    content = hdf5(lambda file: file.create_dataset("d", (54_321, 0), "u1"))
    size = (54_321).to_bytes(8, "little")
    # By the library, unless it lets more through.
    with pytest.raises(ValueError, match=r"damaged|larger than any file"):
        inspect(content.replace(size, b"\xf0" + b"\xff" * 7))


def test_links_within_the_file_are_followed_once() -> None:
    def fill(file: Any) -> None:
        file["a/d"] = np.zeros(5, "u1")
        file["a/itself"] = file["a"]
        file["root"] = file["/"]
        file["again"] = file["a/d"]
        file["soft"] = h5py.SoftLink("/a/d")
        file["loop"] = h5py.SoftLink("/loop")
        file["nowhere"] = h5py.SoftLink("/none/such")

    facts = inspect(hdf5(fill))
    assert [weight["name"] for weight in facts["weights"]] == ["a/d"]
    assert facts["parameters"] == 5


def test_model_weights_behind_a_soft_link_are_not_opened() -> None:
    def fill(file: Any) -> None:
        file["model_weights"] = h5py.SoftLink("/model_weights")
        file["d"] = 1

    assert inspect(hdf5(fill))["weight_count"] == 1


def test_model_weights_may_be_no_group() -> None:
    assert inspect(hdf5(lambda file: file.update(model_weights=1)))["weight_count"] == 1


def test_depth_does_not_matter() -> None:
    def fill(file: Any) -> None:
        group = file
        for _ in range(2_000):
            group = group.create_group("group")
        group["d"] = 1

    facts = inspect(hdf5(fill))
    assert facts["weight_count"] == 1
    assert len(facts["weights"][0]["name"]) == 200


@pytest.mark.parametrize("more", [False, True])
def test_objects_are_limited(*, more: bool) -> None:
    def fill(file: Any) -> None:
        root = file["/"].id
        group = file.create_group("group").id
        # Many links to few objects take as long as many objects do.
        for number in range(reader.MOST_OBJECTS - 1 + more):
            group.links.create_hard(b"%d" % number, root, b"/")

    content = hdf5(fill, libver="latest")
    if more:
        with pytest.raises(LimitExceededError, match="too many objects"):
            inspect(content)
    else:
        assert inspect(content)["weight_count"] == 0


def test_sizes_without_content_are_refused() -> None:
    def fill(file: Any) -> None:
        file.create_dataset("d", (1 << 40,), "f4", chunks=(1024,))

    content = hdf5(fill)
    with pytest.raises(LimitExceededError, match="VISION_O3_MAX_UNPACK_RATIO"):
        inspect(content)
    assert inspect(content, unpack_ratio=1 << 40)["parameters"] == 1 << 40


def test_sums_beyond_all_files_are_refused() -> None:
    def fill(file: Any) -> None:
        for name in "abc":
            file.create_dataset(name, (1 << 62,), "u1", chunks=(1024,))

    with pytest.raises(ValueError, match="larger than any file"):
        inspect(hdf5(fill), unpack_ratio=1 << 62)


@pytest.mark.parametrize("dtype", [None, "S"], ids=["of any length", "fixed"])
def test_long_configurations_are_refused(dtype: str | None) -> None:
    text = b" " * (reader.LONGEST_ATTRIBUTE + 1)

    def fill(file: Any) -> None:
        if dtype:
            file.attrs.create("model_config", np.bytes_(text))
        else:
            file.attrs["model_config"] = text.decode()

    with pytest.raises(LimitExceededError, match="model_config"):
        inspect(hdf5(fill, libver="latest"))


@given(st.binary(max_size=200), st.integers(0, 1000))
def test_no_other_error_comes_out_of_headers(more: bytes, cut: int) -> None:
    with suppress(ValueError, InputError):
        inspect(fakes.keras_3_weights()[:cut] + more)


def damage(seed: int) -> None:
    """Change bits of good files, and read what comes of it. Run in a child process."""
    chance = random.Random(seed)
    seeds = [keras_model(fakes.KERAS_3), fakes.keras_weights(), fakes.keras_3_weights()]
    for number in range(400):
        content = bytearray(seeds[number % len(seeds)])
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(48, len(content))
            content[at] ^= 1 << chance.randrange(8)
        with suppress(ValueError, InputError):
            inspect(bytes(content))


def test_damaged_files_are_read_or_refused() -> None:
    code = "import sys; from tests.test_formats.test_hdf5 import damage; damage(1)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # The library may crash, which costs its process only; nothing of ours may.
    assert ran.returncode <= 0, ran.stderr
