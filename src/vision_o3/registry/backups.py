"""Back up what is only in the database: users, revoked tokens, and the audit trail.

A backup is lines of JSON: what it is, then users with their secrets, revoked tokens,
audit events by chain and place, and at the end how many there were and the SHA-256 of
all lines before. So it can be written and read as a stream, and one that was cut or
changed is noticed before anything of it is used. It holds hashes of secrets: only its
owner can read it.

Restoring adds what is absent and changes nothing that is there. Format 1 had users with
one secret each, and events without chains.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from vision_o3.db import audit, queries, rebuild
from vision_o3.db.accounts import list_secrets
from vision_o3.db.audit import FIRST, Event
from vision_o3.db.changes import notify_change
from vision_o3.registry.accounts import CHANGES
from vision_o3.registry.audit import OPERATOR, record_event
from vision_o3.registry.audit_trail import RESTORED, Head, document_of
from vision_o3.registry.backup_lines import (
    BACKUP_FORMAT,
    COUNTED,
    USE,
    entries,
    line_of,
    of_token,
    of_user,
    secret_id,
    verify,
)
from vision_o3.registry.new_files import disk_errors, new_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy.orm import Session

    from vision_o3.db.engine import Database
    from vision_o3.db.models import AuditHeadRow, UserSecretRow
    from vision_o3.registry.backup_lines import Backup, Entry

BATCH = 1000
"""Entries read or added at a time."""
USERS_BATCH = 100
"""Users added at a time, each with an event: those who change something wait."""


@dataclass(frozen=True, slots=True)
class BackedUp:
    """What a backup holds."""

    users: int
    revoked_tokens: int
    audit_events: int
    audit_events_unreadable: int
    """Rows of the trail that somebody has spoilt. They are not in it."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What restoring a backup came to."""

    users_added: int
    users_present: int
    users_differing: tuple[str, ...]
    """Users who are not as in the backup: they were there already, otherwise, and were
    left so; or were added without a secret whose id another has."""
    revoked_tokens_added: int
    events_added: int
    events_present: int
    events_differing: int
    """Of which the trail has others in the same place, or that do not follow its end,
    or whose hash is not their own. They were left out."""
    first_differing: str | None
    """The first of these, as ``CHAIN:SEQ``."""


def back_up(database: Database, path: Path, *, software: str) -> BackedUp:
    """Write all of it, as it is at one moment, to a new file.

    It appears under its name when it is complete and on disk.

    Args:
        database: What to back up.
        path: The new file.
        software: The version of Vision-O3, for people to read.

    Raises:
        AlreadyExistsError: The file is there, or its ``.partial``.
        InputError: It cannot be made where it is to be.
        StorageFullError, StorageError: It cannot be written.
        DatabaseUnavailableError, ConfigurationError: As for ``Database.read``.
    """
    unreadable = 0
    with new_file(path) as file, database.read() as session:
        digest = hashlib.sha256()
        counts = dict.fromkeys(COUNTED, 0)

        def write(kind: str, document: Entry) -> None:
            line = line_of(kind, document)
            digest.update(line)
            file.write(line)
            if kind in counts:
                counts[kind] += 1

        now = queries.database_now(session)
        header = {"format": BACKUP_FORMAT, "made_at": now, "vision_o3": software}
        write("backup", header)
        for user in _users(session):
            write("user", user)
        for token in _revoked_tokens(session, now):
            write("revoked_token", token)
        for event in audit.all_events(session):
            if isinstance(event, Event):
                write("audit_event", {**document_of(event), "at": event.at})
            else:
                unreadable += 1
        end = {COUNTED[kind]: count for kind, count in counts.items()}
        file.write(line_of("end", {**end, "sha256": digest.hexdigest()}))
    return BackedUp(**end, audit_events_unreadable=unreadable)


def restore(database: Database, path: Path) -> Restored:
    """Add what a backup has and the database lacks.

    The whole backup is verified before anything is written. Then it is added in short
    transactions: broken off, it may be run again. Nobody who is there is changed, and
    no event. What was added is in the audit trail, and where the chains end that came
    with the backup.

    Raises:
        InputError: There is no such file, or it cannot be read.
        MalformedBlockError: It is no whole backup.
        DatabaseUnavailableError, ConfigurationError: As for ``Database.write``.
    """
    with disk_errors(path), path.open("rb") as file:
        backup = verify(file)
        file.seek(0)
        restoring = _Restoring(database, backup)
        for kind, batch in _batched(entries(file, backup.format)):
            restoring.add(kind, batch)
    return restoring.end()


