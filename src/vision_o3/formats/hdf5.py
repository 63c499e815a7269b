"""The superblock of an HDF5 file (HDF5 File Format Specification 3.0, II.A)."""

from __future__ import annotations

from typing import BinaryIO

SIGNATURE = b"\x89HDF\r\n\x1a\n"

# By version: where the size of addresses is told, and where the addresses start.
_LAYOUT = {0: (13, 24), 1: (13, 28), 2: (9, 12), 3: (9, 12)}
_ADDRESS_SIZES = {2, 4, 8}
_LONGEST = 28 + 3 * 8
_FIRST_USER_BLOCK = 512


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
