"""HDF5 files: the superblock read here, the rest by HDF5's own library.

The superblock: HDF5 File Format Specification 3.0, II.A. Of Keras: models as of Keras 2
and the older form of Keras 3, weights alone of both.
"""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn

from vision_o3.errors import LimitExceededError, UnsafeContentError
from vision_o3.formats import bounded, keras

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vision_o3.formats.limits import Limits

SIGNATURE = b"\x89HDF\r\n\x1a\n"

# By version: where the size of addresses is told, and where the addresses start.
_LAYOUT = {0: (13, 24), 1: (13, 28), 2: (9, 12), 3: (9, 12)}
_ADDRESS_SIZES = {2, 4, 8}
_LONGEST = 28 + 3 * 8
_FIRST_USER_BLOCK = 512

MOST_OBJECTS = 100_000
LONGEST_ATTRIBUTE = 64 << 20
"""Bytes of a Keras configuration."""
_LONGEST_PATH = 4 * bounded.LONGEST_TEXT
_FREE_BYTES = 16 << 20
"""Bytes of datasets that may be of any ratio to the file's."""
_LAST_INT = 2**63 - 1
_MODEL_WEIGHTS = "model_weights"


def superblock_version(file: BinaryIO, size: int) -> int:
    """Return the superblock's version, if the file reaches the end that it states.

    The superblock is at 0, 512, 1024, 2048, …, after a block of the user's own.

    Raises:
        ValueError: Not a whole HDF5 file.
    """
    at = 0
    while at + len(SIGNATURE) < size:
        file.seek(at)
        block = file.read(_LONGEST)
        if block.startswith(SIGNATURE):
            return _version(block, at, size)
        at = max(_FIRST_USER_BLOCK, 2 * at)
    raise ValueError("an HDF5 file has the signature \\x89HDF")


def _version(block: bytes, at: int, size: int) -> int:
    version = block[len(SIGNATURE)]
    if version not in _LAYOUT:
        raise ValueError(f"its superblock's version {version} does not exist")
    told_at, first = _LAYOUT[version]
    width = int.from_bytes(block[told_at : told_at + 1], "little")
    if width not in _ADDRESS_SIZES:
        raise ValueError("its superblock is damaged or cut short")
    # Base address, one of no interest here, end of file.
    base = int.from_bytes(block[first : first + width], "little")
    end = int.from_bytes(block[first + 2 * width : first + 3 * width], "little")
    if len(block) < first + 3 * width or at + end - base > size:
        raise ValueError(
            "it ends before the end that it states, as if it were cut short"
        )
    return version


def inspect(file: BinaryIO, size: int, limits: Limits) -> dict[str, Any]:
    """Return the facts of an HDF5 file, of Keras or not (``H5Facts``).

    Headers of objects and a few attributes are read, no dataset's content is: no filter
    or plugin runs on it. Links are followed only to objects in this file, each once.

    HDF5's own library reads the file. It is in C, and may crash or hang on a hostile
    one: this belongs into a process of its own.

    Raises:
        ValueError: Not a whole, good HDF5 file.
        UnsafeContentError: It refers to other files.
        LimitExceededError: It has too many objects, or a configuration is too long.
    """
    version = superblock_version(file, size)
    file.seek(0)
    try:
        facts = _read(file, size, limits)
    except (UnsafeContentError, LimitExceededError, _BadFileError):
        raise
    except Exception as error:  # what comes out of the library for damage is not told
        raise ValueError(
            f"it is damaged: {bounded.clean(str(error)) or type(error).__name__}"
        ) from error
    return {"kind": "h5", "superblock_version": version, **facts}


class _BadFileError(ValueError):
    """What was found wrong here, not by the library."""


