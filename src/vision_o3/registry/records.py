"""A version's record: the document in the bucket from which its row can be rebuilt.

Canonical JSON: UTF-8, keys sorted, no spaces, no NaN. The record holds all that the
API answers of a version, so the index is a copy and the bucket the truth.

Whoever can write to the bucket can write a record, so reading one believes nothing:
what comes out of ``decode_record`` could have been published.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from vision_o3.content.cid import CID
from vision_o3.content.profile import UNIXFS_V1_2025
from vision_o3.errors import MalformedBlockError, VisionO3Error
from vision_o3.registry.json_fields import Fields, parse_object
from vision_o3.registry.values import Submission, Version, Withdrawal
from vision_o3.registry.withdrawal_records import describe_withdrawal, read_withdrawal
from vision_o3.schemas.facts import DatasetFacts, ModelFacts
from vision_o3.storage.keys import (
    EXTENSIONS,
    VersionKeys,
    parse_key,
    version_keys,
    version_prefix,
)

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

RECORD_FORMAT = 1
"""Raised when a reader of the older format could misread the newer one."""
MAX_RECORD_SIZE = 8 << 20
"""Bytes of a record that are read at most. Facts, the longest part of one, come from
an answer of an inspection, of which 4 MiB are read."""

_LONGEST_OWNER = 255
_LONGEST_FORMAT = 16
"""Characters; the columns'."""
_FACTS: dict[str, TypeAdapter[Any]] = {
    "models": TypeAdapter(ModelFacts),
    "datasets": TypeAdapter(DatasetFacts),
}
"""What the API can answer."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a record says: the version, and what its line's row needs besides."""

    version: Version
    line_id: UUID
    line_created_at: datetime


