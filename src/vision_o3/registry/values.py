"""The registry's domain values, and how rows become them."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vision_o3.db import models as tables
from vision_o3.errors import InputError, LimitExceededError
from vision_o3.naming import parse_name
from vision_o3.registry.audit import Actor

if TYPE_CHECKING:
    from datetime import datetime

    from vision_o3.content.cid import CID
    from vision_o3.content.manifest import Difference

MAX_DESCRIPTION = 10_000
"""Characters."""
MAX_TAGS = 64
MAX_REASON = 500
"""Characters in the reason of a withdrawal."""
MAX_LABEL = 64
"""Characters in a tag, framework or model type."""

T = TypeVar("T")

_NOT_OF_A_LINE = {"Cc", "Cs", "Zl", "Zp"}
"""Categories of Unicode: controls, surrogates, separators of lines."""
_LABEL = re.compile(r"[\w][\w .+:/-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Why a version is not to be used any more."""

    state: str
    """``"deprecated"``, ``"blocked"`` or ``"purged"``."""
    reason: str
    at: datetime
    by: str
    by_admin: bool = False
    """Whether the line's owner may not lift it."""
    number: int = 1
    """Which of the version's documents in the store says so."""


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
    withdrawal: Withdrawal | None = None

    @property
    def is_deprecated(self) -> bool:
        """Whether it is served as before, with a warning."""
        return self._is(tables.DEPRECATED)

    @property
    def is_blocked(self) -> bool:
        """Whether its bytes are served only to those who ask for them all the same."""
        return self._is(tables.BLOCKED)

    @property
    def is_purged(self) -> bool:
        """Whether its bytes are gone for good."""
        return self._is(tables.PURGED)

    def _is(self, state: str) -> bool:
        return self.withdrawal is not None and self.withdrawal.state == state


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
    address: str | None = None
    """Where the publisher's request came from."""
    request_id: str | None = None
    owner_only: bool = False
    """Whether the line must be new, or the publisher's own."""
    is_admin: bool = False
    """Whether the publisher may publish what was blocked or purged."""
    max_versions: int = 0
    """Versions that the publisher may have published with this one; 0: no limit."""
    max_bytes: int = 0
    """Likewise, the bytes of all of them."""

    @property
    def actor(self) -> Actor:
        """The publisher as the audit trail names them."""
        return Actor(self.publisher, self.address, self.request_id)

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
        withdrawal=_withdrawal_of(row),
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


def _withdrawal_of(row: tables.VersionRow) -> Withdrawal | None:
    if row.withdrawal is None or row.withdrawn_at is None:
        return None
    return Withdrawal(
        state=row.withdrawal,
        reason=row.withdrawn_reason or "",
        at=row.withdrawn_at,
        by=row.withdrawn_by or "",
        by_admin=row.withdrawn_by_admin,
        number=row.withdrawal_number,
    )


def parse_reason(text: str) -> str:
    """Return ``text`` if it may be the reason of a withdrawal.

    Raises:
        InputError: It is empty, too long, or not one line of text.
    """
    if not 1 <= len(text) <= MAX_REASON:
        raise InputError(
            f"The reason has {len(text)} characters. Say in 1 to {MAX_REASON} why "
            "the version is not to be used, and what to use instead.",
        )
    if any(unicodedata.category(c) in _NOT_OF_A_LINE for c in text):
        raise InputError(
            "The reason has a line break or control character. Write it in one line.",
        )
    if text != text.strip():
        raise InputError("The reason begins or ends with a space. Leave that out.")
    return text
