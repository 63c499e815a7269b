"""What an inspection may meet and cost: every bound, each a setting of the gateway."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on hostile files. The setting of each is named in its error.

    Exceeding one is ``LimitExceededError``; ``allow_unsafe`` is a policy, not a bound.
    """

    archive_files: int = 500_000
    """Files in an archive (``VISION_O3_MAX_ARCHIVE_FILES``)."""
    unpacked_bytes: int = 64 << 30
    """Bytes of all files of an archive (``VISION_O3_MAX_UNPACKED_BYTES``)."""
    unpack_ratio: int = 200
    """Unpacked bytes for each packed one, of an archive or a member, beyond the first
    16 MiB (``VISION_O3_MAX_UNPACK_RATIO``)."""
    manifest_bytes: int = 128 << 20
    """Bytes of the list of an archive's files (``VISION_O3_MAX_MANIFEST_BYTES``)."""
    path_bytes: int = 1024
    """Bytes of a path in an archive (``VISION_O3_MAX_PATH_BYTES``)."""
    path_depth: int = 32
    """Parts of a path in an archive (``VISION_O3_MAX_PATH_DEPTH``)."""
    json_bytes: int = 1 << 30
    """Bytes of a JSON file (``VISION_O3_MAX_JSON_BYTES``)."""
    json_depth: int = 64
    """Arrays and objects within each other (``VISION_O3_MAX_JSON_DEPTH``)."""
    xml_bytes: int = 64 << 20
    """Bytes of an XML file (``VISION_O3_MAX_XML_BYTES``)."""
    xml_depth: int = 64
    """Elements within each other (``VISION_O3_MAX_XML_DEPTH``)."""
    time_s: float = 600.0
    """Longest time of an inspection (``VISION_O3_INSPECT_TIMEOUT_S``)."""
    memory_bytes: int = 2 << 30
    """Address space of an inspection (``VISION_O3_INSPECT_MEMORY_BYTES``)."""
    allow_unsafe: bool = False
    """Accept, and mark, what could run code (``VISION_O3_ALLOW_UNSAFE_CONTENT``)."""
