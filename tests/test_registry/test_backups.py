from __future__ import annotations

import errno
import json
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from tests.test_integration.gateways import postgres_database
from vision_o3.db import models as tables
from vision_o3.db import queries
from vision_o3.db.engine import Database
from vision_o3.db.migrate import migrate
from vision_o3.errors import (
    AlreadyExistsError,
    InputError,
    MalformedBlockError,
    StorageError,
    StorageFullError,
)
from vision_o3.registry import backups
from vision_o3.registry.backups import BackedUp, Restored, restore

AT = datetime(2026, 11, 24, 14, 0, 0, 7, tzinfo=UTC)
EVENTS = 2500
"""More than are read or added at a time."""
NOTHING = Restored(0, 0, (), 0, 0, 0)


@pytest.fixture(scope="module")
def postgres() -> Iterator[tuple[str, str]]:
    with postgres_database() as one, postgres_database() as other:
        migrate(one)
        migrate(other)
        yield one, other


@pytest.fixture(params=["sqlite", "postgresql"])
def pair(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Database, Database]]:
    """Two empty databases of each kind."""
    if request.param == "sqlite":
        urls = f"sqlite:///{tmp_path}/one.db", f"sqlite:///{tmp_path}/other.db"
        for url in urls:
            migrate(url)
    else:
        urls = request.getfixturevalue("postgres")
    databases = Database(urls[0]), Database(urls[1])
    if request.param == "postgresql":
        for database in databases:
            with database.write() as session:
                session.execute(text("TRUNCATE users, audit_events RESTART IDENTITY"))
    try:
        yield databases
    finally:
        for database in databases:
            database.close()


def back_up(database: Database, path: Path) -> BackedUp:
    return backups.back_up(database, path, software="1.2.3")


def add_user(database: Database, name: str, hashed: str = "$argon2id$x") -> None:
    with database.write() as session:
        queries.insert_user(session, name, ["model:read"], hashed, AT)


def add_events(database: Database, *subjects: str) -> None:
    for subject in subjects:  # each alone, so that ids are in this order
        with database.write() as session:
            queries.insert_audit_event(
                session,
                at=AT,
                principal="ann",
                action="version.published",
                subject=subject,
                detail={"cid": "ü", "size": 1.5},
            )


def fill(database: Database) -> None:
    for name in ("ann", "bob", "Zoë"):
        add_user(database, name)
    with database.write() as session:
        queries.set_user_disabled(session, "bob", AT + timedelta(days=1))
        session.add_all(
            tables.AuditEventRow(
                at=AT + timedelta(microseconds=number),
                principal="ann",
                action="version.published",
                subject=f"models/m/v{number}",
                detail={"n": number, "é\n": None},
            )
            for number in range(EVENTS)
        )


def users_of(database: Database) -> list[dict[str, Any]]:
    with database.read() as session:
        return [backups._of_user(user) for user in queries.list_users(session)]


def events_of(database: Database) -> list[dict[str, Any]]:
    with database.read() as session:
        rows = session.scalars(
            select(tables.AuditEventRow).order_by(tables.AuditEventRow.id)
        )
        return [backups._of_event(row) for row in rows]


def subjects_of(database: Database) -> list[tuple[int, str]]:
    return [(event["id"], event["subject"]) for event in events_of(database)]


