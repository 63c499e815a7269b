"""Back up what is only in the database: users, and the audit trail.

A backup is lines of JSON: what it is, then users, then audit events in their order,
then how many there were and the SHA-256 of all lines before. So it can be written and
read as a stream, and one that was cut or changed is noticed before anything of it is
used. It holds hashes of secrets: only its owner can read it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from vision_o3.db import queries, rebuild
from vision_o3.errors import (
    AlreadyExistsError,
    InputError,
    MalformedBlockError,
    StorageError,
    StorageFullError,
)
from vision_o3.registry.json_fields import parse_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy.orm import Session

    from vision_o3.db.engine import Database
    from vision_o3.db.models import AuditEventRow, UserRow
    from vision_o3.registry.json_fields import Fields

BACKUP_FORMAT = 1
"""Raised when a reader of the older format could misread the newer one."""
MAX_LINE_SIZE = 8 << 20
"""Bytes of a line that are read at most."""
PARTIAL = ".partial"
"""Added to the file's name until all of it is on disk."""

BATCH = 1000
"""Entries read or added at a time."""

Entry: TypeAlias = dict[str, Any]
"""A user or an audit event: all columns by name."""

_KIND = re.compile(rb'\{"([a-z_]{1,20})":')
_MISTAKES = {
    errno.EACCES,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LONGEST_ID = 255
_LONGEST_ACTION = 64
"""Characters; the columns'."""


@dataclass(frozen=True, slots=True)
class BackedUp:
    """What a backup holds."""

    users: int
    audit_events: int


@dataclass(frozen=True, slots=True)
class Restored:
    """What restoring a backup came to."""

    users_added: int
    users_present: int
    users_differing: tuple[str, ...]
    """Users who are there, but not as in the backup. They were left as they are."""
    events_added: int
    events_present: int
    events_renumbered: int
    """Of those added: how many got a new id, as another event has theirs."""


def back_up(database: Database, path: Path, *, software: str) -> BackedUp:
    """Write users and audit trail, as they are at one moment, to a new file.

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
    with _new_file(path) as file, database.read() as session:
        digest = hashlib.sha256()
        counts = {"user": 0, "audit_event": 0}

        def write(kind: str, document: Entry) -> None:
            line = _line(kind, document)
            digest.update(line)
            file.write(line)
            if kind in counts:
                counts[kind] += 1

        header = {
            "format": BACKUP_FORMAT,
            "made_at": queries.database_now(session),
            "vision_o3": software,
        }
        write("backup", header)
        for user in queries.list_users(session):
            write("user", _of_user(user))
        for event in _events(session):
            write("audit_event", _of_event(event))
        end = {
            "users": counts["user"],
            "audit_events": counts["audit_event"],
            "sha256": digest.hexdigest(),
        }
        file.write(_line("end", end))
    return BackedUp(counts["user"], counts["audit_event"])


def restore(database: Database, path: Path) -> Restored:
    """Add the users and audit events of a backup that the database lacks.

    The whole backup is verified before anything is written. Then it is added in short
    transactions: broken off, it may be run again. Nobody who is there is changed. An
    event keeps its id; where another event has that, it gets one after all others.

    Raises:
        InputError: There is no such file, or it cannot be read.
        MalformedBlockError: It is no whole backup.
        DatabaseUnavailableError, ConfigurationError: As for ``Database.write``.
    """
    with _disk_errors(path), path.open("rb") as file:
        last = _verify(file)
        file.seek(0)
        restoring = _Restoring(database, last)
        for kind, batch in _batched(_entries(file)):
            if kind == "user":
                restoring.add_users(batch)
            else:
                restoring.add_events(batch)
    return Restored(
        restoring.users_added,
        restoring.users_present,
        tuple(restoring.differing),
        restoring.events_added,
        restoring.events_present,
        restoring.renumbered,
    )


class _Restoring:
    """Adds the entries of a verified backup, and counts what they came to.

    Args:
        database: Where they are added.
        last: The event of the highest id, if there are any.
    """

    def __init__(self, database: Database, last: Entry | None) -> None:
        self.users_added = self.users_present = 0
        self.differing: list[str] = []
        self.events_added = self.events_present = self.renumbered = 0
        self._database = database
        if last is not None:
            self._reserve(last)

    def add_users(self, users: list[Entry]) -> None:
        """Add those who are not there."""
        added = present = 0
        differing = []
        with self._database.write() as session:
            for user in users:
                if rebuild.add_user(session, **user):
                    added += 1
                    continue
                found = queries.find_user(session, user["id"])
                if found is not None and _of_user(found) == user:
                    present += 1
                else:
                    differing.append(user["id"])
        self.users_added += added
        self.users_present += present
        self.differing += differing

    def add_events(self, events: list[Entry]) -> None:
        """Add those that are not there, under their ids if these are free."""
        with self._database.write() as session:
            rebuild.lock_rebuilding(session)
            alike = rebuild.audit_events_like(
                session,
                [event["id"] for event in events],
                [event["at"] for event in events],
            )
            there = {row.id: _content(_of_event(row)) for row in alike}
            contents = set(there.values())
            new, renumbered = [], []
            for event in events:
                content = _content(event)
                if event["id"] not in there:
                    new.append(event)
                elif there[event["id"]] != content and content not in contents:
                    renumbered.append(
                        {name: event[name] for name in event if name != "id"}
                    )
            rebuild.add_audit_events(session, new + renumbered)
        self.events_added += len(new) + len(renumbered)
        self.events_present += len(events) - len(new) - len(renumbered)
        self.renumbered += len(renumbered)

    def _reserve(self, last: Entry) -> None:
        """Add the last event first.

        Gateways at work take ids that follow the highest one: from now on none of
        those that the backup has.
        """
        with self._database.write() as session:
            rebuild.lock_rebuilding(session)
            rebuild.reserve_audit_ids(session, last["id"])
            if not rebuild.audit_events_like(session, [last["id"]], []):
                rebuild.add_audit_events(session, [last])
                self.events_added += 1
                self.events_present -= 1  # as which it will be counted when it comes


# ---------------------------------------------------------------------------- lines


def _line(kind: str, document: Entry) -> bytes:
    line = json.dumps(
        {kind: document},
        default=datetime.isoformat,
        ensure_ascii=False,
        separators=(",", ":"),
        allow_nan=False,
    )
    return line.encode() + b"\n"


def _of_user(user: UserRow) -> Entry:
    return {
        "id": user.id,
        "permissions": list(user.permissions),
        "secret_hash": user.secret_hash,
        "created_at": user.created_at,
        "disabled_at": user.disabled_at,
    }


def _of_event(event: AuditEventRow) -> Entry:
    return {
        "id": event.id,
        "at": event.at,
        "principal": event.principal,
        "action": event.action,
        "subject": event.subject,
        "detail": event.detail,
    }


def _to_user(fields: Fields) -> Entry:
    return {
        "id": fields.text("id", longest=_LONGEST_ID),
        "permissions": list(fields.texts("permissions")),
        "secret_hash": fields.text("secret_hash"),
        "created_at": fields.time("created_at"),
        "disabled_at": fields.time_or_none("disabled_at"),
    }


def _to_event(fields: Fields) -> Entry:
    return {
        "id": fields.number("id", at_least=1),
        "at": fields.time("at"),
        "principal": fields.text("principal", longest=_LONGEST_ID),
        "action": fields.text("action", longest=_LONGEST_ACTION),
        "subject": fields.text("subject"),
        "detail": fields.mapping("detail"),
    }


_READERS = {"user": _to_user, "audit_event": _to_event}
"""Kinds of entries, in their order."""


def _content(event: Entry) -> tuple[object, ...]:
    """Return what makes two events the same, whatever their ids."""
    detail = json.dumps(event["detail"], sort_keys=True)
    return event["at"], event["principal"], event["action"], event["subject"], detail


def _events(session: Session) -> Iterator[AuditEventRow]:
    """Yield the audit events in their order, some read at a time."""
    after = 0
    while events := rebuild.audit_events(session, after=after, limit=BATCH):
        yield from events
        after = events[-1].id
        session.expunge_all()


def _verify(file: BinaryIO) -> Entry | None:
    """Check a whole backup; return its last audit event, if it has any.

    Raises:
        MalformedBlockError: It is none, or not as it was written.
    """
    digest = hashlib.sha256()
    counts = dict.fromkeys(_READERS, 0)
    before: tuple[int, Any] | None = None
    entry: Entry = {}
    first = _next_line(file)
    if _kind(first) != "backup":
        raise _malformed("it does not begin as a backup does")
    with _described("the first line"):
        stated = parse_object(first).inner("backup").number("format")
    if stated != BACKUP_FORMAT:
        raise _malformed(
            f"it is of format {stated}, and this version of Vision-O3 reads format "
            f"{BACKUP_FORMAT}"
        )
    digest.update(first)
    while _kind(line := _next_line(file)) != "end":
        kind, entry = _entry(line, f"line {sum(counts.values()) + 2}")
        place = list(_READERS).index(kind), entry["id"]
        if before is not None and place <= before:
            raise _malformed(f"line {sum(counts.values()) + 2} is out of order")
        before = place
        counts[kind] += 1
        digest.update(line)
    with _described("the last line"):
        end = parse_object(line).inner("end")
        told = end.number("users"), end.number("audit_events"), end.text("sha256")
    if told != (counts["user"], counts["audit_event"], digest.hexdigest()):
        raise _malformed("it was changed since it was written")
    if file.read(1):
        raise _malformed("something follows its last line")
    return entry if counts["audit_event"] else None


def _entries(file: BinaryIO) -> Iterator[tuple[str, Entry]]:
    """Yield the entries of a verified backup, by kind."""
    _next_line(file)
    while _kind(line := _next_line(file)) != "end":
        yield _entry(line, "a line")


def _entry(line: bytes, where: str) -> tuple[str, Entry]:
    kind = _kind(line)
    if kind not in _READERS:
        raise _malformed(f"{where} is neither a user nor an audit event")
    with _described(where):
        return kind, _READERS[kind](parse_object(line).inner(kind))


def _kind(line: bytes) -> str:
    """Return what a line says it is, by its first name."""
    match = _KIND.match(line)
    return "" if match is None else match[1].decode()


def _next_line(file: BinaryIO) -> bytes:
    line = file.readline(MAX_LINE_SIZE)
    if not line.endswith(b"\n"):
        reason = "a line is too long" if line else "its end is missing"
        raise _malformed(reason if len(line) in {0, MAX_LINE_SIZE} else "it is cut off")
    return line


def _batched(
    entries: Iterable[tuple[str, Entry]],
) -> Iterator[tuple[str, list[Entry]]]:
    """Yield entries as they came, some of one kind at a time."""
    for kind, group in groupby(entries, lambda entry: entry[0]):
        while batch := [entry for _, entry in islice(group, BATCH)]:
            yield kind, batch


@contextmanager
def _described(where: str) -> Iterator[None]:
    """Let out what is wrong with a line as our error."""
    try:
        yield
    except RecursionError:
        raise _malformed(f"{where} is nested too deeply") from None
    except ValueError as error:
        raise _malformed(f"of {where}, {error}") from error


def _malformed(reason: str) -> MalformedBlockError:
    return MalformedBlockError(
        f"This is not a whole backup: {reason.rstrip('.')}. Nothing was restored. "
        "Use another copy of it.",
    )


# ---------------------------------------------------------------------------- files


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file for its owner alone, which gets its name when the block ends."""
    partial = Path(f"{path}{PARTIAL}")
    with _disk_errors(path):
        if os.path.lexists(path):
            raise _taken(path)
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise AlreadyExistsError(
                f"{partial} is there: another backup to this file is being written, "
                "or was broken off. Remove it if none is at work.",
            ) from error
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _give_name(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        _sync(path.parent)


def _give_name(partial: Path, path: Path) -> None:
    """Give a file its name, unless that is taken."""
    try:
        os.link(partial, path)
    except FileExistsError as error:
        raise _taken(path) from error
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        if os.path.lexists(path):
            raise _taken(path) from error
        partial.rename(path)  # where there are no hard links, as on FAT


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _taken(path: Path) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"{path} is there already, and is not replaced. Name a new file."
    )


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about a file into ours."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.errno in _FULL:
            raise StorageFullError(
                f"There is no room for {path} ({reason}). Free some and try again.",
            ) from error
        if error.errno in _MISTAKES:
            raise InputError(
                f"{path} cannot be opened: {reason}. Check its name, and that you "
                "may read or write there.",
            ) from error
        raise StorageError(f"The disk failed on {path}: {reason}.") from error
