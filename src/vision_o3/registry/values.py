"""The registry's domain values, and how rows become them."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vision_o3.db import models as tables
from vision_o3.errors import InputError, LimitExceededError
from vision_o3.naming import parse_name

if TYPE_CHECKING:
    from datetime import datetime

    from vision_o3.content.cid import CID
    from vision_o3.content.manifest import Difference

MAX_DESCRIPTION = 10_000
"""Characters."""
MAX_TAGS = 64
MAX_LABEL = 64
"""Characters in a tag, framework or model type."""

T = TypeVar("T")

_LABEL = re.compile(r"[\w][\w .+:/-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Version:
    """One published version of a line: immutable, and visible to all who may read."""

    collection: str
    """``"models"`` or ``"datasets"``."""
    id: str
    name: str
    version: int
    cid: CID
    file_format: str
    file_size: int
    description: str
    tags: tuple[str, ...]
    owner_id: str
    """Who published the line's first version."""
    publisher: str
    """Who published this version."""
    created_at: datetime
    facts: dict[str, Any]
    object_key: str
    sidecar_key: str | None
    """``None`` for content of one leaf, which needs no sidecar."""
    framework: str | None = None
    model_type: str | None = None
    manifest_cid: CID | None = None
    """Set for archives, with the next three."""
    manifest_key: str | None = None
    index_cid: CID | None = None
    index_key: str | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a longer list; ``page`` counts from 1."""

    items: tuple[T, ...]
    page: int
    page_size: int
    total: int


@dataclass(frozen=True, slots=True)
class VersionDifference:
    """What changed from one version of a dataset to another."""

    before: Version
    after: Version
    files: Difference | None
    """``None`` unless both are archives."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What a publisher says of the file that comes with it. Valid once made.

    Raises:
        InvalidNameError: The name is not acceptable.
        InputError: Another field is not.
        LimitExceededError: A field is too long, or there are too many tags.
    """

    name: str
    publisher: str
    filename: str | None = None
    file_format: str | None = None
    description: str = ""
    tags: tuple[str, ...] = ()
    framework: str | None = None
    model_type: str | None = None
    declared_cid: CID | None = None

    def __post_init__(self) -> None:
        parse_name(self.name)
        if len(self.description) > MAX_DESCRIPTION:
            raise LimitExceededError(
                f"The description has {len(self.description)} characters; "
                f"at most {MAX_DESCRIPTION} are kept.",
                limit=MAX_DESCRIPTION,
            )
        if any(
            unicodedata.category(c) in {"Cc", "Cs"} and c not in "\n\t\r"
            for c in self.description
        ):
            raise InputError("The description contains control characters.")
        if len(self.tags) > MAX_TAGS:
            raise LimitExceededError(
                f"{len(self.tags)} tags were given; at most {MAX_TAGS} are kept.",
                limit=MAX_TAGS,
            )
        labels = [("tag", tag) for tag in self.tags]
        if self.framework is not None:
            labels.append(("framework", self.framework))
        if self.model_type is not None:
            labels.append(("model_type", self.model_type))
        for what, label in labels:
            if len(label) > MAX_LABEL or not _LABEL.fullmatch(label):
                raise InputError(
                    f"{label[:MAX_LABEL]!r} is not an acceptable {what}. Use 1 to "
                    f"{MAX_LABEL} letters, digits and ' . _ + : / -', starting with "
                    "a letter or digit.",
                )


@dataclass(frozen=True, slots=True)
class Published:
    """The answer to a publisher: the version, and whether it is a new one."""

    version: Version
    created: bool = field(default=True)


def to_version(
    collection: tables.Collection,
    line: tables.LineRow,
    row: tables.VersionRow,
) -> Version:
    """Return the domain value of a version's rows."""
    version = Version(
        collection=collection.name,
        id=str(row.id),
        name=line.name,
        version=row.version,
        cid=row.cid,
        file_format=row.file_format,
        file_size=row.file_size,
        description=row.description,
        tags=tuple(row.tags),
        owner_id=line.owner_id,
        publisher=row.owner_id,
        created_at=row.created_at,
        facts=dict(row.facts),
        object_key=row.object_key,
        sidecar_key=row.sidecar_key,
    )
    if isinstance(row, tables.ModelVersionRow):
        return replace(version, framework=row.framework, model_type=row.model_type)
    return replace(
        version,
        manifest_cid=row.manifest_cid,
        manifest_key=row.manifest_key,
        index_cid=row.index_cid,
        index_key=row.index_key,
    )
