"""Small HDF5 files, of Keras and not, and the configurations in them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import h5py  # type: ignore[import-untyped] # it has no types
import numpy as np

Config = dict[str, Any]


def hdf5(fill: Callable[[Any], object], **options: Any) -> bytes:
    """The bytes of a file that ``fill`` puts something into."""
    content = io.BytesIO()
    with h5py.File(content, "w", **options) as file:
        fill(file)
    return content.getvalue()


def layer(class_name: str, name: str = "", **settings: Any) -> Config:
    """A layer as Keras 2 writes it."""
    return {
        "class_name": class_name,
        "config": {"name": name or class_name.lower(), "trainable": True, **settings},
    }


def model(class_name: str, *layers: Config, name: str = "model") -> Config:
    return {"class_name": class_name, "config": {"name": name, "layers": list(layers)}}


def keras_3(config: Config, module: str | None = "keras.layers") -> Config:
    """A layer as Keras 3 writes it."""
    return {**config, "module": module, "registered_name": None}


def bytecode(name: str = "lambda") -> Config:
    """The layer that holds marshalled code."""
    return layer(
        "Lambda",
        name,
        function=["4wEAAAAAAAAA", None, None],
        function_type="lambda",
        module="__main__",
        output_shape=None,
        output_shape_type="raw",
    )


SEQUENTIAL = model(
    "Sequential",
    layer("Conv2D", "first", batch_input_shape=[None, 28, 28, 1], dtype="float32"),
    layer("Flatten"),
    layer("Dense"),
)
INNER = model(
    "Functional",
    layer("InputLayer", "inner_in", batch_input_shape=[None, 8], dtype="float16"),
    layer("Dense"),
    name="inner",
)
FUNCTIONAL = model(
    "Functional",
    layer("InputLayer", "image", batch_input_shape=[None, 8], dtype="float16"),
    layer("InputLayer", "mask", batch_input_shape=[1, None], dtype="bool"),
    INNER,
    layer("TimeDistributed", "each", layer=layer("Dense", "wrapped")),
    layer("Concatenate"),
)
KERAS_3 = model(
    "Functional",
    keras_3(
        layer(
            "InputLayer",
            "image",
            batch_shape=[None, 3],
            dtype={
                "module": "keras",
                "class_name": "DTypePolicy",
                "config": {"name": "bfloat16"},
                "registered_name": None,
            },
        )
    ),
    keras_3(
        layer(
            "Dense",
            kernel_initializer=keras_3(
                {"class_name": "GlorotUniform", "config": {"seed": None}},
                "keras.initializers",
            ),
            activation="relu",
        )
    ),
    keras_3(layer("Mine"), None),
)
TRAINING = {"loss": "mse", "metrics": ["accuracy"], "optimizer_config": {}}


def keras_model(config: Any, training: Any = None, *, version: str = "2.15.0") -> bytes:
    """A whole model: its configuration, weights, the optimizer's weights."""

    def fill(file: Any) -> None:
        file.attrs["keras_version"] = version
        file.attrs["backend"] = "tensorflow"
        file.attrs["model_config"] = json.dumps(config)
        if training is not None:
            file.attrs["training_config"] = json.dumps(training).encode()
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = [b"first", b"dense"]
        weights["first/first/kernel:0"] = np.zeros((3, 3, 1, 8), "float32")
        weights["first/first/bias:0"] = np.zeros(8, "float32")
        weights["dense/dense/kernel:0"] = np.zeros((8, 2), "float16")
        file["optimizer_weights/iterations:0"] = np.int64(5)

    return hdf5(fill)


def keras_weights() -> bytes:
    """Weights alone, as Keras 2 saves them."""

    def fill(file: Any) -> None:
        file.attrs["keras_version"] = np.bytes_(b"2.15.0")
        file.attrs["backend"] = np.bytes_(b"tensorflow")
        file.attrs["layer_names"] = np.array([b"first", b"pool", b"dense"])
        file["first/first/kernel:0"] = np.zeros((3, 4), "float32")

    return hdf5(fill)


def keras_3_weights() -> bytes:
    """Weights alone, as Keras 3 saves them."""

    def fill(file: Any) -> None:
        file["layers/dense/vars/0"] = np.zeros((3, 4), "float32")
        file["layers/dense/vars/1"] = np.zeros(4, "float32")
        file["optimizer/vars/0"] = np.int64(5)

    return hdf5(fill)
