"""The import profile: all that decides which CID a file gets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImportProfile:
    """How a file is cut and joined; CIDv1, sha2-256 and raw leaves are fixed.

    Attributes:
        name: What the profile is called.
        chunk_size: Bytes in every leaf but the last.
        width: Most links in a node.
    """

    name: str
    chunk_size: int
    width: int


UNIXFS_V1_2025 = ImportProfile("unixfs-v1-2025", chunk_size=1 << 20, width=1024)
"""The profile of IPIP-499 by this name; the only one which the registry uses."""
