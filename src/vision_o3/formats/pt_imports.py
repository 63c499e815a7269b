"""What PyTorch's pickles may import, and the tensors that this makes.

The list is what ``torch.load(weights_only=True)`` of PyTorch 2.13 accepts
(``torch/_weights_only_unpickler.py``, ``_get_allowed_globals``), as exact pairs of
module and name, and what TorchScript writes (``torch/csrc/jit/serialization``), within
its archives only; and ``bytes``, which pickling writes for empty ones. It is narrower
where a call could do harm to a plain unpickler:

- storages and tensor classes are types to name, not to call (that allocates memory);
- ``_codecs.encode``, ``bytes`` and ``bytearray`` take constants only, as pickling
  writes them;
- attributes are set on ordered dicts and parameters only, under plain names;
- left out: ``_rebuild_nested_tensor``, ``_rebuild_wrapper_subclass`` and
  ``_rebuild_device_tensor_from_numpy``, whose bounds cannot be checked here.

``torch.storage._load_from_bytes``, which unpickles its argument, is on neither list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vision_o3.errors import LimitExceededError
from vision_o3.formats.pickle_values import (
    HarmfulCallError,
    Import,
    Items,
    Made,
    Members,
)
from vision_o3.formats.pt_tensors import (
    DTYPES,
    STORAGES,
    TYPES,
    Known,
    Storage,
    Tensor,
    counts_of,
    dtype_of,
    is_count,
    product_of,
    view_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_WORK = 128 << 20
"""Bytes that calls copy, in all; a pickle can pass one large value to many calls."""
_MOST_ARGUMENTS = 16
_ITEM_COST = 64
"""Bytes that are counted for an item of a list or dict."""
_MOST_ATTRIBUTES = 100

_SCHEMES = {
    ("torch", f"per_{name}")
    for name in (
        *("tensor_affine", "tensor_symmetric", "channel_affine", "channel_symmetric"),
        "channel_affine_float_qparams",
    )
}
_TENSORS = {("torch", "Tensor"), ("torch.nn.parameter", "Parameter")}
_TENSOR_CLASSES = {
    *(
        (f"torch{device}", f"{name}Tensor")
        for device in ("", ".cuda")
        for name in TYPES
        if not name.startswith(("Q", "Complex"))
    ),
    *(
        (f"torch{device}.sparse", f"{name}Tensor")
        for device in ("", ".cuda")
        for name in TYPES
        if not name.startswith(("Q", "Complex", "Bool"))
    ),
}
_NAMED_ONLY = {
    *STORAGES,
    *DTYPES,
    *_SCHEMES,
    *_TENSORS,
    *_TENSOR_CLASSES,
    ("torch.storage", "TypedStorage"),
}


class TorchImports:
    """What a pickle of PyTorch may import, and what it makes of it.

    Args:
        torchscript: The pickle lies in a TorchScript archive.

    Attributes:
        storages: Those that its tensors need, by key.
    """

    def __init__(self, *, torchscript: bool) -> None:
        self.torchscript = torchscript
        self.storages: dict[str, Storage] = {}
        self._views: dict[str, Storage] = {}
        self._work = 0

    def allows(self, module: str, name: str) -> bool:
        """Say whether importing this exact pair is harmless."""
        pair = (module, name)
        return pair in ALLOWED or (
            self.torchscript and (pair in _SCRIPT_CALLS or _is_script(module))
        )

    def call(self, function: Import, arguments: tuple[object, ...]) -> object:
        """Return what an allowed import makes of arguments.

        Raises:
            HarmfulCallError: It is not known to be harmless with these.
            ValueError: They are not what it can be called with.
        """
        pair = (function.module, function.name)
        if self.torchscript:
            if _is_script(function.module):
                return Made(function.path, [arguments])
            if pair in _SCRIPT_CALLS:
                return _as_given(function, arguments)
        step = _CALLS.get(pair)
        if step is None:
            raise HarmfulCallError(f"a call of {function.path}")
        if len(arguments) > _MOST_ARGUMENTS:
            raise ValueError(f"a pickle in it calls {function.path} with many values")
        if any(isinstance(argument, Made) for argument in arguments):
            raise HarmfulCallError(f"{function.path} with computed arguments")
        self._spend(arguments)
        return step(function, arguments)

    def _spend(self, arguments: tuple[object, ...]) -> None:
        """Count what a call may copy."""
        for argument in arguments:
            if isinstance(argument, (str, bytes)):
                self._work += len(argument)
            elif isinstance(argument, (list, tuple)):
                self._work += _ITEM_COST * len(argument)
            elif isinstance(argument, Items):
                self._work += _ITEM_COST * len(argument.pairs)
        if self._work > MOST_WORK:
            raise LimitExceededError(
                "The pickles in this file have too large values outside of tensors: at "
                f"most {MOST_WORK} bytes are looked at.",
                limit=MOST_WORK,
            )

    def persistent(self, identity: object) -> object:
        """Return the storage that a persistent id stands for.

        Raises:
            ValueError: It is none.
        """
        match identity:
            case ("module", kind, *_):
                return kind  # with its source code; in the older form only
            case ("storage", Import() as kind, str(key), _, elements, *views):
                pass
            case _:
                raise ValueError("a pickle in it refers to what is not a storage")
        dtype = STORAGES.get((kind.module, kind.name))
        if dtype is None or not is_count(elements) or len(views) > 1:
            raise ValueError("a pickle in it refers to what is not a storage")
        name, itemsize = dtype
        whole = Storage(key, name, itemsize, 0, elements, elements * itemsize)
        if self.storages.setdefault(key, whole).size != whole.size:
            raise ValueError("tensors in it do not agree how large their storage is")
        return self._view(whole, views[0]) if views and views[0] is not None else whole

    def _view(self, whole: Storage, view: object) -> Storage:
        """Return a part of a storage that is one by itself; older form only."""
        match view:
            case (str(key), start, elements) if (
                is_count(start)
                and is_count(elements)
                and start + elements <= whole.elements
            ):
                return self._views.setdefault(
                    key,
                    Storage(
                        whole.key,
                        whole.dtype,
                        whole.itemsize,
                        start,
                        elements,
                        whole.size,
                    ),
                )
        raise ValueError("a view of a storage in it lies outside the storage")


# What calls make. Each takes the function and its arguments.


def _ordered(function: Import, arguments: tuple[object, ...]) -> object:
    made = Items(function.name)
    if not arguments:
        return made
    (pairs,) = _exactly(function, arguments, 1)
    if isinstance(pairs, Items):
        made.pairs = [*pairs.pairs]
    elif isinstance(pairs, list) and all(_is_pair(pair) for pair in pairs):
        made.pairs = [(pair[0], pair[1]) for pair in pairs]
    else:
        raise HarmfulCallError(f"{function.path} with unusual arguments")
    return made


def _set(function: Import, arguments: tuple[object, ...]) -> object:
    (members,) = _exactly(function, arguments, 1) if arguments else ([],)
    if not isinstance(members, list):
        raise HarmfulCallError(f"{function.path} with unusual arguments")
    return Members(members)


def _encode(function: Import, arguments: tuple[object, ...]) -> object:
    match arguments:
        case (str(text), "latin1" | "latin-1"):
            return text.encode("latin-1")
        case _:
            raise HarmfulCallError(f"{function.path} with unusual arguments")


def _bytes(function: Import, arguments: tuple[object, ...]) -> object:
    match arguments:
        case ():
            return b""
        case (bytes(content),):
            return content
        case (str(text), "latin1" | "latin-1"):
            return text.encode("latin-1")
        case _:
            raise HarmfulCallError(f"{function.path} with unusual arguments")


def _constant(function: Import, arguments: tuple[object, ...]) -> object:
    if all(isinstance(value, (str, int, float)) for value in arguments):
        return Known(function.path)
    raise HarmfulCallError(f"{function.path} with unusual arguments")


def _size(function: Import, arguments: tuple[object, ...]) -> object:
    (sizes,) = _exactly(function, arguments, 1) if arguments else ((),)
    if not isinstance(sizes, (tuple, list)):
        raise HarmfulCallError(f"{function.path} with unusual arguments")
    return tuple(sizes)


def _rebuild_tensor(function: Import, arguments: tuple[object, ...]) -> object:
    storage, offset, shape, strides = _exactly(function, arguments, 4)
    return view_of(storage, offset, shape, strides)


def _rebuild_tensor_v2(function: Import, arguments: tuple[object, ...]) -> object:
    storage, offset, shape, strides, _, hooks, *more = _exactly(
        function, arguments, 6, 7
    )
    _check_hooks(hooks)
    _check_marks(more)
    return view_of(storage, offset, shape, strides)


def _rebuild_tensor_v3(function: Import, arguments: tuple[object, ...]) -> object:
    storage, offset, shape, strides, _, hooks, dtype, *more = _exactly(
        function, arguments, 7, 8
    )
    _check_hooks(hooks)
    _check_marks(more)
    return view_of(storage, offset, shape, strides, dtype_of(dtype))


def _rebuild_qtensor(function: Import, arguments: tuple[object, ...]) -> object:
    storage, offset, shape, strides, quantizer, _, hooks = _exactly(
        function, arguments, 7
    )
    _check_hooks(hooks)
    tensor = view_of(storage, offset, shape, strides)
    if not isinstance(quantizer, tuple) or not quantizer:
        raise ValueError("a quantized tensor in it does not say how")
    scheme, *told = quantizer
    pair = isinstance(scheme, Import) and (scheme.module, scheme.name)
    if pair not in _SCHEMES:
        raise ValueError("a quantized tensor in it does not say how")
    match told:
        case [int() | float(), int()] if pair == ("torch", "per_tensor_affine"):
            return tensor
        case [scales, zeros, int(axis)] if 0 <= axis < len(tensor.shape):
            channels = tensor.shape[axis]
            if _length(scales) == _length(zeros) == channels:
                return tensor
    raise ValueError("a quantized tensor in it has scales that do not fit")


def _rebuild_parameter(function: Import, arguments: tuple[object, ...]) -> object:
    tensor, _, hooks = _exactly(function, arguments, 3)
    _check_hooks(hooks)
    return _is_tensor(tensor)


def _rebuild_with_state(function: Import, arguments: tuple[object, ...]) -> object:
    tensor, _, hooks, state = _exactly(function, arguments, 4)
    _check_hooks(hooks)
    _check_attributes(state)
    return _is_tensor(tensor)


def _rebuild_from_type(function: Import, arguments: tuple[object, ...]) -> object:
    """``_rebuild_from_type_v2``: calls its first argument with the third."""
    rebuild, kind, inner, state = _exactly(function, arguments, 4)
    step = None
    if isinstance(rebuild, Import):
        step = _REBUILDS.get((rebuild.module, rebuild.name))
    plain = isinstance(kind, Import) and (kind.module, kind.name) in _TENSORS
    if (
        step is None
        or not plain
        or not isinstance(inner, tuple)
        or not isinstance(rebuild, Import)
    ):
        raise HarmfulCallError(f"{function.path} of no plain tensor")
    _check_attributes(state)
    if any(isinstance(argument, Made) for argument in inner):
        raise HarmfulCallError(f"{function.path} with computed arguments")
    return step(rebuild, inner)


def _rebuild_sparse(function: Import, arguments: tuple[object, ...]) -> object:
    """A sparse tensor: the elements that are counted are those that are stored."""
    _, parts = _exactly(function, arguments, 2)
    match parts:
        case (Tensor(), Tensor() as values, shape):
            pass
        case (Tensor(), Tensor() as values, shape, bool() | None):
            pass
        case (Tensor(), Tensor(), Tensor() as values, shape):
            pass
        case _:
            raise ValueError("a sparse tensor in it is not one")
    return Tensor(values.dtype, counts_of(shape), values.elements, values.place)


def _rebuild_meta(function: Import, arguments: tuple[object, ...]) -> object:
    """A tensor without elements of its own."""
    dtype, shape, _, _ = _exactly(function, arguments, 4)
    counts = counts_of(shape)
    name, _ = dtype_of(dtype)
    return Tensor(name, counts, product_of(counts), (object(),))


def _rebuild_moved(function: Import, arguments: tuple[object, ...]) -> object:
    """``_rebuild_device_tensor_from_cpu_tensor``."""
    tensor, dtype, _, _ = _exactly(function, arguments, 4)
    found = _is_tensor(tensor)
    name, _ = dtype_of(dtype)
    return Tensor(name, found.shape, found.elements, found.place)


def _as_given(function: Import, arguments: tuple[object, ...]) -> object:
    """``torch.jit._pickle``: marks the type of a value."""
    return _exactly(function, arguments, 1, 2)[0]


_REBUILDS: dict[tuple[str, str], Callable[[Import, tuple[object, ...]], object]] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_qtensor"): _rebuild_qtensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_with_state,
    ("torch._utils", "_rebuild_sparse_tensor"): _rebuild_sparse,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _rebuild_meta,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _rebuild_moved,
}
_CALLS = {
    **_REBUILDS,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    # Its name before PyTorch 1.9, which torch.load translates.
    ("torch.tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("collections", "OrderedDict"): _ordered,
    ("collections", "Counter"): _ordered,
    ("torch", "Size"): _size,
    ("torch", "device"): _constant,
    ("torch.serialization", "_get_layout"): _constant,
    ("_codecs", "encode"): _encode,
    # Pickles of protocol 2, torch.save's default, use Python 2's name of builtins.
    **{
        (module, name): step
        for module in ("builtins", "__builtin__")
        for name, step in (
            ("bytearray", _bytes),
            ("bytes", _bytes),
            ("set", _set),
            ("complex", _constant),
        )
    },
}
ALLOWED = frozenset({*_NAMED_ONLY, *_CALLS})
"""Modules and names that any pickle may import."""
_CLASSES = "__torch__.torch.classes."
CLASSES = frozenset({"quantized", "rnn", "sparse", "xnnpack", "mkldnn", "mkl"})
"""Namespaces of PyTorch's classes in C++ which do not reach outside; torchvision's
opens videos."""
_SCRIPT_CALLS = {
    ("torch.jit._pickle", name)
    for name in (
        *("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist"),
        *("restore_type_tag", "build_tensor_from_id"),
    )
}


def _is_script(module: str) -> bool:
    """Say whether a class lies in the archive's own TorchScript code.

    Or is one of PyTorch's own, in C++, that holds packed weights.
    """
    if module.startswith(_CLASSES):
        return module.removeprefix(_CLASSES) in CLASSES
    return module == "__torch__" or module.startswith("__torch__.")


# What arguments must be.


def _exactly(
    function: Import, arguments: tuple[object, ...], least: int, most: int = 0
) -> tuple[object, ...]:
    if least <= len(arguments) <= max(least, most):
        return arguments
    raise ValueError(
        f"a pickle in it calls {function.path} with too few or many values"
    )


def _is_pair(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2  # noqa: PLR2004 - key and value


def _is_tensor(value: object) -> Tensor:
    if isinstance(value, Tensor):
        return value
    raise ValueError("a parameter in it is not made of a tensor")


def _length(value: object) -> int:
    if isinstance(value, Tensor):
        return value.elements
    return len(value) if isinstance(value, list) else -1


def _check_hooks(hooks: object) -> None:
    if not (hooks is None or hooks == () or isinstance(hooks, Items)) or (
        isinstance(hooks, Items) and hooks.pairs
    ):
        raise HarmfulCallError("a tensor with hooks")


def _check_marks(more: list[object]) -> None:
    """Check a tensor's metadata: whether it is conjugated, negated."""
    for marks in more:
        plain = isinstance(marks, Items) and all(
            isinstance(key, str) and isinstance(value, bool)
            for key, value in marks.pairs[:_MOST_ATTRIBUTES]
        )
        if not plain and marks is not None:
            raise HarmfulCallError("a tensor with unusual metadata")


def _check_attributes(state: object) -> None:
    """Check attributes that are set on a tensor: none may be Python's or PyTorch's."""
    parts = state if isinstance(state, tuple) else (state,)
    if len(parts) > 2:  # noqa: PLR2004 - the attributes, and those of slots
        raise ValueError("a tensor in it has attributes that are none")
    for part in parts:
        plain = isinstance(part, Items) and len(part.pairs) <= _MOST_ATTRIBUTES
        if part is not None and not (plain and _are_plain(part)):
            raise HarmfulCallError("unusual attributes set on a tensor")


def _are_plain(attributes: Items) -> bool:
    return all(
        isinstance(key, str) and not key.startswith("_") for key, _ in attributes.pairs
    )
