"""PyTorch files as ``torch.save`` wrote them before version 1.6: a row of pickles.

``torch/serialization.py``, ``_legacy_save``: a magic number, the protocol, how the
system was, the object, and the keys of its storages; then each storage as the number of
its elements, in eight little-endian bytes, and their bytes, to the end of the file.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from vision_o3.errors import LimitExceededError
from vision_o3.formats.archives import ZIP_END
from vision_o3.formats.bounded import clean, read_exactly
from vision_o3.formats.pickle_values import CutShortError, Report
from vision_o3.formats.pickles import looks_pickled, scan
from vision_o3.formats.pt_imports import TorchImports
from vision_o3.formats.pt_tensors import lookup

if TYPE_CHECKING:
    from vision_o3.formats.pt_tensors import Storage

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_PICKLES = 5
_COUNT = 8
_ZIP_TAIL = 22 + 0xFFFF
"""Bytes in which a ZIP archive's end record lies."""


@dataclass(frozen=True, slots=True)
class Legacy:
    """What is in a file of the older form."""

    value: object
    report: Report
    byteorder: str | None


def read(file: BinaryIO, size: int, largest_pickle: int) -> Legacy:
    """Return the object in a file of the older form, whose storages fill the rest.

    Raises:
        ValueError: It is not of this form, or not whole.
        LimitExceededError: Its pickles are larger than ``largest_pickle`` together.
    """
    file.seek(0)
    head = file.read(tarfile.BLOCKSIZE)
    if _is_tar(head):
        raise ValueError(
            "it is, or can be read as, the tar archive of PyTorch before 0.1.10, which "
            "cannot be loaded safely: load it and save it again"
        )
    if not looks_pickled(head):
        raise ValueError("a PyTorch file begins as a ZIP archive or a pickle does")
    content = head + file.read(largest_pickle - len(head))
    report = Report()
    imports = TorchImports(torchscript=False)
    values: list[object] = []
    at = 0
    try:
        while len(values) < _PICKLES:
            value, at = scan(content, imports, report, at)
            values.append(value)
            _check_start(values)
    except CutShortError:
        if len(content) < size:
            raise _too_large(largest_pickle) from None
        raise
    _, _, system, found, keys = values
    _check_storages(file, at, size, keys, imports.storages)
    if _ends_as_zip(file, size):
        report.find("a ZIP archive at its end")
    return Legacy(found, report, _byteorder(system))


def _is_tar(head: bytes) -> bool:
    """Say whether ``torch.load`` would open a file as a tar archive, which it tries.

    A file can be both, a row of pickles within the first name of a tar archive.
    """
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError, OverflowError):
        return False
    return True


def _check_start(values: list[object]) -> None:
    """Check the first two pickles as soon as they are there."""
    value = values[-1]
    if len(values) == 1 and not (isinstance(value, int) and value == MAGIC):
        raise ValueError(
            "it is a Python pickle, but not as torch.save writes it: it does not begin "
            "with PyTorch's magic number"
        )
    if len(values) == 2 and not (isinstance(value, int) and value == PROTOCOL):  # noqa: PLR2004 - the second
        raise ValueError(f"it is not of PyTorch's protocol {PROTOCOL}")


def _check_storages(
    file: BinaryIO, at: int, size: int, keys: object, storages: dict[str, Storage]
) -> None:
    """Check that the storages of all tensors, and nothing else, follow."""
    left = dict(storages)
    for key in keys if isinstance(keys, list) else ():
        storage = left.pop(key, None) if isinstance(key, str) else None
        if storage is None:
            raise ValueError("it has a storage that no tensor needs, or has it twice")
        file.seek(at)
        count = int.from_bytes(read_exactly(file, _COUNT), "little")
        if count != storage.elements:
            raise ValueError(
                f"the storage {clean(key, 40)} has {count} elements, but its tensors "
                f"need {storage.elements}"
            )
        at += _COUNT + storage.size
        if at > size:
            raise ValueError("it is cut short")
    if left:
        raise ValueError(f"the storage {clean(next(iter(left)), 40)} is missing")
    if at != size:
        raise ValueError("there are bytes after its last storage")


def _ends_as_zip(file: BinaryIO, size: int) -> bool:
    """Say whether programs that look at a file's end would read a ZIP archive."""
    file.seek(max(0, size - _ZIP_TAIL))
    tail = file.read(_ZIP_TAIL)
    at = tail.rfind(ZIP_END)
    while at >= 0:
        comment = int.from_bytes(tail[at + 20 : at + 22], "little")
        if at + 22 + comment == len(tail):
            return True
        at = tail.rfind(ZIP_END, 0, at)
    return False


def _byteorder(system: object) -> str | None:
    little = lookup(system, "little_endian")
    if not isinstance(little, bool):
        return None
    return "little" if little else "big"


def _too_large(largest: int) -> LimitExceededError:
    return LimitExceededError(
        f"The pickles in this file are larger than the {largest} bytes that are read. "
        "Keep data in tensors.",
        limit=largest,
    )
