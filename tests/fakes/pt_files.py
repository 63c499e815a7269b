"""PyTorch files put together by hand, without PyTorch: good ones, and any others.

Each function for a value returns the instructions that push it, to be put together.
"""

from __future__ import annotations

import io
import struct
import zipfile

MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
"""The instruction that pushes the magic number of files of the older form."""


def imported(path: str) -> bytes:
    """GLOBAL; the last dot parts module and name."""
    module, _, name = path.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    content = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def whole(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def row(*values: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(values) + b"t"


def listed(*values: bytes) -> bytes:
    return b"](" + b"".join(values) + b"e"


def table(**values: bytes) -> bytes:
    """A dict."""
    pairs = (text(key) + value for key, value in values.items())
    return b"}(" + b"".join(pairs) + b"u"


def called(path: str, *arguments: bytes) -> bytes:
    return imported(path) + row(*arguments) + b"R"


def pickled(value: bytes, protocol: int = 2) -> bytes:
    return bytes([0x80, protocol]) + value + b"."


NO_HOOKS = called("collections.OrderedDict")


def storage(
    key: str = "0", count: int = 6, kind: str = "torch.FloatStorage", *view: bytes
) -> bytes:
    told = (text("storage"), imported(kind), text(key), text("cpu"), whole(count))
    return row(*told, *view) + b"Q"


def tensor(
    held: bytes | None = None,
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    offset: int = 0,
    hooks: bytes = NO_HOOKS,
) -> bytes:
    return called(
        "torch._utils._rebuild_tensor_v2",
        storage() if held is None else held,
        whole(offset),
        row(*map(whole, shape)),
        row(*map(whole, strides)),
        b"\x89",
        hooks,
    )


def zipped(
    members: dict[str, bytes], *, folder: str = "m", deflated: tuple[str, ...] = ()
) -> bytes:
    """A ZIP archive of members under one folder, or none."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path, content in members.items():
            method = zipfile.ZIP_DEFLATED if path in deflated else zipfile.ZIP_STORED
            name = f"{folder}/{path}" if folder else path
            archive.writestr(name, content, method)
    return file.getvalue()


def torch_zip(
    value: bytes | None = None, members: dict[str, bytes] | None = None
) -> bytes:
    """A file as ``torch.save`` writes it, of a 2 × 3 tensor ``w`` or another value."""
    return zipped(
        {
            "data.pkl": pickled(table(w=tensor()) if value is None else value),
            "byteorder": b"little",
            "data/0": bytes(24),
            "version": b"3\n",
            ".data/serialization_id": b"0" * 40,
            **(members or {}),
        }
    )


def torchscript(
    value: bytes | None = None,
    code: bytes = b"",
    members: dict[str, bytes] | None = None,
) -> bytes:
    """A TorchScript archive of a module ``__torch__.Net`` with a parameter ``w``."""
    made = imported("__torch__.Net") + b")\x81" + table(w=tensor()) + b"b"
    return torch_zip(
        made if value is None else value,
        {
            "code/__torch__.py": code,
            "constants.pkl": pickled(b")"),
            **(members or {}),
        },
    )


def legacy(
    value: bytes | None = None,
    storages: dict[str, tuple[int, bytes]] | None = None,
    *,
    protocol: int = 1001,
) -> bytes:
    """A file of the older form; storages by key: the count of elements, and bytes."""
    held = {"0": (6, bytes(24))} if storages is None else storages
    system = table(little_endian=b"\x88", protocol_version=whole(protocol))
    pickles = (
        MAGIC,
        whole(protocol),
        system,
        table(w=tensor(storage("0", 6, "torch.FloatStorage", b"N")))
        if value is None
        else value,
        listed(*map(text, held)),
    )
    rest = (struct.pack("<q", count) + content for count, content in held.values())
    return b"".join(map(pickled, pickles)) + b"".join(rest)


OS_SYSTEM = called("os.system", text("true"))
"""A call that a safe reader never makes."""
