"""Tensors in PyTorch's pickles: views of storages, and where they are in a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from vision_o3.formats.pickle_values import Import, Items, Made, Members

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MOST_DIMENSIONS = 64
"""Of a tensor; what PyTorch has at most."""
_LAST = 2**63 - 1
_LONGEST_PATH = 400
"""Characters of a tensor's name that are kept while it is put together."""
_MODULE_DICTS = {"_parameters", "_buffers", "_modules"}
"""Attributes of a pickled ``torch.nn.Module`` that its ``state_dict`` passes over."""

TYPES = {
    "BFloat16": ("bfloat16", 2),
    "Bool": ("bool", 1),
    "Byte": ("uint8", 1),
    "Char": ("int8", 1),
    "ComplexDouble": ("complex128", 16),
    "ComplexFloat": ("complex64", 8),
    "Double": ("float64", 8),
    "Float": ("float32", 4),
    "Half": ("float16", 2),
    "Int": ("int32", 4),
    "Long": ("int64", 8),
    "QInt32": ("qint32", 4),
    "QInt8": ("qint8", 1),
    "QUInt2x4": ("quint2x4", 1),
    "QUInt4x2": ("quint4x2", 1),
    "QUInt8": ("quint8", 1),
    "Short": ("int16", 2),
}
_PACKED = {"quint4x2": 2, "quint2x4": 4}
"""Elements in a byte."""
STORAGES = {
    ("torch.storage", "UntypedStorage"): ("uint8", 1),
    **{("torch", f"{name}Storage"): dtype for name, dtype in TYPES.items()},
    **{
        ("torch.cuda", f"{name}Storage"): dtype
        for name, dtype in TYPES.items()
        if not name.startswith("Q")
    },
}
DTYPES = {
    **{("torch", name): (name, size) for name, size in TYPES.values()},
    ("torch", "complex32"): ("complex32", 4),
    ("torch", "uint16"): ("uint16", 2),
    ("torch", "uint32"): ("uint32", 4),
    ("torch", "uint64"): ("uint64", 8),
    ("torch", "bits16"): ("bits16", 2),
    **{
        ("torch", name): (name, 1)
        for name in (
            *("bits1x8", "bits2x4", "bits4x2", "bits8", "float4_e2m1fn_x2"),
            *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
            "float8_e8m0fnu",
            *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
        )
    },
}


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A harmless value of no interest, such as a device."""

    origin: str


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """The bytes that tensors are views of: ``elements`` of them from ``start`` on.

    ``size``: the bytes of the whole storage ``key``.
    """

    key: str
    dtype: str
    itemsize: int
    start: int
    elements: int
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor: equal ``place`` means the same elements."""

    dtype: str
    shape: tuple[int, ...]
    elements: int
    place: tuple[object, ...]


def tensors_of(value: object, start: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in a value with their names, in order.

    A name is the path of keys and positions from ``start``, joined by dots. Each
    container is looked at once, wherever else it is referred to: one may contain
    itself.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [(start, value)]
    while waiting:
        path, found = waiting.pop()
        if isinstance(found, Tensor):
            yield path, found
            continue
        if isinstance(found, tuple) and not found:
            continue
        if not isinstance(found, (Items, Made, list, tuple, Members)):
            continue
        if id(found) in seen:
            continue
        seen.add(id(found))
        waiting.extend(reversed([*_within(path, found)]))


def texts_of(value: object) -> Iterator[str]:
    """Yield the texts in a value, keys with them, in no particular order."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, str):
            yield found
        if not isinstance(found, (Items, Made, list, tuple, Members)):
            continue
        if id(found) not in seen:
            seen.add(id(found))
            waiting.extend(_parts_of(found))


def _parts_of(
    found: Items | Made | Members | list[object] | tuple[object, ...],
) -> Iterable[object]:
    if isinstance(found, Items):
        return (part for pair in found.pairs for part in pair)
    if isinstance(found, Made):
        return found.parts
    return found.members if isinstance(found, Members) else found


def _within(
    path: str, found: Items | Made | Members | list[object] | tuple[object, ...]
) -> Iterator[tuple[str, object]]:
    if isinstance(found, Made):
        for part in found.parts:
            yield path, part
    elif isinstance(found, Items):
        yield from _valued(path, found)
    else:
        items = found.members if isinstance(found, Members) else found
        for index, value in enumerate(items):
            yield _joined(path, index), value


def _valued(path: str, found: Items) -> Iterator[tuple[str, object]]:
    last: dict[tuple[type, str | int], object] = {}
    for key, value in found.pairs:
        if isinstance(key, (str, int)):
            last[type(key), key] = value
        else:
            yield _joined(path, "?"), value
    for (_, key), value in last.items():
        plain = isinstance(value, Items) and key in _MODULE_DICTS
        yield path if plain else _joined(path, key), value


def lookup(value: object, wanted: str) -> object:
    """Return the value of a key, the last one, or ``None``."""
    pairs = value.pairs if isinstance(value, Items) else []
    return next(
        (
            found
            for key, found in reversed(pairs)
            if isinstance(key, str) and key == wanted
        ),
        None,
    )


def _joined(path: str, key: str | int) -> str:
    if isinstance(key, int) and abs(key) > _LAST:
        key = "?"
    name = str(key)[:_LONGEST_PATH]
    return f"{path}.{name}"[:_LONGEST_PATH] if path else name


def is_count(value: object) -> TypeGuard[int]:
    """Say whether a value is a number of elements, at most 2**63 - 1."""
    return type(value) is int and 0 <= value <= _LAST


def dtype_of(value: object) -> tuple[str, int]:
    """Return the name and the bytes of a type of elements.

    Raises:
        ValueError: It is none.
    """
    found = isinstance(value, Import) and DTYPES.get((value.module, value.name))
    if found:
        return found
    raise ValueError("a tensor in it has no known type of elements")


def counts_of(value: object) -> tuple[int, ...]:
    """Return a shape, or strides.

    Raises:
        ValueError: It is none.
    """
    if (
        isinstance(value, (tuple, list))
        and len(value) <= MOST_DIMENSIONS
        and all(is_count(count) for count in value)
    ):
        return tuple(value)
    raise ValueError("a tensor in it has a shape that is none")


def product_of(shape: tuple[int, ...]) -> int:
    """Return how many elements a tensor of a shape has.

    Raises:
        ValueError: More than can be.
    """
    product = 1
    for count in shape:
        product *= count
    if product > _LAST:
        raise ValueError("a tensor in it has more elements than can be")
    return product


def view_of(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    dtype: tuple[str, int] | None = None,
) -> Tensor:
    """Return a view of a storage, if it lies within it.

    Raises:
        ValueError: It does not, or is none.
    """
    counts = counts_of(shape)
    steps = counts_of(strides)
    if (
        not isinstance(storage, Storage)
        or not isinstance(offset, int)
        or not is_count(offset)
        or len(counts) != len(steps)
    ):
        raise ValueError("a tensor in it is not a view of a storage")
    name, itemsize = dtype or (storage.dtype, storage.itemsize)
    elements = product_of(counts)
    span = offset
    if elements:
        span += 1 + sum(
            (count - 1) * step for count, step in zip(counts, steps, strict=True)
        )
    if span * itemsize > storage.elements * storage.itemsize * _PACKED.get(name, 1):
        raise ValueError("a tensor in it reaches beyond its storage")
    return Tensor(
        name, counts, elements, (storage.key, storage.start, offset, counts, steps)
    )
