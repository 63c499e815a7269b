"""Decides whether a file is what a CID names; no I/O but reading the file."""

from __future__ import annotations

from pathlib import Path
from typing import Union

from vision_o3.content.cid import CID
from vision_o3.content.dag import cid_of_stream


class CIDVerifier:
    """Names files, and holds files to their names. One pass, 1 MiB of memory."""

    @staticmethod
    def compute_cid(file_path: Union[str, Path]) -> str:
        """Return the CID of a file.

        Raises:
            OSError: The file cannot be read.
        """
        with Path(file_path).open("rb", buffering=0) as file:
            return str(cid_of_stream(file).root)

    @staticmethod
    def verify_file(file_path: Union[str, Path], expected_cid: str) -> bool:
        """Return whether a file's bytes are exactly what a CID names.

        Raises:
            InvalidCIDError: ``expected_cid`` is not a CID of the accepted kind.
            OSError: The file cannot be read.
        """
        expected = CID.parse(expected_cid)
        return CIDVerifier.compute_cid(file_path) == str(expected)