def _read(file: BinaryIO, size: int, limits: Limits) -> dict[str, Any]:
    # Loaded here: the other functions serve where the library is not wanted.
    h5py: Any = importlib.import_module("h5py")
    with h5py.File(file, "r", locking=False) as opened:
        root = opened.id
        tensors = list(_datasets(h5py, root))
        _check_ratio(sum(tensor.size for tensor in tensors), size, limits)
        home = _open_group(h5py, root, _MODEL_WEIGHTS) or root
        texts = {
            name: _text_attribute(h5py, root, name)
            for name in ("model_config", "training_config")
        }
        versions = {
            name: _text_attribute(h5py, root, name) or _text_attribute(h5py, home, name)
            for name in ("keras_version", "backend")
        }
        named_layers = _count_attribute(h5py, home, "layer_names")
    configs = {name: _parsed(text) for name, text in texts.items() if text is not None}
    findings = [
        finding for config in configs.values() for finding in keras.findings(config)
    ][: keras.MOST_FINDINGS]
    facts: dict[str, Any] = {
        name: bounded.clean(_decoded(text))
        for name, text in versions.items()
        if text is not None
    }
    if "model_config" in configs:
        facts |= keras.describe(configs["model_config"])
    elif named_layers:
        facts["layer_count"] = named_layers
    return {
        **facts,
        **_weights(tensors),
        "safety": {
            "verdict": "unsafe" if findings else "safe",
            "findings": findings,
        },
    }


def _parsed(text: str | bytes) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return keras.parse(text)
    except ValueError as error:
        raise _BadFileError(str(error)) from error


def _weights(tensors: list[_Dataset]) -> dict[str, Any]:
    """Return the facts of weights: of the model alone, where it tells them apart."""
    of_model = [
        tensor for tensor in tensors if tensor.path.startswith(f"{_MODEL_WEIGHTS}/")
    ]
    weights = of_model or [
        tensor
        for tensor in tensors
        if not tensor.path.startswith(("optimizer_weights/", "optimizer/"))
    ]
    parameters = sum(weight.elements for weight in weights if weight.is_numeric)
    if parameters > _LAST_INT:
        raise _BadFileError("its datasets are larger than any file")
    return {
        "weights": [
            {
                "name": bounded.clean(weight.path),
                "dtype": weight.dtype,
                "shape": weight.shape,
            }
            for weight in weights[: bounded.LISTED]
        ],
        "weight_count": len(weights),
        "parameters": parameters,
    }


def _check_ratio(told: int, size: int, limits: Limits) -> None:
    """Check that the datasets are not told to be much larger than what is there.

    Whoever loads them asks for the memory that they tell of (CVE-2026-0897).
    """
    if told > _FREE_BYTES + size * limits.unpack_ratio:
        raise bounded.over_limit(
            "The HDF5 file's datasets have too many bytes for each of the file",
            limits.unpack_ratio,
            "VISION_O3_MAX_UNPACK_RATIO",
        )


class _Dataset(NamedTuple):
    path: str
    dtype: str
    shape: list[int] | None
    elements: int
    size: int
    is_numeric: bool


def _datasets(h5py: Any, root: Any) -> Iterator[_Dataset]:  # noqa: ANN401 - not typed
    """Yield all datasets in the order of their paths, each under its first.

    Raises:
        UnsafeContentError: A link or dataset refers to another file.
        LimitExceededError: There are too many objects.
    """
    seen: set[int] = set()
    links = 0
    waiting: list[tuple[str, Any, bytes]] = [("", root, b".")]
    while waiting:
        path, parent, name = waiting.pop()
        found = h5py.h5o.open(parent, name)
        address = h5py.h5o.get_info(found).addr
        if address in seen:
            continue
        seen.add(address)
        if isinstance(found, h5py.h5d.DatasetID):
            yield _dataset(h5py, path, found)
        elif isinstance(found, h5py.h5g.GroupID):  # or a type with a name
            links += len(found)
            if links > MOST_OBJECTS:
                raise LimitExceededError(
                    "The HDF5 file has too many objects: this gateway accepts at most "
                    f"{MOST_OBJECTS}.",
                    limit=MOST_OBJECTS,
                )
            # The last is taken first.
            for inner in sorted(found, reverse=True):
                inner_path = _join(path, inner)
                if _is_inside(h5py, found, inner, inner_path):
                    waiting.append((inner_path, found, inner))


def _join(path: str, name: bytes) -> str:
    text = name.decode("utf-8", "replace")
    # Cut, as the paths of deep groups would add up to much more than the file.
    return f"{path}/{text}"[:_LONGEST_PATH] if path else text[:_LONGEST_PATH]


