"""Who did what: what every change leaves in the audit trail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy.event import listen

from vision_o3.db import audit

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.orm import Session

_WRITTEN = "audit_events"
"""In what a session remembers: the events of its transaction."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who changes something, and by which request."""

    principal: str
    address: str | None = None
    request_id: str | None = None


OPERATOR = Actor("operator")
"""Who runs the gateway's commands on its machine."""


def record_event(
    session: Session,
    actor: Actor,
    action: str,
    subject: str,
    detail: dict[str, Any],
    *,
    now: datetime,
) -> None:
    """Add an event to the audit trail; written when the transaction is committed.

    The last thing in a transaction, as all who write to the trail queue for it. Once it
    is committed, a log line has the event's hash, so that the trail can be compared
    with logs that lie elsewhere.
    """
    event = audit.append_event(
        session,
        at=now,
        principal=actor.principal,
        action=action,
        subject=subject,
        detail=detail,
        address=actor.address,
        request_id=actor.request_id,
    )
    if _WRITTEN not in session.info:
        session.info[_WRITTEN] = []
        listen(session, "after_commit", _tell)
        listen(session, "after_rollback", _forget)
    session.info[_WRITTEN].append(event)


def _tell(session: Session) -> None:
    for event in session.info[_WRITTEN]:
        _log.info(
            "audit.recorded",
            principal=event.principal,
            action=event.action,
            subject=event.subject,
            head=f"{event.chain}:{event.seq}:{event.hash}",
        )
    session.info[_WRITTEN].clear()


def _forget(session: Session) -> None:
    session.info[_WRITTEN].clear()