def encode_record(
    version: Version, *, line_id: str, line_created_at: datetime
) -> bytes:
    """Return the canonical bytes of a version's record."""
    document: dict[str, Any] = {
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
    withdrawal = recorded(version).withdrawal
    if withdrawal is not None:
        document["withdrawal"] = {
            **describe_withdrawal(withdrawal),
            "number": withdrawal.number,
        }
    return json.dumps(
        document,
        ensure_ascii=False,
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    ).encode()


def recorded(version: Version) -> Version:
    """Return a version as its record has it: withdrawn only if it was purged.

    Its record is immutable until then. What else becomes of it is said by documents
    beside it (``withdrawal_records.py``).
    """
    return version if version.is_purged else replace(version, withdrawal=None)


def reduced(version: Version, withdrawal: Withdrawal) -> Version:
    """Return what is left of a version that is purged: not what its publisher said."""
    return replace(
        version,
        description="",
        tags=(),
        facts={},
        framework=None if version.framework is None else "",
        model_type=None if version.model_type is None else "",
        withdrawal=withdrawal,
    )


def decode_record(content: bytes, key: str) -> Record:
    """Return what a record says, which could have been published as it is.

    Fields that this reader does not know are passed over: a newer version that adds
    some without raising ``RECORD_FORMAT`` promises that they may be.

    Args:
        content: The object's bytes.
        key: Where it lies. It must be the key of the version that it describes.

    Raises:
        MalformedBlockError: It is no such record (``key``); the message says why.
    """
    try:
        return _read(content, key)
    except RecursionError:
        raise _malformed(key, "it is nested too deeply") from None
    except ValidationError as error:  # a ValueError whose message shows the content
        reason = f"its facts are not of a known form ({error.error_count()} faults)"
        raise _malformed(key, reason) from None
    except VisionO3Error as error:
        raise _malformed(key, error.message) from error
    except ValueError as error:
        raise _malformed(key, str(error)) from error


def _read(content: bytes, key: str) -> Record:
    """Return what a record says.

    Raises:
        ValueError, VisionO3Error, RecursionError: It is none.
    """
    document = _parse(content)
    line = document.inner("line")
    version = _version_of(document, line)
    keys = version_keys(
        version.collection, version.name, version.version, version.file_format
    )
    if key != keys.record:
        raise ValueError(
            f"it describes {version.collection}/{version.name}/v{version.version}"
        )
    _check_as_submitted(version)
    if recorded(version) != version:
        raise ValueError("its withdrawal is not one that a record can have")
    _check_places(version, keys)
    _FACTS[version.collection].validate_python(version.facts)
    return Record(version, line.uuid("id"), line.time("created_at"))


def _parse(content: bytes) -> Fields:
    if len(content) > MAX_RECORD_SIZE:
        raise ValueError(f"it has more than {MAX_RECORD_SIZE} bytes")
    fields = parse_object(content)
    stated = fields.number("record_format")
    if stated != RECORD_FORMAT:
        raise ValueError(
            f"it is of record format {stated}, and this version of Vision-O3 reads "
            f"format {RECORD_FORMAT}"
        )
    return fields


def _version_of(document: Fields, line: Fields) -> Version:
    """Return the version that a record's fields describe, each of its type."""
    collection = document.text("collection")
    if collection not in _FACTS:
        raise ValueError("its collection is not one of ours")
    is_model = collection == "models"
    withdrawal = document.inner_or_none("withdrawal")
    return Version(
        collection=collection,
        id=str(document.uuid("id")),
        name=line.text("name"),
        version=document.number("version", at_least=1),
        cid=CID.parse(document.text("cid")),
        file_format=document.text("file_format", longest=_LONGEST_FORMAT),
        file_size=document.number("file_size"),
        description=document.text("description"),
        tags=document.texts("tags"),
        owner_id=line.text("owner_id", longest=_LONGEST_OWNER),
        publisher=document.text("publisher", longest=_LONGEST_OWNER),
        created_at=document.time("created_at"),
        facts=document.mapping("facts"),
        object_key=document.text("object_key"),
        sidecar_key=document.text_or_none("sidecar_key"),
        framework=document.text("framework") if is_model else None,
        model_type=document.text("model_type") if is_model else None,
        manifest_cid=document.cid_or_none("manifest_cid"),
        manifest_key=document.text_or_none("manifest_key"),
        index_cid=document.cid_or_none("index_cid"),
        index_key=document.text_or_none("index_key"),
        withdrawal=None if withdrawal is None else read_withdrawal(withdrawal),
    )


def _check_as_submitted(version: Version) -> None:
    """Raise unless a publisher could have said this of a version."""
    Submission(
        version.name,
        version.publisher,
        file_format=version.file_format,
        description=version.description,
        tags=version.tags,
        framework=version.framework or None,
        model_type=version.model_type or None,
    )
    if list(version.tags) != sorted(set(version.tags)):
        raise ValueError("its tags are not sorted, or one is repeated")


def _check_places(version: Version, own: VersionKeys) -> None:
    """Raise unless the keys are those of such objects, and as many as there must be.

    They may be another version's, of either collection: what was stored already.
    """
    fits_a_leaf = version.file_size <= UNIXFS_V1_2025.chunk_size
    if version.cid.is_raw != fits_a_leaf:
        raise ValueError("no file of its size has its CID")
    beside = _keys_beside(version.object_key)
    is_own = beside.record == own.record
    if version.object_key != (own.artifact if is_own else beside.artifact):
        raise ValueError("its object_key is not that of an artifact")
    if version.sidecar_key != (None if fits_a_leaf else beside.sidecar):
        raise ValueError("its sidecar_key does not fit its object_key")
    listings = (
        version.manifest_cid,
        version.manifest_key,
        version.index_cid,
        version.index_key,
    )
    if listings == (None, None, None, None):
        return
    if version.collection != "datasets" or None in listings:
        raise ValueError("it names a manifest and a member index, but not wholly")
    if version.manifest_key != _keys_beside(version.manifest_key or "").manifest:
        raise ValueError("its manifest_key is not that of a manifest")
    if version.index_key != _keys_beside(version.index_key or "").index:
        raise ValueError("its index_key is not that of a member index")


def _keys_beside(key: str) -> VersionKeys:
    """Return the keys of the version that a key belongs to.

    If it is an artifact's, it is their ``artifact``.
    """
    parsed = parse_key(key)
    if parsed is None:
        raise ValueError("it names an object that no version has")
    place = parsed.collection, parsed.name, parsed.version
    extension = key.removeprefix(version_prefix(*place))
    if extension not in EXTENSIONS[parsed.collection]:
        extension = min(EXTENSIONS[parsed.collection])  # any: only others are compared
    return version_keys(*place, extension)


def _malformed(key: str, reason: str) -> MalformedBlockError:
    return MalformedBlockError(
        f"The record {key} cannot be used: {reason.rstrip('.')}. Restore this object "
        "from a copy of the store.",
        key=key,
    )
