from __future__ import annotations

import errno
import hashlib
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
from sqlalchemy import text, update

from tests.test_integration.gateways import postgres_database
from tests.test_registry.trails import AT, add_events, empty, tampering
from vision_o3.db import accounts, audit, queries
from vision_o3.db import models as tables
from vision_o3.db.audit import Event, Filters
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
from vision_o3.registry.audit_trail import head_of, list_trail, verify_trail
from vision_o3.registry.backup_lines import secret_id
from vision_o3.registry.backups import BackedUp, Restored, restore

EVENTS = 1100
"""More than are read or added at a time."""
NOTHING = Restored(0, 0, (), 0, 0, 0, 0, None)
FAR = datetime.now(UTC) + timedelta(days=9)
PAST = AT


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
            empty(database)
    try:
        yield databases
    finally:
        for database in databases:
            database.close()


def back_up(database: Database, path: Path) -> BackedUp:
    return backups.back_up(database, path, software="1.2.3")


def add_user(database: Database, name: str, hashed: str = "$argon2id$x") -> None:
    with database.write() as session:
        accounts.insert_user(
            session, name, roles=[], permissions=["model:read"], created_at=AT
        )
        accounts.insert_secret(
            session,
            id=f"first-{len(accounts.list_users(session))}",
            user_id=name,
            label="first",
            secret_hash=hashed,
            created_at=AT,
        )


def change_user(database: Database, name: str, **values: Any) -> None:
    with database.write() as session:
        session.execute(
            update(tables.UserRow).where(tables.UserRow.id == name).values(**values)
        )


