"""Decides whether a file is what a CID names; no I/O but reading the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Optional, Union

from vision_o3.content.cid import CID
from vision_o3.content.dag import cid_of_stream

if TYPE_CHECKING:
    from vision_o3.sdk.download import Progress


class CIDVerifier:
    """Names files, and holds files to their names. One pass, 1 MiB of memory."""

    @staticmethod
    def compute_cid(
        file_path: Union[str, Path], progress: Optional[Progress] = None
    ) -> str:
        """Return the CID of a file.

        Args:
            file_path: The file.
            progress: Called with bytes hashed, and bytes in all.

        Raises:
            OSError: The file cannot be read.
        """
        with Path(file_path).open("rb", buffering=0) as file:
            stream = file if progress is None else _Followed(file, progress)
            return str(cid_of_stream(stream).root)

    @staticmethod
    def verify_file(file_path: Union[str, Path], expected_cid: str) -> bool:
        """Return whether a file's bytes are exactly what a CID names.

        Raises:
            InvalidCIDError: ``expected_cid`` is not a CID of the accepted kind.
            OSError: The file cannot be read.
        """
        expected = CID.parse(expected_cid)
        return CIDVerifier.compute_cid(file_path) == str(expected)


class _Followed:
    """A file, of which is told how much has been read."""

    def __init__(self, file: BinaryIO, progress: Progress) -> None:
        self._file = file
        self._progress = progress
        self._done = 0
        self._size = os.fstat(file.fileno()).st_size

    def readinto(self, buffer: bytearray) -> int:
        count: int = self._file.readinto(buffer)  # type: ignore[attr-defined] # raw
        self._done += count
        self._progress(self._done, self._size)
        return count
