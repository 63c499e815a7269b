"""The documents in the bucket that say what became of a version.

Each change of whether a version may be used is one, beside the version's record. None
is ever changed; the one with the highest number counts. So a database that was lost is
rebuilt with what is blocked, blocked.

Canonical JSON, as a record. Whoever can write to the bucket can write one, so reading
one believes nothing but that it may be so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vision_o3.content.cid import CID
from vision_o3.db.models import BLOCKED, DEPRECATED, PURGED
from vision_o3.errors import MalformedBlockError, VisionO3Error
from vision_o3.registry.json_fields import parse_object
from vision_o3.registry.values import Withdrawal, parse_reason
from vision_o3.storage.keys import parse_key, withdrawal_key

if TYPE_CHECKING:
    from datetime import datetime

    from vision_o3.registry.json_fields import Fields
    from vision_o3.registry.values import Version

WITHDRAWAL_FORMAT = 1
"""Raised when a reader of the older format could misread the newer one."""
MAX_WITHDRAWAL_SIZE = 16 << 10
"""Bytes of such a document that are read at most."""
LIFTED = "lifted"
"""The state of a document that ends a withdrawal."""
STATES = (DEPRECATED, BLOCKED, PURGED)

_LONGEST_ACTOR = 255
"""Characters; the column's."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What one document says: the version is withdrawn, or is not any more."""

    version_id: str
    cid: CID
    number: int
    """From 1; the highest of a version counts."""
    at: datetime
    by: str
    by_admin: bool
    state: str
    """``"deprecated"``, ``"blocked"``, ``"purged"`` or ``"lifted"``."""
    reason: str | None
    """``None`` if it was lifted without one."""

    @property
    def withdrawal(self) -> Withdrawal | None:
        """What the version is from then on."""
        if self.state == LIFTED:
            return None
        return Withdrawal(
            state=self.state,
            reason=self.reason or "",
            at=self.at,
            by=self.by,
            by_admin=self.by_admin,
            number=self.number,
        )

    def says_the_same_as(self, other: Decision) -> bool:
        """Say whether both are one wish of one person, whenever it was uttered."""
        return (self.state, self.reason, self.by, self.by_admin) == (
            other.state,
            other.reason,
            other.by,
            other.by_admin,
        )


def encode_decision(version: Version, decision: Decision) -> bytes:
    """Return the canonical bytes of a decision on a version."""
    document = {
        "withdrawal_format": WITHDRAWAL_FORMAT,
        "collection": version.collection,
        "name": version.name,
        "version": version.version,
        "id": decision.version_id,
        "cid": str(decision.cid),
        "number": decision.number,
        **describe_withdrawal(decision),
    }
    return json.dumps(
        document, ensure_ascii=False, sort_keys=True, separators=(",", ":")
    ).encode()


def describe_withdrawal(what: Decision | Withdrawal) -> dict[str, Any]:
    """Return what a document says of a withdrawal, under the names it has there."""
    return {
        "state": what.state,
        "reason": what.reason,
        "at": what.at.isoformat(),
        "by": what.by,
        "by_admin": what.by_admin,
    }


def read_withdrawal(fields: Fields) -> Withdrawal:
    """Return the withdrawal that a record holds.

    Raises:
        ValueError, VisionO3Error: It is none.
    """
    state = fields.text("state")
    if state not in STATES:
        raise ValueError("its withdrawal is of no known state")
    return Withdrawal(
        state=state,
        reason=parse_reason(fields.text("reason")),
        at=fields.time("at"),
        by=fields.text("by", longest=_LONGEST_ACTOR),
        by_admin=fields.flag("by_admin"),
        number=fields.number("number", at_least=1),
    )


def decode_decision(content: bytes, key: str) -> Decision:
    """Return what a document says.

    Args:
        content: The object's bytes.
        key: Where it lies. It must be the key of the decision that it holds.

    Raises:
        MalformedBlockError: It is no such document (``key``); the message says why.
    """
    try:
        return _read(content, key)
    except RecursionError:
        raise _malformed(key, "it is nested too deeply") from None
    except VisionO3Error as error:
        raise _malformed(key, error.message) from error
    except ValueError as error:
        raise _malformed(key, str(error)) from error


def _read(content: bytes, key: str) -> Decision:
    """Return what a document says.

    Raises:
        ValueError, VisionO3Error, RecursionError: It is none.
    """
    if len(content) > MAX_WITHDRAWAL_SIZE:
        raise ValueError(f"it has more than {MAX_WITHDRAWAL_SIZE} bytes")
    fields = parse_object(content)
    stated = fields.number("withdrawal_format")
    if stated != WITHDRAWAL_FORMAT:
        raise ValueError(
            f"it is of withdrawal format {stated}, and this version of Vision-O3 reads "
            f"format {WITHDRAWAL_FORMAT}"
        )
    place = (
        fields.text("collection"),
        fields.text("name"),
        fields.number("version", at_least=1),
        fields.number("number", at_least=1),
    )
    if parse_key(key) is None or key != withdrawal_key(*place):
        raise ValueError(f"it is of {place[0]}/{place[1]}/v{place[2]}, {place[3]}")
    state = fields.text("state")
    if state not in {*STATES, LIFTED}:
        raise ValueError("its state is not one of ours")
    reason = fields.text_or_none("reason")
    if reason is None and state != LIFTED:
        raise ValueError("it gives no reason")
    return Decision(
        version_id=str(fields.uuid("id")),
        cid=CID.parse(fields.text("cid")),
        number=place[3],
        at=fields.time("at"),
        by=fields.text("by", longest=_LONGEST_ACTOR),
        by_admin=fields.flag("by_admin"),
        state=state,
        reason=None if reason is None else parse_reason(reason),
    )


def _malformed(key: str, reason: str) -> MalformedBlockError:
    return MalformedBlockError(
        f"The withdrawal {key} cannot be used: {reason.rstrip('.')}. Restore this "
        "object from a copy of the store.",
        key=key,
    )
