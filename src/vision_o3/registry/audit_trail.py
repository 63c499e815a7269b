"""Reading the audit trail: listed, exported, verified.

Every database has a chain of its own, which its head ends. Chains of other databases
come by restoring backups; the own chain has an event of each restoring that says where
they end. So what was changed, removed, added, swapped or cut off shows. Whoever can
write to the database and computes the rest of the own chain anew, with its head, is
found out by a head that was noted elsewhere: each event's is in the log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vision_o3.db import audit as queries
from vision_o3.db.audit import FIRST, Event, Filters, Unreadable
from vision_o3.errors import InputError
from vision_o3.registry.values import Page

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy.orm import Session

    from vision_o3.db.engine import Database
    from vision_o3.db.models import AuditHeadRow

RESTORED = "audit.restored"
"""The action of the event that says which chains a backup brought, and their ends."""
BATCH = 500
"""Events of one piece of an export."""
MOST_CHAINS = 1000
"""Chains that are told apart: one for each database that backups were restored from."""

_MIGRATED = "database.migrated"
_CHAINED = "0005"
"""The revision that makes one chain of all events that are there."""
_HEAD = re.compile(r"([0-9A-Za-z_-]{1,64}):(0|[1-9][0-9]{0,18}):([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain ends, or ended once."""

    chain: str
    seq: int
    """0: it has no event yet."""
    hash: str

    @classmethod
    def parse(cls, text: str) -> Head:
        """Return the head that a text names, as ``str`` writes it.

        Raises:
            InputError: It names none.
        """
        match = _HEAD.fullmatch(text)
        if match is None:
            raise InputError(
                f"{text[:200]!r} is no head of the audit trail. Give CHAIN:SEQ:HASH, "
                "as 'vision-o3 admin audit head' prints it, or 'head' of a log line "
                "'audit.recorded'.",
            )
        return cls(match[1], int(match[2]), match[3])

    def __str__(self) -> str:
        return f"{self.chain}:{self.seq}:{self.hash}"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong in a chain."""

    seq: int | None
    """The event's place; ``None`` where it is not one event."""
    reason: str


@dataclass(frozen=True, slots=True)
class VerifiedChain:
    """What verifying a chain came to."""

    chain: str
    own: bool
    """Whether this database writes it on."""
    events: int
    """Those that are there."""
    verified: int
    """Those before the first fault."""
    faults: int
    first_fault: Fault | None
    last_seq: int
    last_hash: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What verifying the trail came to."""

    events: int
    chains: tuple[VerifiedChain, ...]
    chains_left_out: int
    """There are more than can be; none of these was verified."""
    head_lost: bool
    """Whether the row is missing or unreadable that says where the own chain ends."""
    missing_heads: tuple[str, ...]
    """Of those to look for: which the trail does not have any more."""

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not (
            self.chains_left_out
            or self.head_lost
            or self.missing_heads
            or any(chain.faults for chain in self.chains)
        )


# --------------------------------------------------------------------------- reading


def head_of(database: Database) -> Head:
    """Return where the own chain ends now.

    Raises:
        DatabaseUnavailableError, ConfigurationError: As for ``Database.read``.
    """
    with database.read() as session:
        found = queries.find_head(session)
    if found is None:  # the next event begins a chain
        return Head("none", 0, FIRST)
    return Head(found.chain, found.seq, found.hash)


def list_trail(
    database: Database, filters: Filters, *, page: int, page_size: int
) -> Page[Event]:
    """Return a page of the events that pass all filters, newest first.

    Raises:
        DatabaseUnavailableError, ConfigurationError: As for ``Database.read``.
    """
    with database.read() as session:
        total, events = queries.list_events(
            session, filters, (page - 1) * page_size, page_size
        )
    return Page(tuple(events), page, page_size, total)


def export_trail(
    database: Database, filters: Filters, *, batch: int = BATCH
) -> Iterator[list[Event]]:
    """Yield all events that pass all filters, in the order in which they came.

    Some at a time, each in a transaction of its own, up to the last one that is there
    when it begins: nothing is held between them, however slow the reader.

    Raises:
        DatabaseUnavailableError, ConfigurationError: As for ``Database.read``.
    """
    with database.read() as session:
        last = queries.last_id(session)
    after = 0
    while after < last:
        with database.read() as session:
            found = queries.events_between(session, filters, after, last, batch)
        if not found:
            return
        yield [event for _, event in found]
        after = found[-1][0]


def document_of(event: Event) -> dict[str, Any]:
    """Return an event as JSON has it; of these values its hash is computed."""
    return {
        "chain": event.chain,
        "seq": event.seq,
        "hash": event.hash,
        "at": event.at.isoformat(timespec="microseconds"),
        "principal": event.principal,
        "action": event.action,
        "subject": event.subject,
        "detail": event.detail,
        "address": event.address,
        "request_id": event.request_id,
    }


# ------------------------------------------------------------------------- verifying


def verify_trail(database: Database, heads: Iterable[Head] = ()) -> Verified:
    """Verify every event of every chain, as they are at one moment.

    Memory does not grow with the number of events.

    Args:
        database: Of this version's schema.
        heads: Which the trail must still have.

    Raises:
        DatabaseUnavailableError, ConfigurationError: As for ``Database.read``.
    """
    with database.read() as session:
        return _Verification(session).verify(heads)


class _Chain:
    """One chain, while its events come by."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.events = self.verified = self.faults = 0
        self.first_fault: Fault | None = None
        self.seq, self.hash = 0, FIRST

    def take(self, found: Event | Unreadable) -> None:
        """Verify the next event."""
        self.events += 1
        reason = self._fault_of(found)
        if reason is not None:
            self.note(found.seq, reason)
        elif not self.faults:
            self.verified += 1
        if found.seq is not None:
            self.seq = found.seq
        self.hash = found.hash

    def note(self, seq: int | None, reason: str) -> None:
        """Count a fault; keep the first."""
        self.faults += 1
        self.first_fault = self.first_fault or Fault(seq, reason)

    def end(self, expected: tuple[int, str], what: str) -> None:
        """Compare the last event with where the chain must end, which ``what`` says."""
        seq, digest = expected
        if seq > self.seq:
            self.note(
                self.seq + 1,
                f"events {self.seq + 1} to {seq}, its last ones, are missing: {what} "
                "has them",
            )
        elif seq < self.seq:
            self.note(seq + 1, f"{what} ends the chain with event {seq}, before this")
        elif digest != self.hash:
            self.note(seq, f"it is not the one that {what} ends the chain with")

    def _fault_of(self, found: Event | Unreadable) -> str | None:
        """Return what is wrong with the next event, if anything is."""
        expected = self.seq + 1
        if found.seq is not None and found.seq < expected:
            return "its number is taken, or none"
        if found.seq is not None and found.seq > expected:
            missing = (
                f"{expected} to {found.seq - 1}"
                if found.seq > expected + 1
                else expected
            )
            return f"before it, {missing} is missing"
        if isinstance(found, Unreadable):
            return found.reason
        try:
            digest = found.hash_after(self.hash)
        except (ValueError, RecursionError):
            return "its detail cannot be read"
        if digest != found.hash:
            return "it, or its link to the event before, was changed"
        return None