class _Restoring:
    """Adds the entries of a verified backup, and counts what they came to.

    Args:
        database: Where they are added.
        backup: Which backup it is.
    """

    def __init__(self, database: Database, backup: Backup) -> None:
        self._database = database
        self._backup = backup
        self._users_added = self._users_present = self._tokens_added = 0
        self._users_differing: list[str] = []
        self._events_added = self._events_present = self._events_differing = 0
        self._first_differing: str | None = None
        self._ends: dict[str, Head | None] = {}
        """Where the backup's chains end; ``None`` for one that differs."""
        self._chained = Head(backup.sha256, 0, FIRST)
        """The event of format 1 that came last."""
        self._last = Head("", 0, FIRST)
        """The event of the backup that came last, added or not."""

    def add(self, kind: str, batch: list[Entry]) -> None:
        """Add those of a batch that are not there, in one transaction."""
        if kind == "user":
            for start in range(0, len(batch), USERS_BATCH):
                self._add_users(batch[start : start + USERS_BATCH])
        elif kind == "revoked_token":
            self._add_tokens(batch)
        else:
            chained = self._backup.format > 1
            self._add_events(
                [Event(**each) for each in batch] if chained else self._chain(batch)
            )

    def end(self) -> Restored:
        """Note in the trail what was restored; return it."""
        with self._database.write() as session:
            now = queries.database_now(session)
            own = audit.lock_head(session).chain
            detail = {
                "format": self._backup.format,
                "users_added": self._users_added,
                "revoked_tokens_added": self._tokens_added,
                "events_added": self._events_added,
                "events_differing": self._events_differing,
                "heads": [
                    str(head)
                    for chain, head in self._ends.items()
                    if head is not None and chain != own
                ],
            }
            record_event(session, OPERATOR, RESTORED, self._subject, detail, now=now)
        return Restored(
            self._users_added,
            self._users_present,
            tuple(self._users_differing),
            self._tokens_added,
            self._events_added,
            self._events_present,
            self._events_differing,
            self._first_differing,
        )

    @property
    def _subject(self) -> str:
        return f"backups/{self._backup.sha256}"

    def _add_users(self, users: list[Entry]) -> None:
        added: list[str] = []
        present = 0
        differing = []
        with self._database.write() as session:
            now = queries.database_now(session)
            for user in users:
                values = {name: user[name] for name in user if name != "secrets"}
                left_out = rebuild.add_user(session, values, user["secrets"])
                if left_out is not None:
                    added.append(user["id"])
                if left_out or (left_out is None and not _is_there(session, user)):
                    differing.append(user["id"])
                present += left_out is None and user["id"] not in differing
            for name in added:
                notify_change(session, CHANGES, name)
            for name in added:
                detail = {"backup": self._backup.sha256}
                record_event(
                    session, OPERATOR, "user.restored", f"users/{name}", detail, now=now
                )
        self._users_added += len(added)
        self._users_present += present
        self._users_differing += differing

    def _add_tokens(self, tokens: list[Entry]) -> None:
        with self._database.write() as session:
            now = queries.database_now(session)
            live = [each for each in tokens if each["expires_at"] > now]
            added = rebuild.add_revoked_tokens(session, live)
            for name in sorted({each["user_id"] for each in live}) if added else ():
                notify_change(session, CHANGES, name)
            if added:
                detail = {"added": added}
                record_event(
                    session, OPERATOR, "tokens.restored", self._subject, detail, now=now
                )
        self._tokens_added += added

    def _chain(self, events: list[Entry]) -> list[Event]:
        """Return events of format 1 as a chain, named for the backup.

        So they are the same whenever this backup is restored.
        """
        made = []
        for entry in events:
            values = {name: entry[name] for name in entry if name != "id"}
            last = self._chained
            event = Event(
                chain=last.chain,
                seq=last.seq + 1,
                hash="",
                address=None,
                request_id=None,
                **values,
            )
            event = replace(event, hash=event.hash_after(last.hash))
            self._chained = Head(event.chain, event.seq, event.hash)
            made.append(event)
        return made

    def _add_events(self, events: list[Event]) -> None:
        with self._database.write() as session:
            head = audit.lock_head(session)
            new: list[Event] = []
            for chain, group in groupby(events, lambda event: event.chain):
                of_chain = list(group)
                there = audit.hashes_between(
                    session, chain, of_chain[0].seq - 1, of_chain[-1].seq
                )
                new += [each for each in of_chain if self._is_new(each, there, head)]
            audit.add_events(session, new)
            session.flush()
        self._events_added += len(new)

    def _is_new(self, event: Event, there: dict[int, str], head: AuditHeadRow) -> bool:
        """Say whether an event is to be added; count it if not.

        Args:
            event: Which; they come by chain and place.
            there: The hashes of what the database has of the chain.
            head: The end of the database's own chain; moves to an event that goes on
                from it.
        """
        if not self._is_itself(event, there):
            # What comes after it may be right: a good copy can fill the hole.
            self._leave_out(event)
            return False
        diverged = event.chain in self._ends and self._ends[event.chain] is None
        found = there.get(event.seq)
        beyond = event.chain == head.chain and event.seq > head.seq
        if found is None and beyond and not diverged:
            # The database went back to an earlier moment: its own chain goes on from
            # where the backup has it, unless it went on otherwise since.
            diverged = event.seq != head.seq + 1 or (
                event.hash_after(head.hash) != event.hash
            )
            if not diverged:
                head.seq, head.hash = event.seq, event.hash
        same = found == event.hash
        if diverged or not (same or found is None):
            self._ends[event.chain] = None
        else:
            self._ends[event.chain] = Head(event.chain, event.seq, event.hash)
        if same:
            self._events_present += 1
        elif self._ends[event.chain] is None:
            self._leave_out(event)
        else:
            return True
        return False

    def _leave_out(self, event: Event) -> None:
        self._events_differing += 1
        first = f"{event.chain}:{event.seq}"
        self._first_differing = self._first_differing or first

    def _is_itself(self, event: Event, there: dict[int, str]) -> bool:
        """Say whether an event has the hash that it must have, as far as is known.

        Events are never removed, so one that was changed must not come in: it would
        stand where the true one belongs.
        """
        last = self._last
        self._last = Head(event.chain, event.seq, event.hash)
        before = {there.get(event.seq - 1)}
        if (last.chain, last.seq) == (event.chain, event.seq - 1):
            before.add(last.hash)
        if event.seq == 1:
            before = {FIRST}
        known = [each for each in before if each is not None]
        try:
            return not known or event.hash in map(event.hash_after, known)
        except (ValueError, RecursionError):
            return False


