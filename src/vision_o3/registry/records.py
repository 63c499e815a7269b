"""A version's record: the document in the bucket from which its row can be rebuilt.

Canonical JSON: UTF-8, keys sorted, no spaces, no NaN. The record holds all that the
API answers of a version, so the index is a copy and the bucket the truth.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from vision_o3.registry.values import Version

RECORD_FORMAT = 1
"""Raised when a reader of the older format could misread the newer one."""


def encode_record(
    version: Version, *, line_id: str, line_created_at: datetime
) -> bytes:
    """Return the canonical bytes of a version's record."""
    document = {
        "record_format": RECORD_FORMAT,
        "collection": version.collection,
        "line": {
            "id": line_id,
            "name": version.name,
            "owner_id": version.owner_id,
            "created_at": line_created_at.isoformat(),
        },
        "id": version.id,
        "version": version.version,
        "cid": str(version.cid),
        "file_format": version.file_format,
        "file_size": version.file_size,
        "description": version.description,
        "tags": list(version.tags),
        "framework": version.framework,
        "model_type": version.model_type,
        "manifest_cid": version.manifest_cid and str(version.manifest_cid),
        "facts": version.facts,
        "publisher": version.publisher,
        "created_at": version.created_at.isoformat(),
        "object_key": version.object_key,
        "sidecar_key": version.sidecar_key,
        "manifest_key": version.manifest_key,
        "index_cid": version.index_cid and str(version.index_cid),
        "index_key": version.index_key,
    }
    return json.dumps(
        document,
        ensure_ascii=False,
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    ).encode()