class _Verification:
    """One walk over the trail.

    Args:
        session: Its snapshot.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._head = _readable(queries.find_head(session))
        self._anchors: dict[str, tuple[int, str]] = {}
        """Where the own chain says that others end."""

    def verify(self, heads: Iterable[Head]) -> Verified:
        """Walk all chains; then look where they must end."""
        own = None if self._head is None else self._head.chain
        chains: dict[str, _Chain] = {} if own is None else {own: _Chain(own)}
        events = left_out = 0
        current = ""
        for found in queries.all_events(self._session):
            events += 1
            chain = chains.get(found.chain)
            if chain is None and len(chains) < MOST_CHAINS:
                chain = chains[found.chain] = _Chain(found.chain)
            if chain is None:
                left_out += found.chain != current
            else:
                chain.take(found)
                if found.chain == own and isinstance(found, Event):
                    self._look_for_anchors(found)
            current = found.chain
        for name in self._anchors.keys() - chains.keys() if not left_out else ():
            chains[name] = _Chain(name)
        for chain in chains.values():
            self._end(chain, own)
        return Verified(
            events,
            tuple(
                VerifiedChain(
                    chain.name,
                    chain.name == own,
                    chain.events,
                    chain.verified,
                    chain.faults,
                    chain.first_fault,
                    chain.seq,
                    chain.hash,
                )
                for chain in chains.values()
            ),
            left_out,
            self._head is None,
            tuple(str(head) for head in heads if not self._has(head, chains)),
        )

    def _look_for_anchors(self, event: Event) -> None:
        if event.action == _MIGRATED and str(event.detail.get("before")) < _CHAINED:
            self._anchors.clear()  # then all events became one chain
        if event.action != RESTORED:
            return
        for text in event.detail.get("heads") or ():
            try:
                head = Head.parse(text)
            except (InputError, TypeError):
                continue  # not as we write it: the event's hash is wrong as well
            if head.seq >= self._anchors.get(head.chain, (0, ""))[0]:
                self._anchors[head.chain] = head.seq, head.hash

    def _end(self, chain: _Chain, own: str | None) -> None:
        if self._head is not None and chain.name == own:
            chain.end((self._head.seq, self._head.hash), "the row in audit_head")
        elif chain.name in self._anchors:
            chain.end(self._anchors[chain.name], "the event of its restoring")
        else:
            chain.note(
                None,
                "no event of a restoring says where this chain comes from: restoring "
                "was broken off, and must be run again, or somebody has made it up",
            )

    def _has(self, head: Head, chains: dict[str, _Chain]) -> bool:
        if head.seq == 0:
            return head.hash == FIRST and head.chain in chains
        found = queries.hashes_between(self._session, head.chain, head.seq, head.seq)
        return found.get(head.seq) == head.hash


def _readable(head: AuditHeadRow | None) -> AuditHeadRow | None:
    """Return the head, unless SQLite holds something else in its place."""
    kinds = () if head is None else (head.chain, head.seq, head.hash)
    return head if list(map(type, kinds)) == [str, int, str] else None
