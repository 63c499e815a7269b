"""Read and verify leaves of a file on this machine. For threads, but for ``wait``."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from isal.isal_zlib import crc32

from vision_o3.errors import DigestMismatchError, LengthMismatchError, StorageError

if TYPE_CHECKING:
    from vision_o3.content.leaves import LeafTable

_own = threading.local()
"""Each thread's buffer for a leaf that is only looked at."""


class LocalFile:
    """Bytes of an artifact, from ``start`` on, in a file.

    Takes the descriptor over: it is closed with the last reference to this object, so
    that a thread still at work on it never meets another file under its number.
    """

    def __init__(self, descriptor: int, start: int = 0) -> None:
        self._descriptor = descriptor
        self._start = start

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def has(self, end: int) -> bool:  # noqa: ARG002 - for those that grow
        """Say whether the bytes before ``end`` can be read now."""
        return True

    async def wait(self, end: int) -> None:
        """Return when they can."""

    def read(self, start: int, end: int) -> memoryview:
        """Return the artifact's bytes ``[start, end)``, as far as they are there.

        Raises:
            StorageError: The disk failed.
            LengthMismatchError: The file is shorter.
        """
        try:
            content = os.pread(self._descriptor, end - start, start - self._start)
        except OSError as error:
            raise _disk_error() from error
        if len(content) != end - start:
            raise _shorter(end - start, len(content))
        return memoryview(content)

    def read_leaf(self, table: LeafTable, index: int) -> memoryview:
        """Return a leaf, verified.

        Raises:
            IntegrityError: It is not what the CID names.
            StorageError: The disk failed.
        """
        leaf = self.read(*table.span(index))
        table.verify(index, leaf)
        return leaf

    def check_leaf(self, table: LeafTable, index: int, step: int) -> list[int]:
        """Return checksums of a leaf's pieces, once it is verified.

        The leaf is held in memory of the thread's, and forgotten: whoever reads its
        pieces again sees by ``read_checked`` that they are still the same.

        Args:
            table: What the leaf must be.
            index: Its number.
            step: Bytes of every piece but the last.

        Raises:
            IntegrityError, StorageError: As for ``read_leaf``.
        """
        start, end = table.span(index)
        if not hasattr(_own, "buffer") or len(_own.buffer) < end - start:
            _own.buffer = bytearray(table.chunk_size)
        leaf = memoryview(_own.buffer)[: end - start]
        try:
            count = os.preadv(self._descriptor, [leaf], start - self._start)
        except OSError as error:
            raise _disk_error() from error
        table.verify(index, leaf[:count])
        return [crc32(leaf[at : at + step]) for at in range(0, end - start, step)]

    def read_checked(self, start: int, end: int, checksum: int) -> memoryview:
        """Return bytes of a leaf that was verified, if they still are the same.

        Raises:
            DigestMismatchError: They are not.
            LengthMismatchError, StorageError: As for ``read``.
        """
        piece = self.read(start, end)
        if crc32(piece) != checksum:
            raise DigestMismatchError(
                "A file with stored bytes was changed while it was read.",
                expected=f"{checksum:08x}",
                actual=f"{crc32(piece):08x}",
            )
        return piece


def _disk_error() -> StorageError:
    return StorageError("A file with stored bytes cannot be read.")


def _shorter(expected: int, actual: int) -> LengthMismatchError:
    return LengthMismatchError(
        "A file with stored bytes became shorter.", expected=expected, actual=actual
    )
