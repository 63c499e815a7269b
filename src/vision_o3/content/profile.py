"""The import profile: all that decides which CID a file gets."""

from __future__ import annotations

from dataclasses import dataclass

MAX_LEVELS = 4
"""Most levels of nodes above the leaves: 1 EiB under ``UNIXFS_V1_2025``."""


@dataclass(frozen=True)
class ImportProfile:
    """How a file is cut and joined; CIDv1, sha2-256, raw leaves, balanced are fixed.

    Attributes:
        name: What the profile is called.
        chunk_size: Bytes in every leaf but the last, at least 1.
        width: Most links in a node, at least 2.
    """

    name: str
    chunk_size: int
    width: int

    def __post_init__(self) -> None:
        if self.chunk_size < 1 or self.width < 2:  # noqa: PLR2004 - explained above
            raise ValueError("A profile needs a chunk size ≥ 1 and a width ≥ 2.")

    @property
    def max_size(self) -> int:
        """Bytes in the largest file that is named or accepted."""
        return self.chunk_size * int(self.width**MAX_LEVELS)


UNIXFS_V1_2025 = ImportProfile("unixfs-v1-2025", chunk_size=1 << 20, width=1024)
"""The profile of IPIP-499 by this name; the only one which the registry uses."""
