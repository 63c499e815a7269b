"""The configuration of a Keras model, as JSON: what it is, and what could run code.

Keras builds a model by calling what its configuration names. Loading runs code of the
author's own, or code chosen by them, through:

- Lambda layers and other lambdas, which hold marshalled bytecode (CVE-2024-3660); in
  HDF5 files even under ``safe_mode`` (CVE-2025-9905);
- modules to import, which may be any (CVE-2025-1550), or Keras's own helpers, such as
  ``get_file`` and the switch that allows lambdas (CVE-2025-8747, CVE-2025-9906);
- layers that load another file: pickles (``TorchModuleWrapper``, CVE-2025-49655), saved
  models (``TFSMLayer``), vocabularies from any path or URL (CVE-2025-12058);
- layers that stand for a function, method or operation of TensorFlow, which has such
  that read and write files: those pass that only compute, by name.

What is custom and must be registered by the user first is no finding: loading fails
without it. Nothing here recurses, so no configuration is too deep.
"""

from __future__ import annotations

import builtins
import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from vision_o3.formats import bounded
from vision_o3.formats.keras_operations import stands_for

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_FINDINGS = 50
_MOST_DIMENSIONS = 64
_LAST_INT = 2**63 - 1

_LAMBDAS = {"Lambda": "Lambda layer", "__lambda__": "lambda"}
_LOADERS = frozenset({"TorchModuleWrapper", "TFSMLayer"})
_KERAS = re.compile(
    r"(?:keras|keras_core|tf_keras|tensorflow\.keras|tensorflow\.python\.keras)"
    r"(?:\.(?:src|_src|api|_tf_keras|keras|v1|v2))*(?:\.(?P<part>\w+)(?:\.\w+)*)?"
)
_PARTS = frozenset(
    {"activations", "applications", "constraints", "dtype_policies", "engine"}
    | {"feature_column", "initializers", "layers", "losses", "metrics"}
    | {"mixed_precision", "models", "ops", "optimizer_v1", "optimizer_v2"}
    | {"optimizers", "quantizers", "random", "regularizers"}
)
"""Parts of Keras which hold what models are made of, not what works on files."""
_MODELS = frozenset({"Sequential", "Functional", "Model"})
_FUNCTION = "function"
_TOOLS = re.compile(r"(?:get_file|load_|enable_|disable_|set_|deserialize)\w*")
"""Functions that some of these parts know by name, and which do not compute."""

_FILES = ("vocabulary", "vocabulary_file", "ckpt_to_load_from")
"""Settings that name a file to read, whatever they are within."""


def parse(text: bytes | str) -> Any:  # noqa: ANN401 - any JSON value
    """Return a configuration from its text.

    Raises:
        ValueError: Not JSON.
    """
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        raise ValueError("a Keras configuration in it is not JSON") from error


def describe(config: object) -> dict[str, Any]:
    """Return the facts that ``model_config`` tells: class, name, layers, inputs.

    Layers of nested models count, and those that others wrap.
    """
    top = _settings(config)
    layers = Counter[str]()
    for layer in _layers(config):
        layers[_text(layer.get("class_name")) or "?"] += 1
    return {
        "model_class": _text(_member(config, "class_name")),
        "model_name": _text(top.get("name")) if isinstance(top, dict) else None,
        "layers": bounded.most(layers),
        "layer_count": layers.total(),
        "inputs": _inputs(top),
    }


def findings(config: object) -> list[str]:
    """Return what in a configuration could run code when it is loaded, each once."""
    found: dict[str, None] = {}
    for value in _objects(config):
        for finding in _findings_of(value):
            found[bounded.clean(finding)] = None
            if len(found) >= MOST_FINDINGS:
                return list(found)
    return list(found)