def fill(database: Database) -> None:
    """Users of all kinds, revoked tokens, and a trail that verifies."""
    for name in ("ann", "bob", "Zoë"):
        add_user(database, name)
    with database.write() as session:
        for number, expires_at in enumerate((FAR, None)):
            accounts.insert_secret(
                session,
                id=f"{number:016x}",
                user_id="ann",
                label=f"camera {number}",
                secret_hash=f"$argon2id${number}",
                created_at=AT + timedelta(seconds=number),
                expires_at=expires_at,
                last_used_at=AT if number else None,
                last_used_from="192.0.2.0/24" if number else None,
            )
        for jti, expires_at in (("b_", FAR), ("-a", FAR), ("B", FAR), ("old", PAST)):
            accounts.revoke_token(
                session, jti=jti, user_id="ann", expires_at=expires_at
            )
    change_user(database, "bob", disabled_at=AT + timedelta(days=1), max_versions=0)
    change_user(
        database,
        "Zoë",
        roles=["admin", "device"],
        token_generation=7,
        max_versions=3,
        max_bytes=1 << 40,
    )
    with database.write() as session:
        head = audit.lock_head(session)
        events = []
        for number in range(EVENTS):
            event = Event(
                chain=head.chain,
                seq=head.seq + 1,
                hash="",
                at=AT + timedelta(seconds=number // 2),
                principal="ann",
                action="version.published",
                subject=f"models/m/v{number}",
                detail={"n": number, "é\n": None, "f": 1e300},
                address="192.0.2.7" if number % 2 else None,
                request_id=f"r{number}" if number % 3 else None,
            )
            event = replace(event, hash=event.hash_after(head.hash))
            head.seq, head.hash = event.seq, event.hash
            events.append(event)
        audit.add_events(session, events)


def users_of(database: Database) -> list[dict[str, Any]]:
    with database.read() as session:
        users = list(backups._users(session))
    for user in users:
        for secret in user["secrets"]:
            secret["id"] = secret_id(secret["id"], user["id"])
        user["secrets"].sort(key=lambda secret: secret["id"])
    return users


def tokens_of(database: Database) -> list[dict[str, Any]]:
    with database.read() as session:
        return list(backups._revoked_tokens(session, PAST))


def events_of(database: Database, chain: str | None = None) -> list[Event]:
    with database.read() as session:
        found = list(audit.all_events(session))
    return [
        each
        for each in found
        if isinstance(each, Event) and chain in {None, each.chain}
    ]


def chain_of(database: Database) -> str:
    return head_of(database).chain


def actions_of(database: Database, action: str) -> list[Event]:
    """The events of a kind, newest first."""
    page = list_trail(database, Filters(action=action), page=1, page_size=200)
    return list(page.items)


def test_what_was_backed_up_is_restored(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    one, other = pair
    fill(one)
    path = tmp_path / "backup.jsonl"
    assert back_up(one, path) == BackedUp(3, 3, EVENTS, 0)
    assert restore(other, path) == replace(
        NOTHING, users_added=3, revoked_tokens_added=3, events_added=EVENTS
    )
    assert users_of(other) == users_of(one)
    assert [token["jti"] for token in tokens_of(other)] == ["-a", "B", "b_"]
    assert events_of(other, chain_of(one)) == events_of(one)
    assert verify_trail(other, [head_of(one)]).whole
    # Once more adds nothing, here or there.
    again = replace(NOTHING, users_present=3, events_present=EVENTS)
    assert restore(other, path) == again
    assert restore(one, path) == again
    assert users_of(other) == users_of(one)
    assert events_of(other, chain_of(one)) == events_of(one)[:EVENTS]
    # And each chain goes on by itself.
    add_events(other, "later")
    add_events(one, "later")
    assert verify_trail(other).whole
    assert verify_trail(one).whole


def test_what_was_restored_can_be_backed_up_and_restored(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    one, other = pair
    fill(one)
    back_up(one, tmp_path / "first")
    restore(other, tmp_path / "first")
    back_up(other, tmp_path / "second")
    done = restore(one, tmp_path / "second")
    # The three users, the tokens and the restoring itself.
    assert (done.events_added, done.events_present) == (5, EVENTS)
    assert verify_trail(one, [head_of(other)]).whole
    assert users_of(one) == users_of(other)


def test_restoring_is_in_the_trail(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    one, other = pair
    fill(one)
    path = tmp_path / "b"
    back_up(one, path)
    restore(other, path)
    sha256 = hashlib.sha256(b"".join(path.read_bytes().splitlines(True)[:-1]))
    (event,) = actions_of(other, "audit.restored")
    assert event.principal == "operator"
    assert event.subject == f"backups/{sha256.hexdigest()}"
    assert event.detail == {
        "format": 2,
        "users_added": 3,
        "revoked_tokens_added": 3,
        "events_added": EVENTS,
        "events_differing": 0,
        "heads": [str(head_of(one))],
    }
    users = {each.subject for each in actions_of(other, "user.restored")}
    assert users == {"users/ann", "users/bob", "users/Zoë"}
    assert len(actions_of(other, "tokens.restored")) == 1


def test_what_is_cut_off_a_restored_chain_shows(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    one, other = pair
    add_events(one, "a", "b", "c")
    back_up(one, tmp_path / "b")
    restore(other, tmp_path / "b")
    assert verify_trail(other).whole
    with tampering(other) as session:
        session.execute(text("DELETE FROM audit_events WHERE seq = 3"))
    (chain,) = (each for each in verify_trail(other).chains if not each.own)
    assert chain.first_fault
    assert "events 3 to 3, its last ones, are missing" in chain.first_fault.reason
    with tampering(other) as session:
        session.execute(
            text("DELETE FROM audit_events WHERE chain = :chain"),
            {"chain": chain_of(one)},
        )
    assert not verify_trail(other).whole
    # Restoring brings them back.
    assert restore(other, tmp_path / "b").events_added == 3
    assert verify_trail(other).whole


def test_a_restoring_that_was_broken_off_shows_until_it_is_run_again(
    pair: tuple[Database, Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    fill(one)
    back_up(one, tmp_path / "b")
    with monkeypatch.context() as patched:
        patched.setattr(backups, "BATCH", 1000)
        added = 0
        add = audit.add_events

        def die(session: Any, events: Any) -> None:
            nonlocal added
            if len(events) > 1:
                added += 1
            if added == 2:
                raise KeyboardInterrupt
            add(session, events)

        patched.setattr(audit, "add_events", die)
        with pytest.raises(KeyboardInterrupt):
            restore(other, tmp_path / "b")
    assert len(events_of(other, chain_of(one))) == 1000
    assert len(actions_of(other, "user.restored")) == 3
    assert not verify_trail(other).whole
    done = restore(other, tmp_path / "b")
    assert (done.users_present, done.events_present) == (3, 1000)
    assert done.events_added == EVENTS - 1000
    assert verify_trail(other, [head_of(one)]).whole


def test_an_empty_database_has_a_backup(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    assert back_up(pair[0], tmp_path / "b") == BackedUp(0, 0, 0, 0)
    assert restore(pair[1], tmp_path / "b") == NOTHING
    assert verify_trail(pair[1]).whole


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
    assert lines[0]["backup"]["format"] == 2
    assert lines[1]["user"]["secrets"][0]["secret_hash"] == "$argon2id$hash"


# ---------------------------------------------------------------- what is there stays


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


@pytest.mark.parametrize(
    "values",
    [
        {"disabled_at": AT},
        {"permissions": []},
        {"roles": ["reader"]},
        {"token_generation": 1},
        {"max_versions": 1},
        {"max_bytes": 0},
    ],
    ids=str,
)
def test_nothing_of_a_user_who_is_there_is_given_back(
    pair: tuple[Database, Database], tmp_path: Path, values: dict[str, Any]
) -> None:
    one, _ = pair
    add_user(one, "ann")
    back_up(one, tmp_path / "b")
    change_user(one, "ann", **values)
    before = users_of(one)
    assert restore(one, tmp_path / "b").users_differing == ("ann",)
    assert users_of(one) == before


def test_a_secret_that_was_removed_stays_removed(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    one, _ = pair
    fill(one)
    back_up(one, tmp_path / "b")
    with one.write() as session:
        assert accounts.delete_secret(session, "ann", f"{1:016x}")
    before = users_of(one)
    assert restore(one, tmp_path / "b").users_differing == ("ann",)
    assert users_of(one) == before


def test_a_user_who_has_signed_in_since_is_the_same(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    one, _ = pair
    fill(one)
    back_up(one, tmp_path / "b")
    with one.write() as session:
        accounts.note_use(session, f"{1:016x}", at=FAR, address="192.0.2.0/24")
    before = users_of(one)
    done = restore(one, tmp_path / "b")
    assert (done.users_present, done.users_differing) == (3, ())
    assert users_of(one) == before


def test_users_whose_secrets_have_no_ids_of_their_own_do_not_collide(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    """Secrets of before are numbered, alike in all databases."""
    one, other = pair
    add_user(one, "ann", "$argon2id$ann")
    add_user(other, "bob", "$argon2id$bob")
    back_up(one, tmp_path / "b")
    assert restore(other, tmp_path / "b") == replace(NOTHING, users_added=1)
    assert restore(other, tmp_path / "b") == replace(NOTHING, users_present=1)
    with other.read() as session:
        for name in ("ann", "bob"):
            found = accounts.find_secret(session, name, None)
            assert found
            assert found[1].secret_hash == f"$argon2id${name}"


def test_a_secret_whose_id_another_user_has_is_told(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    one, other = pair
    for database, name in ((one, "ann"), (other, "bob")):
        with database.write() as session:
            accounts.insert_user(session, name, roles=[], permissions=[], created_at=AT)
            accounts.insert_secret(
                session,
                id="0" * 16,
                user_id=name,
                label="x",
                secret_hash=f"$argon2id${name}",
                created_at=AT,
            )
    back_up(one, tmp_path / "b")
    assert restore(other, tmp_path / "b") == replace(
        NOTHING, users_added=1, users_differing=("ann",)
    )
    found = {user["id"]: user["secrets"] for user in users_of(other)}
    assert found["ann"] == []
    assert [each["secret_hash"] for each in found["bob"]] == ["$argon2id$bob"]


def test_events_of_a_gateway_at_work_stay_one_chain(
    pair: tuple[Database, Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    fill(one)
    back_up(one, tmp_path / "b")
    monkeypatch.setattr(backups, "BATCH", 100)
    ended = threading.Event()
    added: list[str] = []

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
    own = [e.subject for e in events_of(other, chain_of(other))]
    assert [subject for subject in own if subject[0] == "w"] == added
    assert events_of(other, chain_of(one)) == events_of(one)
    assert verify_trail(other, [head_of(one)]).whole


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
    assert sum(each.events_present for each in done) == 2 * EVENTS
    assert sum(each.users_added for each in done) == 3
    assert sum(each.revoked_tokens_added for each in done) == 3
    assert events_of(other, chain_of(one)) == events_of(one)
    assert len(actions_of(other, "user.restored")) == 3
    assert verify_trail(other).whole


# ------------------------------------------------------ a database that went back


def go_back(database: Database, seq: int) -> None:
    """As a database does that is restored to an earlier moment by its own means."""
    with tampering(database) as session:
        session.execute(text("DELETE FROM audit_events WHERE seq > :seq"), {"seq": seq})
        found = audit.hashes_between(session, audit.lock_head(session).chain, seq, seq)
        head = audit.lock_head(session)
        head.seq, head.hash = seq, found[seq]


def test_a_database_that_went_back_gets_the_rest_of_its_own_chain(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    one, _ = pair
    add_events(one, "a", "b", "c", "d")
    before = head_of(one)
    back_up(one, tmp_path / "b")
    go_back(one, 2)
    assert restore(one, tmp_path / "b") == replace(
        NOTHING, events_added=2, events_present=2
    )
    add_events(one, "e")
    assert [event.subject for event in events_of(one)[:4]] == ["a", "b", "c", "d"]
    assert verify_trail(one, [before]).whole


def test_a_chain_that_went_on_otherwise_is_left_and_told(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    one, other = pair
    added = add_events(one, "a", "b", "c", "d")
    back_up(one, tmp_path / "b")
    go_back(one, 2)
    add_events(one, "x")
    before = events_of(one)
    assert restore(one, tmp_path / "b") == replace(
        NOTHING,
        events_present=2,
        events_differing=2,
        first_differing=f"{added[0].chain}:3",
    )
    assert events_of(one)[:3] == before
    assert verify_trail(one).whole
    # Whoever has neither gets the one that comes first, and is told of the other.
    back_up(one, tmp_path / "x")
    assert restore(other, tmp_path / "b").events_added == 4
    done = restore(other, tmp_path / "x")
    assert (done.events_added, done.events_present, done.events_differing) == (0, 2, 2)
    assert verify_trail(other).whole


def test_events_that_differ_never_take_the_place_of_others(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    one, _ = pair
    added = add_events(one, "a", "b", "c")
    path = tmp_path / "b"
    back_up(one, path)
    lines = path.read_bytes().splitlines(keepends=True)[:-1]
    lines[2] = lines[2].replace(added[1].hash.encode(), b"0" * 64)
    path.write_bytes(signed(lines))
    done = restore(one, path)
    assert (done.events_present, done.events_differing) == (2, 1)
    assert done.first_differing == f"{added[0].chain}:2"
    assert events_of(one)[:3] == added


@pytest.mark.parametrize("at", [1, 2, 3])
def test_events_that_were_changed_are_left_out_and_a_good_copy_mends_it(
    pair: tuple[Database, Database],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    one, other = pair
    added = add_events(one, "a", "b", "c")
    good, path = tmp_path / "good", tmp_path / "changed"
    back_up(one, good)
    lines = good.read_bytes().splitlines(keepends=True)[:-1]
    lines[at] = lines[at].replace(b'"action":"', b'"action":"not.')
    path.write_bytes(signed(lines))
    monkeypatch.setattr(backups, "BATCH", 2)
    wrong = f"{added[0].chain}:{at}"
    done = restore(one, path)  # where the true one is
    assert (done.events_present, done.events_differing) == (2, 1)
    assert done.first_differing == wrong
    assert verify_trail(one).whole
    done = restore(other, path)  # where it is not
    assert (done.events_added, done.events_differing) == (2, 1)
    assert done.first_differing == wrong
    assert restore(other, good).events_added == 1
    assert verify_trail(other).whole
    assert events_of(other, added[0].chain) == added


def test_rows_that_are_no_events_are_left_out_and_told(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    one, other = pair
    add_events(one, "a", "b", "c")
    with tampering(one) as session:
        session.execute(text("UPDATE audit_events SET detail = 'null' WHERE seq = 2"))
    assert back_up(one, tmp_path / "b") == BackedUp(0, 0, 2, 1)
    assert restore(other, tmp_path / "b").events_added == 2
    assert not verify_trail(other).whole


# ------------------------------------------------------------------------- format 1


def of_format_1() -> bytes:
    """A backup as versions before the chain wrote it."""
    lines = [
        {"backup": {"format": 1, "made_at": AT, "vision_o3": "0.1"}},
        *(
            {
                "user": {
                    "id": name,
                    "permissions": ["model:read"],
                    "secret_hash": f"$argon2id${name}",
                    "created_at": AT,
                    "disabled_at": disabled_at,
                }
            }
            for name, disabled_at in (("ann", None), ("bob", AT))
        ),
        *(
            {
                "audit_event": {
                    "id": number,
                    "at": AT + timedelta(seconds=number),
                    "principal": "ann",
                    "action": "version.published",
                    "subject": f"models/m/v{number}",
                    "detail": {"size": number},
                }
            }
            for number in (1, 2, 5)
        ),
    ]
    head = [
        json.dumps(line, default=datetime.isoformat, separators=(",", ":")).encode()
        + b"\n"
        for line in lines
    ]
    return signed(head, revoked_tokens="none")


def test_backups_of_format_1_are_restored(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    _, other = pair
    path = tmp_path / "old"
    path.write_bytes(of_format_1())
    added = replace(NOTHING, users_added=2, events_added=3)
    assert restore(other, path) == added
    assert restore(other, path) == replace(NOTHING, users_present=2, events_present=3)
    ann, bob = users_of(other)
    assert (ann["disabled_at"], bob["disabled_at"]) == (None, AT)
    assert ann["permissions"] == ["model:read"]
    assert [(s["label"], s["secret_hash"]) for s in ann["secrets"]] == [
        ("first", "$argon2id$ann")
    ]
    with other.read() as session:
        found = accounts.find_secret(session, "bob", None)
    assert found
    assert found[1].secret_hash == "$argon2id$bob"
    chain = json.loads(path.read_bytes().splitlines()[-1])["end"]["sha256"]
    events = events_of(other, chain)
    assert [(event.seq, event.subject) for event in events] == [
        (1, "models/m/v1"),
        (2, "models/m/v2"),
        (3, "models/m/v5"),
    ]
    assert verify_trail(other).whole


def test_a_backup_of_format_1_gives_the_same_chain_everywhere(
    pair: tuple[Database, Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    path = tmp_path / "old"
    path.write_bytes(of_format_1())
    restore(one, path)
    monkeypatch.setattr(backups, "BATCH", 1)
    restore(other, path)
    (chain,) = {e.chain for e in events_of(one)} - {chain_of(one)}
    assert events_of(one, chain) == events_of(other, chain)
    back_up(one, tmp_path / "new")
    done = restore(other, tmp_path / "new")
    assert (done.events_differing, done.users_differing) == (0, ())


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
    with tampering(sqlite) as session:
        for table in ("user_secrets", "users", "audit_events", "audit_head"):
            session.execute(text(f"DELETE FROM {table}"))  # noqa: S608 - ours
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
    head = b"".join(lines)
    told = {
        "users": sum(line.startswith(b'{"user"') for line in lines),
        "revoked_tokens": sum(line.startswith(b'{"revoked') for line in lines),
        "audit_events": sum(line.startswith(b'{"audit') for line in lines),
        "sha256": hashlib.sha256(head).hexdigest(),
    }
    stated = {name: value for name, value in (told | end).items() if value != "none"}
    return head + json.dumps({"end": stated}).encode() + b"\n"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[1:], "does not begin"),
        (lambda _: [], "does not begin"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "out of order"),
        (lambda lines: [lines[0], *lines[3:], *lines[1:3]], "out of order"),
        (lambda lines: [*lines, lines[-1]], "out of order"),
        (lambda lines: [*lines[:2], *lines[1:]], "out of order"),
        (
            lambda lines: [*lines, b'{"secret": {}}\n'],
            "none of user, revoked_token, audit_event",
        ),
        (lambda lines: [*lines, b"\n"], "none of user, revoked_token, audit_event"),
        (lambda lines: [*lines, b'{"audit_event": 1}\n'], "not an object"),
        (lambda lines: [*lines, b'{"audit_event":{"chain":"z"}}\n'], "seq is not a"),
        (lambda lines: [*lines, b'{"user":' + b"[" * 100_000 + b"\n"], "too deeply"),
        (lambda lines: [*lines, b'{"user":' + bytes(9 << 20) + b"\n"], "too long"),
        (lambda lines: [b'{"backup":{"format":3}}\n', *lines[1:]], "format 3, and"),
        (lambda lines: [b'{"backup":{"format":0}}\n', *lines[1:]], "format 0, and"),
        (lambda lines: [b'{"backup":{"format":1}}\n', *lines[1:]], "of line 2"),
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

    def database_now(_: object) -> datetime:
        path.write_text("mine")
        return AT

    monkeypatch.setattr(queries, "database_now", database_now)
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