def _is_inside(h5py: Any, group: Any, name: bytes, path: str) -> bool:  # noqa: ANN401 - not typed
    """Say whether a link is to an object itself, not to the name of one.

    Raises:
        UnsafeContentError: It is to another file.
    """
    kind = group.links.get_info(name).type
    if kind == h5py.h5l.TYPE_EXTERNAL:
        filename, _ = group.links.get_val(name)
        _refuse(f"the link {path!r}", _filename(filename))
    if kind not in {h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT}:
        _refuse(f"the link {path!r}", "what only a plugin knows")
    return bool(kind == h5py.h5l.TYPE_HARD)


def _dataset(h5py: Any, path: str, found: Any) -> _Dataset:  # noqa: ANN401 - not typed
    """Return what a dataset is, if its content is in this file.

    Asking a virtual dataset for its shape opens the others: it is refused before.
    """
    created = found.get_create_plist()
    if created.get_external_count():
        _refuse(f"the dataset {path!r}", _filename(created.get_external(0)[0]))
    if created.get_layout() == h5py.h5d.VIRTUAL:
        sources = created.get_virtual_count()
        filename = created.get_virtual_filename(0) if sources else "others"
        _refuse(f"the dataset {path!r}", _filename(filename))
    dtype = found.dtype
    space = found.get_space()
    is_null = space.get_simple_extent_type() == h5py.h5s.NULL
    shape = None if is_null else space.get_simple_extent_dims()
    elements = math.prod(shape) if shape is not None else 0
    if max(shape or (), default=0) > _LAST_INT:
        raise _BadFileError("its datasets are larger than any file")
    return _Dataset(
        path,
        "string" if dtype.kind in "OSU" else bounded.clean(dtype.name),
        None if shape is None else list(shape),
        elements,
        elements * dtype.itemsize,
        dtype.kind in "biufc",
    )


def _filename(name: str | bytes) -> str:
    return f"the file {bounded.clean(_decoded(name))!r}"


def _decoded(text: str | bytes) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text


def _refuse(what: str, target: str) -> NoReturn:
    what = bounded.clean(what)
    raise UnsafeContentError(
        f"In the HDF5 file {what} refers to {target}. Put all content into one file.",
        findings=[what],
    )


def _open_group(h5py: Any, root: Any, name: str) -> Any:  # noqa: ANN401 - not typed
    """Return a group right within the root, or ``None``."""
    link = name.encode()
    if link not in root or not _is_inside(h5py, root, link, name):
        return None
    found = h5py.h5o.open(root, link)
    return found if isinstance(found, h5py.h5g.GroupID) else None


def _text_attribute(h5py: Any, home: Any, name: str) -> str | bytes | None:  # noqa: ANN401 - not typed
    """Return an attribute that is one text, or ``None``.

    Raises:
        LimitExceededError: It is too long.
    """
    attribute = _attribute(h5py, home, name)
    if attribute is None or attribute.shape != ():
        return None
    if attribute.get_type().get_class() != h5py.h5t.STRING:
        return None
    _check_length(name, attribute.get_storage_size())
    text: str | bytes = h5py.AttributeManager(h5py.Group(home))[name]
    _check_length(name, len(text))
    return text


def _check_length(name: str, length: int) -> None:
    if length > LONGEST_ATTRIBUTE:
        raise LimitExceededError(
            f"The attribute {name} of the HDF5 file is too long: this gateway accepts "
            f"at most {LONGEST_ATTRIBUTE} bytes.",
            limit=LONGEST_ATTRIBUTE,
        )


def _count_attribute(h5py: Any, home: Any, name: str) -> int:  # noqa: ANN401 - not typed
    """Return how many texts an attribute lists, which are not read."""
    attribute = _attribute(h5py, home, name)
    if attribute is None or attribute.shape is None or len(attribute.shape) != 1:
        return 0  # absent, empty, or of another form
    return min(int(attribute.shape[0]), _LAST_INT)


def _attribute(h5py: Any, home: Any, name: str) -> Any:  # noqa: ANN401 - not typed
    key = name.encode()
    return h5py.h5a.open(home, key) if h5py.h5a.exists(home, key) else None