def test_what_was_backed_up_is_restored(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    one, other = pair
    fill(one)
    path = tmp_path / "backup.jsonl"
    assert back_up(one, path) == BackedUp(3, EVENTS)
    assert restore(other, path) == Restored(3, 0, (), EVENTS, 0, 0)
    assert users_of(other) == users_of(one)
    assert events_of(other) == events_of(one)
    assert restore(other, path) == Restored(0, 3, (), 0, EVENTS, 0)
    assert restore(one, path) == Restored(0, 3, (), 0, EVENTS, 0)
    assert events_of(other) == events_of(one)
    # And the next event follows.
    add_events(other, "later")
    last = events_of(other)[-1]
    assert last["subject"] == "later"
    assert last["id"] > events_of(one)[-1]["id"]
    again = tmp_path / "again.jsonl"
    back_up(other, again)
    assert restore(one, again) == Restored(0, 3, (), 1, EVENTS, 0)
    assert events_of(one) == events_of(other)


def test_an_empty_database_has_a_backup(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    assert back_up(pair[0], tmp_path / "b") == BackedUp(0, 0)
    assert restore(pair[1], tmp_path / "b") == NOTHING


def test_the_file_is_its_owners_alone(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    add_user(pair[0], "ann", "$argon2id$hash")
    path = tmp_path / "b"
    before = os.umask(0)
    try:
        back_up(pair[0], path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_nlink == 1
    assert [each.name for each in tmp_path.glob("b*")] == ["b"]
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [list(line) for line in lines] == [["backup"], ["user"], ["end"]]
    assert lines[0]["backup"]["format"] == 1
    assert lines[1]["user"]["secret_hash"] == "$argon2id$hash"


def test_other_users_of_a_name_are_told_and_left(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    one, other = pair
    for name in ("ann", "bob"):
        add_user(one, name)
    back_up(one, tmp_path / "b")
    add_user(other, "bob", "$argon2id$other")
    before = users_of(other)
    assert restore(other, tmp_path / "b") == replace(
        NOTHING, users_added=1, users_differing=("bob",)
    )
    assert [user for user in users_of(other) if user["id"] == "bob"] == before
    with one.write() as session:
        queries.set_user_disabled(session, "ann", AT)
    assert restore(one, tmp_path / "b").users_differing == ("ann",)


def test_events_whose_ids_are_taken_follow_in_their_order(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    one, other = pair
    add_events(one, "a", "b", "c", "d")
    back_up(one, tmp_path / "b")
    add_events(other, "a", "x", "y")
    assert restore(other, tmp_path / "b") == Restored(0, 0, (), 3, 1, 2)
    found = subjects_of(other)
    assert found[:4] == [(1, "a"), (2, "x"), (3, "y"), (4, "d")]
    assert [subject for _, subject in found[4:]] == ["b", "c"]
    assert restore(other, tmp_path / "b") == Restored(0, 0, (), 0, 4, 0)
    assert subjects_of(other) == found


def test_events_of_a_gateway_at_work_take_no_ids_of_the_backup(
    pair: tuple[Database, Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    fill(one)
    back_up(one, tmp_path / "b")
    monkeypatch.setattr(backups, "BATCH", 100)
    add_events(other, "w0")
    ended = threading.Event()
    added = ["w0"]

    def work() -> None:
        while not ended.wait(0.001):  # so that others get their turn
            add_events(other, f"w{len(added)}")
            added.append(f"w{len(added)}")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        done = restore(other, tmp_path / "b")
    finally:
        ended.set()
        thread.join()
    assert (done.events_added, done.events_present) == (EVENTS, 0)
    found = events_of(other)
    ids = {event["subject"]: event["id"] for event in found}
    assert len(found) == EVENTS + len(added)
    # What was added before the restoring began has the first ids, and nothing else.
    kept = [event for event in events_of(one) if ids[event["subject"]] == event["id"]]
    assert len(kept) == EVENTS - done.events_renumbered
    assert done.events_renumbered < EVENTS / 2
    assert [e["subject"] for e in found if e["subject"][0] == "w"] == added


def test_several_may_restore_at_once(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    one, other = pair
    fill(one)
    back_up(one, tmp_path / "b")
    done: list[Restored] = []
    threads = [
        threading.Thread(target=lambda: done.append(restore(other, tmp_path / "b")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(each.events_added for each in done) == EVENTS
    assert sum(each.users_added for each in done) == 3
    assert events_of(other) == events_of(one)


# --------------------------------------------------------------------- damage


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/registry.db"
    migrate(url)
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def small(sqlite: Database, tmp_path: Path) -> Path:
    """A backup of two users and two events; the database is empty again."""
    for name in ("ann", "bob"):
        add_user(sqlite, name)
    add_events(sqlite, "a", "b")
    back_up(sqlite, tmp_path / "small")
    with sqlite.write() as session:
        session.execute(text("DELETE FROM users"))
        session.execute(text("DELETE FROM audit_events"))
    return tmp_path / "small"


def assert_refused(database: Database, path: Path, said: str = "not a whole") -> None:
    with pytest.raises(MalformedBlockError, match=said) as caught:
        restore(database, path)
    assert "Nothing was restored" in caught.value.message
    assert "argon2id" not in caught.value.message
    assert not users_of(database)
    assert not events_of(database)


def test_any_cut_is_noticed(sqlite: Database, small: Path) -> None:
    content = small.read_bytes()
    for size in range(len(content)):
        small.write_bytes(content[:size])
        with pytest.raises(MalformedBlockError):
            restore(sqlite, small)
    assert_refused(sqlite, small)


def test_any_changed_byte_is_noticed(sqlite: Database, small: Path) -> None:
    content = small.read_bytes()
    last = content.rindex(b"\n", 0, -1)
    for at in range(last):
        changed = bytearray(content)
        changed[at] ^= 1
        small.write_bytes(changed)
        with pytest.raises(MalformedBlockError):
            restore(sqlite, small)
    assert_refused(sqlite, small)


def signed(lines: list[bytes], **end: Any) -> bytes:
    """A backup of these lines with a right last one, but for what is given."""
    import hashlib  # noqa: PLC0415

    head = b"".join(lines)
    told = {
        "users": sum(line.startswith(b'{"user"') for line in lines),
        "audit_events": sum(line.startswith(b'{"audit') for line in lines),
        "sha256": hashlib.sha256(head).hexdigest(),
    }
    return head + json.dumps({"end": told | end}).encode() + b"\n"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[1:], "does not begin"),
        (lambda _: [], "does not begin"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "out of order"),
        (lambda lines: [lines[0], *lines[3:], *lines[1:3]], "out of order"),
        (lambda lines: [*lines, lines[-1]], "out of order"),
        (lambda lines: [*lines[:2], *lines[1:]], "out of order"),
        (lambda lines: [*lines, b'{"secret": {}}\n'], "neither a user nor"),
        (lambda lines: [*lines, b"\n"], "neither a user nor"),
        (lambda lines: [*lines, b'{"audit_event": 1}\n'], "not an object"),
        (lambda lines: [*lines, b'{"audit_event":{"id":9}}\n'], "at is not a text"),
        (lambda lines: [*lines, b'{"user":' + b"[" * 100_000 + b"\n"], "too deeply"),
        (lambda lines: [*lines, b'{"user":' + bytes(9 << 20) + b"\n"], "too long"),
        (lambda lines: [b'{"backup":{"format":2}}\n', *lines[1:]], "format 2, and"),
        (lambda lines: [b'{"backup":[]}\n', *lines[1:]], "of the first line"),
    ],
)
def test_what_no_backup_has_is_told(
    sqlite: Database, small: Path, change: Any, said: str
) -> None:
    lines = small.read_bytes().splitlines(keepends=True)[:-1]
    small.write_bytes(signed(change(lines)))
    assert_refused(sqlite, small, said)


@pytest.mark.parametrize("end", [{"users": 3}, {"sha256": "0"}, {"audit_events": None}])
def test_a_wrong_end_is_told(
    sqlite: Database, small: Path, end: dict[str, Any]
) -> None:
    lines = small.read_bytes().splitlines(keepends=True)[:-1]
    small.write_bytes(signed(lines, **end))
    assert_refused(sqlite, small)
    small.write_bytes(signed(lines) + b"{}")
    assert_refused(sqlite, small, "follows its last line")
    small.write_bytes(signed(lines))
    assert restore(sqlite, small).users_added == 2


# ---------------------------------------------------------------------- files


def test_nothing_is_replaced(sqlite: Database, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(AlreadyExistsError, match="is there already"):
        back_up(sqlite, taken)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(AlreadyExistsError, match="is there already"):
        back_up(sqlite, tmp_path / "link")
    with pytest.raises(AlreadyExistsError, match="is there already"):
        back_up(sqlite, tmp_path)
    (tmp_path / "b.partial").write_text("other")
    with pytest.raises(AlreadyExistsError, match="broken off"):
        back_up(sqlite, tmp_path / "b")
    assert taken.read_text() == "mine"
    assert (tmp_path / "b.partial").read_text() == "other"
    assert not (tmp_path / "nowhere").exists()


def test_a_name_that_is_taken_meanwhile_is_told(
    sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b"

    def list_users(_: object) -> list[tables.UserRow]:
        path.write_text("mine")
        return []

    monkeypatch.setattr(queries, "list_users", list_users)
    with pytest.raises(AlreadyExistsError, match="is there already"):
        back_up(sqlite, path)
    assert path.read_text() == "mine"
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.ENOSPC, StorageFullError), (errno.EIO, StorageError)],
)
def test_a_disk_that_fails_leaves_nothing(
    sqlite: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    expected: type[StorageError],
) -> None:
    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(expected):
        back_up(sqlite, tmp_path / "b")
    assert not list(tmp_path.glob("b*"))


def test_file_systems_without_links_will_do(
    sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", fail)
    back_up(sqlite, tmp_path / "b")
    assert restore(sqlite, tmp_path / "b") == NOTHING
    assert not list(tmp_path.glob("*.partial"))


def test_places_that_cannot_be_used_are_told(sqlite: Database, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be opened: No such file"):
        back_up(sqlite, tmp_path / "none" / "b")
    with pytest.raises(InputError, match="cannot be opened: No such file"):
        restore(sqlite, tmp_path / "none")
    with pytest.raises(InputError, match="cannot be opened: Is a directory"):
        restore(sqlite, tmp_path)
