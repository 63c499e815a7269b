"""Where programs that read a ZIP archive from its start see a stored file end.

A stored file whose size is told after it (APPNOTE 4.3.9) has no end of its own. Who
reads from the directory knows the size; who reads a stream, as ``bsdtar`` does of a
pipe, looks for the descriptor after the file: its signature and what
fits the bytes so far, or a header with that before it. Bytes inside the file that look
like that make the stream's reader see a shorter file, and what follows as others.

The signature alone is no reason to refuse: archives within the archive have it, and
each 4 GiB of noise. Programs may leave it out, as Python's ``zipfile`` does into a
pipe, so it cannot be required either.
"""

from __future__ import annotations

import re
import struct

from isal import isal_zlib

_MARK = re.compile(rb"PK(?:\x07\x08|\x03\x04|\x01\x02)")
_DESCRIBED = b"PK\x07\x08"
_CRC_AND_SIZE = struct.Struct("<4s2I")
_SIZE, _WIDE_SIZE = struct.Struct("<I"), struct.Struct("<Q")
_SHORT, _WIDE = 12, 20
"""Bytes of a descriptor without a signature: CRC-32, and sizes of 4 or 8 bytes."""
_32 = 0xFFFFFFFF
_MARKS_FREE, _BYTES_A_MARK = 64, 20
"""More marks than that, over the bytes, have no archives: each costs time."""


class EndSearch:
    """Looks for an early end in a file's bytes, which are fed piece by piece.

    Cost: one more CRC-32 of the bytes. Memory: that of a piece.
    """

    def __init__(self) -> None:
        self._held = b""
        self._held_at = 0
        self._crc = 0
        self._summed = 0
        self._seen = 0
        self._marks = 0

    def feed(self, piece: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            ValueError: A stream's reader would see the file end in them.
        """
        held = self._held + piece
        # What may be told after a mark comes before the next piece's.
        for found in _MARK.finditer(held, self._seen - self._held_at):
            at = found.start()
            if at + _CRC_AND_SIZE.size > len(held):
                break
            self._check(held, at)
        self._seen = max(self._seen, self._held_at + len(held) - _CRC_AND_SIZE.size + 1)
        self._drop(held, self._seen - self._held_at - _WIDE)

    def finish(self) -> None:
        """Check the last bytes.

        Raises:
            ValueError: They are the begin of a descriptor, which may go on in the
                one after the file.
        """
        if _DESCRIBED in self._held[max(0, self._seen - self._held_at) :]:
            raise _early()

    def _drop(self, held: bytes, count: int) -> None:
        """Forget bytes that nothing after them refers to, but their CRC."""
        if count <= 0:
            self._held = held
            return
        self._sum(held, count)
        self._held = held[count:]
        self._held_at += count

    def _sum(self, held: bytes, end: int) -> None:
        """Take the CRC of the bytes up to ``end``, an offset in ``held``."""
        begin = self._summed - self._held_at
        if end > begin:
            self._crc = isal_zlib.crc32(memoryview(held)[begin:end], self._crc)
            self._summed = self._held_at + end

    def _check(self, held: bytes, at: int) -> None:
        """Check the mark at an offset in ``held``."""
        end = self._held_at + at
        self._marks += 1
        if self._marks > _MARKS_FREE + end // _BYTES_A_MARK:
            raise _early()
        signature, crc, size = _CRC_AND_SIZE.unpack_from(held, at)
        if signature == _DESCRIBED:
            self._sum(held, at)
            early = size == end & _32 or crc == self._crc
        else:
            early = (
                at >= _SHORT
                and _SIZE.unpack_from(held, at - 4)[0] == (end - _SHORT) & _32
            ) or (
                at >= _WIDE and _WIDE_SIZE.unpack_from(held, at - 8)[0] == end - _WIDE
            )
        if early:
            raise _early()


def _early() -> ValueError:
    return ValueError(
        "the size of a stored file is told after it, and it has bytes that look like "
        "its end: archive it compressed, or not into a pipe"
    )