def _findings_of(value: dict[str, Any]) -> Iterator[str]:
    kind = value.get("class_name")
    settings = value.get("config")
    settings = settings if isinstance(settings, dict) else {}
    if isinstance(kind, str):
        # A registered class is "package>name".
        name = kind.rpartition(">")[2]
        label = _text(settings.get("name")) or _text(value.get("name"))
        named = f" '{label}'" if label else ""
        if name in _LAMBDAS:
            yield f"{_LAMBDAS[name]}{named}"
        elif name in _LOADERS:
            yield f"{name}{named}, which loads another model"
        elif (operation := stands_for(name, settings)) is not None:
            yield f"{name}{named} of {operation[:100]}"
        module = value.get("module")
        if module is not None and not _is_known(module, kind, value.get("config")):
            yield _imported(module, kind, value.get("config"))
    if any(key.endswith("_type") and value[key] == "lambda" for key in value):
        label = _text(value.get("name"))
        yield f"Lambda layer '{label}'" if label else "lambda"
    yield from _files_of(value)


def _files_of(value: dict[str, Any]) -> Iterator[str]:
    for key in _FILES:
        path = value.get(key)
        if path and (key != "vocabulary" or isinstance(path, str)):
            label = _text(value.get("name"))
            named = f" of '{label}'" if label else ""
            shown = path if isinstance(path, str) else "what it names"
            yield f"{key}{named}, which reads {shown[:100]}"


def _is_known(module: object, kind: str, config: object) -> bool:
    """Say whether what a configuration imports is a part of a model by Keras."""
    if module == "builtins":
        return kind == _FUNCTION and not hasattr(builtins, str(config))
    match = _KERAS.fullmatch(module) if isinstance(module, str) else None
    if match is None or (kind == _FUNCTION and _TOOLS.fullmatch(str(config))):
        return False
    part = match["part"]
    if part == "models":
        return kind in _MODELS
    if part is None:
        return kind != _FUNCTION
    return part in _PARTS


def _imported(module: object, kind: str, config: object) -> str:
    name = config if kind == _FUNCTION and isinstance(config, str) else kind
    return f"{str(module)[:100]}.{name[:100]}"


def _inputs(top: object) -> list[dict[str, Any]]:
    """Return the inputs of a model: its InputLayers, or what its first layer takes."""
    layers = _sublayers(top)
    inputs = [layer for layer in layers if layer.get("class_name") == "InputLayer"]
    tensors = []
    for layer in inputs or layers[:1]:
        settings = _settings(layer)
        for key in ("batch_shape", "batch_input_shape"):
            shape = _shape(_member(settings, key))
            if shape is not None:
                name = _text(_member(settings, "name")) or _text(layer.get("name"))
                dtype = _dtype(_member(settings, "dtype"))
                tensors.append({"name": name or "", "dtype": dtype, "shape": shape})
                break
    return tensors[: bounded.LISTED]


def _shape(value: object) -> list[int | None] | None:
    value = _member(value, "items") or value  # a tuple, as Keras 2 writes it
    if not isinstance(value, list) or len(value) > _MOST_DIMENSIONS:
        return None
    return [
        size if type(size) is int and 0 <= size <= _LAST_INT else None for size in value
    ]


def _dtype(value: object) -> str:
    policy = _member(_member(value, "config"), "name")
    return _text(value) or _text(policy) or "float32"


def _layers(config: object) -> Iterator[dict[str, Any]]:
    """Yield the layers of a model, of models in it, and those in wrappers."""
    waiting = _sublayers(_settings(config))
    while waiting:
        layer = waiting.pop()
        yield layer
        waiting += _sublayers(_settings(layer))


def _sublayers(settings: object) -> list[dict[str, Any]]:
    """Return the layers right within a layer's or model's settings."""
    layers = settings
    if isinstance(settings, dict):
        layers = settings.get("layers", [settings.get("layer")])
    if not isinstance(layers, list):
        return []
    return [
        layer for layer in layers if isinstance(layer, dict) and "class_name" in layer
    ]


def _settings(value: object) -> dict[str, Any] | list[Any]:
    """Return ``config``, which for the oldest Sequential is a list of layers."""
    settings = _member(value, "config")
    return settings if isinstance(settings, dict | list) else {}


def _member(value: object, name: str) -> Any:  # noqa: ANN401 - any JSON value
    return value.get(name) if isinstance(value, dict) else None


def _objects(value: object) -> Iterator[dict[str, Any]]:
    """Yield all objects within a JSON value, itself with them."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _text(value: object) -> str | None:
    return bounded.clean(value) if isinstance(value, str) else None