# -------------------------------------------------------------------------- reading


def _batched(
    found: Iterable[tuple[str, Entry]],
) -> Iterator[tuple[str, list[Entry]]]:
    """Yield entries as they came, some of one kind at a time."""
    for kind, group in groupby(found, lambda entry: entry[0]):
        while batch := [entry for _, entry in islice(group, BATCH)]:
            yield kind, batch


def _users(session: Session) -> Iterator[Entry]:
    """Yield all users with their secrets, by name."""
    read = partial(rebuild.users_after, session, limit=BATCH)
    for rows in _pieces(read, lambda row: row.id):
        secrets: dict[str, list[UserSecretRow]] = {row.id: [] for row in rows}
        for secret in list_secrets(session, list(secrets)):
            secrets[secret.user_id].append(secret)
        yield from (of_user(row, secrets[row.id]) for row in rows)
        session.expunge_all()


def _revoked_tokens(session: Session, now: datetime) -> Iterator[Entry]:
    read = partial(rebuild.revoked_tokens_after, session, limit=BATCH, now=now)
    for rows in _pieces(read, lambda row: row.jti):
        yield from map(of_token, rows)
        session.expunge_all()


def _pieces(
    read: Callable[[str], Sequence[Any]], key: Callable[[Any], str]
) -> Iterator[Sequence[Any]]:
    """Yield rows, some at a time, as ``read`` returns those after a key."""
    after = ""
    while rows := read(after):
        after = key(rows[-1])
        yield rows


def _is_there(session: Session, user: Entry) -> bool:
    """Say whether a user is there as in the backup, whenever they signed in last."""
    found = queries.find_user(session, user["id"])
    if found is None:
        return False
    there = of_user(found, list_secrets(session, [found.id]))
    for secret in there["secrets"]:
        secret["id"] = secret_id(secret["id"], found.id)
    return _lasting(there) == _lasting(user)


def _lasting(user: Entry) -> Entry:
    secrets = [
        {name: value for name, value in secret.items() if name not in USE}
        for secret in user["secrets"]
    ]
    return {**user, "secrets": sorted(secrets, key=lambda secret: secret["id"])}
