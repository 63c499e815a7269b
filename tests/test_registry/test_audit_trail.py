from __future__ import annotations

import hashlib
import json
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import column, delete, table, text, update
from sqlalchemy.exc import IntegrityError
from structlog.testing import capture_logs

from tests.test_registry.databases import empty_database, shared_postgres
from tests.test_registry.trails import AT, add_events, empty, tampering
from vision_o3.db import audit
from vision_o3.db.audit import FIRST, Event, Filters
from vision_o3.db.engine import Database
from vision_o3.db.migrate import downgrade, migrate
from vision_o3.db.models import AuditEventRow
from vision_o3.errors import InputError
from vision_o3.registry import audit_trail
from vision_o3.registry.audit import Actor, record_event
from vision_o3.registry.audit_trail import (
    Head,
    Verified,
    VerifiedChain,
    export_trail,
    head_of,
    list_trail,
    verify_trail,
)

__all__ = ["empty_database", "shared_postgres"]

ANY = Filters()


@pytest.fixture
def database(empty_database: Database) -> Database:
    return empty_database


@pytest.fixture
def postgres_database_alone(shared_postgres: Database) -> Database:
    """An empty PostgreSQL database."""
    empty(shared_postgres)
    return shared_postgres


@pytest.fixture
def sqlite_alone(tmp_path: Path) -> Iterator[Database]:
    """An empty SQLite database."""
    url = f"sqlite:///{tmp_path}/registry.db"
    migrate(url)
    database = Database(url)
    yield database
    database.close()


def url_of(database: Database) -> str:
    return database._engine.url.render_as_string(hide_password=False)


def events_of(database: Database) -> list[Event]:
    with database.read() as session:
        found = list(audit.all_events(session))
    events = [each for each in found if isinstance(each, Event)]
    assert len(events) == len(found)
    return events


def own(verified: Verified) -> VerifiedChain:
    (found,) = (chain for chain in verified.chains if chain.own)
    return found


def assert_whole(database: Database, count: int) -> None:
    verified = verify_trail(database)
    assert verified.whole, verified
    assert verified.events == count
    assert sum(chain.verified for chain in verified.chains) == count


# ---------------------------------------------------------------------------- writing


def test_each_event_is_chained_to_the_one_before(database: Database) -> None:
    added = add_events(database, "a", "b", "c")
    assert events_of(database) == added
    assert [event.seq for event in added] == [1, 2, 3]
    before = FIRST
    for event in added:
        assert event.hash == event.hash_after(before)
        before = event.hash
    assert head_of(database) == Head(added[0].chain, 3, before)
    assert_whole(database, 3)


TEXT = st.text(st.characters(), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
    ),
    max_leaves=6,
).filter(lambda value: "inf" not in repr(value).casefold())


@settings(
    max_examples=30,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
        HealthCheck.too_slow,
    ],
)
@given(
    at=st.datetimes(timezones=st.just(UTC)),
    principal=TEXT,
    subject=TEXT,
    detail=st.dictionaries(TEXT, JSON, max_size=3),
    address=st.none() | TEXT,
)
def test_whatever_an_event_says_it_is_kept_and_verifies(
    database: Database, at: datetime, detail: dict[str, Any], **texts: Any
) -> None:
    with database.write() as session:
        added = audit.append_event(session, at=at, action="a.b", detail=detail, **texts)
    assert events_of(database)[-1] == added
    assert head_of(database).hash == added.hash
    assert verify_trail(database).whole
    for name, value in texts.items():
        if value is not None and value.isprintable():
            assert getattr(added, name) == value


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (2**80, 2**80),
        (-(2**63), -(2**63)),
        (1e300, 1e300),
        (5e-324, 5e-324),
        (-0.0, -0.0),
        (0.1 + 0.2, 0.1 + 0.2),
        ("𝄞 ü \u2028", "𝄞 ü \u2028"),
        ("\0\ud800", "\\x00\\ud800"),
        ((1, 2), [1, 2]),
        ({1: "a", 10: "b", 9: "c"}, {"1": "a", "10": "b", "9": "c"}),
        ({None: 1, True: 2}, {"null": 1, "true": 2}),
    ],
    ids=repr,
)
def test_details_come_back_as_they_were_hashed(
    database: Database, value: object, kept: object
) -> None:
    (added,) = add_events(database, "s", detail={"value": value})
    assert repr(added.detail) == repr({"value": kept})
    assert repr(events_of(database)[0].detail) == repr({"value": kept})
    assert repr(list_trail(database, ANY, page=1, page_size=1).items[0]) == repr(added)
    assert_whole(database, 1)


def test_texts_that_are_too_long_are_cut_and_the_change_is_made(
    database: Database,
) -> None:
    (added,) = add_events(
        database, "s" * 9999, principal="𝄞" * 999, request_id="r" * 99, address="a" * 99
    )
    lengths = [
        len(each or "")
        for each in (added.subject, added.principal, added.request_id, added.address)
    ]
    assert lengths == [512, 255, 64, 64]
    assert_whole(database, 1)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), {1, 2}, b"x"], ids=repr)
def test_what_is_no_json_is_refused_and_leaves_no_hole(
    database: Database, wrong: object
) -> None:
    with pytest.raises((TypeError, ValueError)):
        add_events(database, "s", detail={"value": wrong})
    add_events(database, "s")
    assert_whole(database, 1)


def test_an_event_that_is_rolled_back_leaves_no_hole(database: Database) -> None:
    add_events(database, "a")
    with pytest.raises(KeyError), database.write() as session:  # noqa: PT012 - a whole transaction
        audit.append_event(
            session, at=AT, principal="p", action="a", subject="s", detail={}
        )
        raise KeyError
    add_events(database, "b")
    assert [event.subject for event in events_of(database)] == ["a", "b"]
    assert_whole(database, 2)


def test_heads_are_logged_once_they_are_committed(database: Database) -> None:
    actor = Actor("ann", "192.0.2.7", "r1")
    with capture_logs() as lines:
        with database.write() as session:
            record_event(session, actor, "a.b", "s/1", {}, now=AT)
            session.rollback()
            record_event(session, actor, "a.b", "s/2", {}, now=AT)
            assert not lines
        with pytest.raises(KeyError), database.write() as session:  # noqa: PT012 - a whole transaction
            record_event(session, actor, "a.b", "s/3", {}, now=AT)
            raise KeyError
    assert [(line["event"], line["subject"]) for line in lines] == [
        ("audit.recorded", "s/2")
    ]
    (event,) = events_of(database)
    assert (event.address, event.request_id) == ("192.0.2.7", "r1")
    assert lines[0]["head"] == str(head_of(database))
    assert verify_trail(database, [Head.parse(lines[0]["head"])]).whole


def test_gateways_that_write_at_once_keep_one_unbroken_chain(
    database: Database,
) -> None:
    other = Database(url_of(database))
    begin = threading.Barrier(6)
    failed: list[BaseException] = []

    def write(number: int) -> None:
        begin.wait()
        try:
            for at in range(15):
                add_events((database, other)[number % 2], f"s/{number}/{at}")
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert not failed
    events = events_of(database)
    assert [event.seq for event in events] == list(range(1, 91))
    for number in range(6):  # each writer's own events are in its order
        own_ones = [e.subject for e in events if e.subject.startswith(f"s/{number}/")]
        assert own_ones == [f"s/{number}/{at}" for at in range(15)]
    assert_whole(database, 90)


def test_a_lost_head_begins_one_chain_and_is_told(database: Database) -> None:
    add_events(database, "a", "b")
    with tampering(database) as session:
        session.execute(text("DELETE FROM audit_head"))
    verified = verify_trail(database)
    assert verified.head_lost
    assert not verified.whole
    other = Database(url_of(database))
    threads = [
        threading.Thread(target=add_events, args=(each, "c"))
        for each in (database, other) * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    verified = verify_trail(database)
    assert not verified.head_lost
    assert not verified.whole
    assert (own(verified).events, own(verified).faults) == (4, 0)
    (left,) = (chain for chain in verified.chains if not chain.own)
    assert (left.events, left.verified, left.faults) == (2, 2, 1)
    assert left.first_fault
    assert "no event of a restoring" in left.first_fault.reason


def test_the_database_itself_refuses_changes(database: Database) -> None:
    add_events(database, "a")
    for statement in (
        "UPDATE audit_events SET hash = hash",
        "DELETE FROM audit_events",
    ):
        with (
            pytest.raises(IntegrityError, match="never changed or removed"),
            database.write() as session,
        ):
            session.execute(text(statement))
    assert_whole(database, 1)


def test_events_of_before_are_chained_when_the_database_is_migrated(
    database: Database,
) -> None:
    url = url_of(database)
    downgrade(url, "0004")
    at = "2026-11-24 14:00:00.000007"
    with database.write() as session:
        for number in range(1003):  # more than are chained at a time
            session.execute(
                text(
                    "INSERT INTO audit_events (at, principal, action, subject, detail)"
                    " VALUES (:at, 'ann', 'user.added', :subject, :detail)"
                ),
                {
                    "at": at if database.dialect == "sqlite" else f"{at}+00:00",
                    "subject": f"s/{number}",
                    "detail": json.dumps({"n": number, "𝄞": 1e300}),
                },
            )
    migrate(url)
    assert_whole(database, 1004)
    events = events_of(database)
    assert [each.subject for each in events[:-1]] == [f"s/{n}" for n in range(1003)]
    assert events[-1].action == "database.migrated"
    assert events[-1].detail["before"] == "0004"
    assert events[0].detail == {"n": 0, "𝄞": 1e300}
    migrate(url)
    add_events(database, "later")
    assert_whole(database, 1005)
    with pytest.raises(IntegrityError), database.write() as session:
        session.execute(text("DELETE FROM audit_events"))
    downgrade(url, "0004")
    with database.write() as session:  # as before: nothing refuses
        session.execute(text("DELETE FROM audit_events"))
    migrate(url)


# ------------------------------------------------------------------------------ hashes


def typed(value: object) -> object:
    """A value that equals another only if JSON has both alike."""
    if isinstance(value, dict):
        return "object", sorted((name, typed(each)) for name, each in value.items())
    if isinstance(value, list):
        return "list", [typed(each) for each in value]
    return type(value).__name__, repr(value)


def words(value: Event) -> list[object]:
    return [typed(getattr(value, name)) for name in Event.__slots__ if name != "hash"]


WORD = st.sampled_from(["", "a", "b", '"', ",", '","', "\\", "null", "1", "[]", "ü"])
EVENTS = st.builds(
    Event,
    chain=WORD,
    seq=st.integers(1, 3),
    hash=st.just(""),
    at=st.sampled_from([AT, AT + timedelta(microseconds=1)]),
    principal=WORD,
    action=WORD,
    subject=WORD,
    detail=st.dictionaries(
        WORD,
        st.recursive(
            st.none() | st.booleans() | st.sampled_from([0, 1, 0.0, 1.0, -0.0]) | WORD,
            lambda inner: (
                st.lists(inner, max_size=2) | st.dictionaries(WORD, inner, max_size=2)
            ),
            max_leaves=3,
        ),
        max_size=2,
    ),
    address=st.none() | WORD,
    request_id=st.none() | WORD,
)
HASHES = st.sampled_from([FIRST, "1" * 64, ""])


@settings(max_examples=500)
@given(one=EVENTS, other=EVENTS, before=HASHES, before_other=HASHES)
def test_hashes_are_equal_only_of_equal_events(
    one: Event, other: Event, before: str, before_other: str
) -> None:
    same = [before, words(one)] == [before_other, words(other)]
    assert (one.hash_after(before) == other.hash_after(before_other)) is same


@given(event=EVENTS, swapped=st.permutations(["principal", "action", "subject"]))
def test_what_is_in_another_field_is_another_event(
    event: Event, swapped: list[str]
) -> None:
    names = ["principal", "action", "subject"]
    values = {
        name: getattr(event, other) for name, other in zip(names, swapped, strict=True)
    }
    other = replace(event, **values)
    same = words(event) == words(other)
    assert (event.hash_after(FIRST) == other.hash_after(FIRST)) is same


def test_hashes_are_those_of_all_times() -> None:
    event = Event(
        chain="c",
        seq=2,
        hash="",
        at=AT,
        principal="ann",
        action="a.b",
        subject="ü/𝄞",
        detail={"b": [1, 1.5, None], "a": "x"},
        address=None,
        request_id="r",
    )
    told = (
        f'[1,"c",2,"{FIRST}","2026-11-24T14:00:00.000007+00:00","ann","a.b",'
        r'"\u00fc/\ud834\udd1e",{"a":"x","b":[1,1.5,null]},null,"r"]'
    )
    assert event.hash_after(FIRST) == hashlib.sha256(told.encode()).hexdigest()
    assert event.hash_after(FIRST) == (
        "7641f7af3c475175b151616bd77aa001117cfe602b0113ce44de6e15041de67d"
    )


# --------------------------------------------------------------------------- tampering

OTHER: dict[str, Any] = {
    "chain": "other",
    "seq": 99,
    "hash": "0" * 64,
    "at": AT + timedelta(days=1),
    "principal": "eve",
    "action": "user.added",
    "subject": "s",
    "detail": {"cid": "ü", "size": 1.5, "n": True},
    "address": "192.0.2.9",
    "request_id": "r",
}


def change(database: Database, seq: int, /, **values: object) -> None:
    """Write something into columns, whatever it is."""
    events = table("audit_events", *map(column, {*values, "seq"}))
    with tampering(database) as session:
        session.execute(update(events).where(events.c.seq == seq).values(values))


def set_head(database: Database, **values: object) -> None:
    with tampering(database) as session:
        session.execute(
            update(table("audit_head", *map(column, values))).values(values)
        )


def remove(database: Database, seq: int) -> None:
    with tampering(database) as session:
        session.execute(delete(AuditEventRow).where(AuditEventRow.seq == seq))


def as_stored(database: Database, value: object) -> object:
    """A value as a driver takes it for its column."""
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, datetime) and database.dialect == "sqlite":
        return value.replace(tzinfo=None).isoformat(" ", "microseconds")
    return value


@pytest.mark.parametrize("seq", [1, 2, 3])
@pytest.mark.parametrize("name", OTHER)
def test_any_changed_value_of_any_event_shows(
    database: Database, seq: int, name: str
) -> None:
    add_events(database, "a", "b", "c")
    change(database, seq, **{name: as_stored(database, OTHER[name])})
    verified = verify_trail(database)
    assert not verified.whole
    chain = own(verified)
    assert chain.faults
    assert chain.first_fault
    assert chain.verified == seq - 1
    at = {"seq": (seq + 1 if seq < 3 else 99), "chain": seq + 1}.get(name, seq)
    assert chain.first_fault.seq == (3 if name == "chain" and seq == 3 else at)


@pytest.mark.parametrize(
    "garbage",
    [
        "null",
        "[]",
        '{"n": 1, "n": 0}',
        '{"n": "\\u0000"}',
        '{"n": "\\ud800"}',
        '{"n": ' + "9" * 9999 + "}",
    ],
    ids=lambda value: value[:16],
)
def test_details_that_are_none_show(database: Database, garbage: str) -> None:
    add_events(database, "a", "b", "c")
    change(database, 2, detail=garbage)
    fault = own(verify_trail(database)).first_fault
    assert fault
    assert (fault.seq, fault.reason) == (2, "its detail cannot be read")


@pytest.mark.parametrize("at", ["infinity", "-infinity", "294276-01-01"])
def test_times_that_python_does_not_have_show(
    postgres_database_alone: Database, at: str
) -> None:
    database = postgres_database_alone
    add_events(database, "a", "b")
    change(database, 2, at=at)
    fault = own(verify_trail(database)).first_fault
    assert fault
    assert (fault.seq, fault.reason) == (2, "its at cannot be read")


@pytest.mark.parametrize(
    ("name", "garbage"),
    [
        ("principal", b"\xff"),
        ("principal", "a\0b"),
        ("subject", b"\xc3"),
        ("detail", b"\xff{}"),
        ("detail", '{"n": NaN}'),
        ("detail", '{"n": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        ("detail", "x" * (2 << 20)),
        ("principal", "x" * 256),
        ("at", "yesterday"),
        ("at", "2026-11-24T14:00:00.000007"),
        ("at", 7),
        ("seq", "two"),
        ("seq", -5),
        ("hash", b"\xff" * 32),
        ("chain", b"\xff"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_sqlite_holds_though_it_is_nothing_of_the_kind_shows(
    sqlite_alone: Database, name: str, garbage: object
) -> None:
    database = sqlite_alone
    add_events(database, "a", "b", "c")
    change(database, 2, **{name: garbage})
    verified = verify_trail(database)
    assert not verified.whole
    assert own(verified).faults
    set_head(database, seq=garbage)
    assert not verify_trail(database).whole


@pytest.mark.parametrize(
    ("seqs", "verified", "at", "said"),
    [
        ([1], 0, 2, "1 is missing"),
        ([2], 1, 3, "2 is missing"),
        ([2, 3], 1, 4, "2 to 3 is missing"),
        ([4], 3, 4, "events 4 to 4, its last ones, are missing"),
        ([1, 2, 3, 4], 0, 1, "events 1 to 4, its last ones, are missing"),
    ],
)
def test_removed_events_show(
    database: Database, seqs: list[int], verified: int, at: int, said: str
) -> None:
    add_events(database, "a", "b", "c", "d")
    for seq in seqs:
        remove(database, seq)
    chain = own(verify_trail(database))
    assert chain.first_fault
    assert (chain.verified, chain.first_fault.seq) == (verified, at)
    assert said in chain.first_fault.reason


def test_removed_events_that_were_closed_up_show(database: Database) -> None:
    add_events(database, "a", "b", "c", "d")
    remove(database, 2)
    for seq in (3, 4):
        change(database, seq, seq=seq - 1)
    set_head(database, seq=3)
    chain = own(verify_trail(database))
    assert chain.first_fault
    assert (chain.events, chain.verified, chain.first_fault.seq) == (3, 1, 2)


def test_inserted_events_show(database: Database) -> None:
    added = add_events(database, "a", "b")
    forged = replace(added[-1], seq=3, subject="forged")
    forged = replace(forged, hash=forged.hash_after(added[-1].hash))
    with database.write() as session:
        audit.add_events(session, [forged])
    chain = own(verify_trail(database))
    assert chain.first_fault
    assert chain.first_fault.seq == 3
    assert "before this" in chain.first_fault.reason


def test_made_up_chains_show(database: Database) -> None:
    added = add_events(database, "a")
    forged = replace(added[0], chain="forged")
    forged = replace(forged, hash=forged.hash_after(FIRST))
    with database.write() as session:
        audit.add_events(session, [forged])
    verified = verify_trail(database)
    assert not verified.whole
    assert own(verified).faults == 0
    assert [chain.faults for chain in verified.chains if not chain.own] == [1]


def test_more_chains_than_can_be_cost_no_memory_and_show(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_trail, "MOST_CHAINS", 5)
    added = add_events(database, "z")
    forged = [replace(added[0], chain=f"0forged{number}") for number in range(9)]
    with database.write() as session:
        audit.add_events(session, forged)
    verified = verify_trail(database)
    assert not verified.whole
    assert (len(verified.chains), verified.chains_left_out) == (5, 5)
    assert (own(verified).events, own(verified).faults) == (1, 0)


def test_an_event_that_is_there_twice_shows(
    postgres_database_alone: Database,
) -> None:
    database = postgres_database_alone
    added = add_events(database, "a", "b")
    with tampering(database) as session:
        session.execute(
            text("ALTER TABLE audit_events DROP CONSTRAINT uq_audit_events_chain_seq")
        )
        audit.add_events(session, [added[0]])
    chain = own(verify_trail(database))
    with tampering(database) as session:
        session.execute(text("TRUNCATE audit_events"))
        session.execute(
            text(
                "ALTER TABLE audit_events ADD CONSTRAINT uq_audit_events_chain_seq "
                "UNIQUE (chain, seq)"
            )
        )
    assert chain.first_fault
    assert (chain.first_fault.seq, chain.verified) == (1, 1)
    assert "taken" in chain.first_fault.reason


@pytest.mark.parametrize("names", [("seq",), ("subject", "detail", "at")])
def test_swapped_events_show(database: Database, names: tuple[str, ...]) -> None:
    added = add_events(database, "a", "b", "c", "d")
    values = {name: [getattr(added[at], name) for at in (1, 2)] for name in names}
    if names == ("seq",):
        change(database, 2, seq=9)
        change(database, 3, seq=2)
        change(database, 9, seq=3)
    else:
        for seq, at in ((2, 1), (3, 0)):
            others = {name: as_stored(database, values[name][at]) for name in names}
            change(database, seq, **others)
    chain = own(verify_trail(database))
    assert chain.first_fault
    assert (chain.verified, chain.first_fault.seq) == (1, 2)


def test_a_truncation_with_its_head_shows_by_a_head_noted_before(
    database: Database,
) -> None:
    added = add_events(database, "a", "b", "c")
    noted = head_of(database)
    remove(database, 3)
    set_head(database, seq=2, hash=added[1].hash)
    assert verify_trail(database).whole
    assert verify_trail(database, [noted]).missing_heads == (str(noted),)
    add_events(database, "d")
    earlier = Head(noted.chain, 2, added[1].hash)
    verified = verify_trail(database, [earlier, noted])
    assert not verified.whole
    assert verified.missing_heads == (str(noted),)


def test_a_tail_that_was_computed_anew_shows_by_a_head_noted_before(
    database: Database,
) -> None:
    added = add_events(database, "a", "b", "c")
    noted = head_of(database)
    before = added[0].hash
    for event in added[1:]:
        forged = replace(event, principal="eve")
        forged = replace(forged, hash=forged.hash_after(before))
        before = forged.hash
        change(database, forged.seq, principal="eve", hash=forged.hash)
    set_head(database, hash=before)
    assert verify_trail(database).whole
    first = Head(noted.chain, 1, added[0].hash)
    assert verify_trail(database, [noted, first]).missing_heads == (str(noted),)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"seq": 1}, "before this"),
        ({"seq": 9}, "are missing"),
        ({"hash": "1" * 64}, "is not the one"),
        ({"chain": "other"}, ""),
    ],
    ids=str,
)
def test_a_changed_head_shows(
    database: Database, values: dict[str, Any], said: str
) -> None:
    add_events(database, "a", "b")
    set_head(database, **values)
    verified = verify_trail(database)
    assert not verified.whole
    fault = own(verified).first_fault
    assert fault
    assert said in fault.reason


def test_heads_of_before_and_of_now_are_found(database: Database) -> None:
    heads = [head_of(database)] if database.dialect == "sqlite" else []
    for subject in "abc":
        add_events(database, subject)
        heads.append(head_of(database))
    assert verify_trail(database, heads).whole
    wrong = [replace(heads[-1], hash="1" * 64), Head("other", 1, "1" * 64)]
    wrong += [replace(heads[-1], seq=4), Head("other", 0, FIRST)]
    found = verify_trail(database, wrong)
    assert found.missing_heads == tuple(map(str, wrong))
    assert not found.whole


@pytest.mark.parametrize(
    "wrong",
    ["", "c", "c:1", "c:x:" + FIRST, "c:01:" + FIRST, "c:1:ff", f"c:1:{FIRST}\n", "ü"],
)
def test_what_is_no_head_is_told(wrong: str) -> None:
    with pytest.raises(InputError, match="CHAIN:SEQ:HASH"):
        Head.parse(wrong)


def test_heads_are_written_as_they_are_read() -> None:
    head = Head("c-1_X", 12, "ab" * 32)
    assert Head.parse(str(head)) == head


def test_verifying_takes_memory_for_few_events_at_a_time(
    sqlite_alone: Database,
) -> None:
    database = sqlite_alone
    chain = head_of(database).chain
    before, events = FIRST, []
    for seq in range(1, 8001):
        event = Event(
            chain=chain,
            seq=seq,
            hash="",
            at=AT,
            principal="ann",
            action="a.b",
            subject="s",
            detail={"x": "x" * 2000},
            address=None,
            request_id=None,
        )
        event = replace(event, hash=event.hash_after(before))
        before = event.hash
        events.append(event)
    with database.write() as session:
        head = audit.lock_head(session)
        audit.add_events(session, events)
        head.seq, head.hash = 8000, before
    del events
    verify_trail(database)
    tracemalloc.start()
    try:
        assert verify_trail(database).whole
        pieces = sum(len(batch) for batch in export_trail(database, ANY))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert pieces == 8000
    assert peak < 8 << 20  # all of them are 16 MB of text alone


# ----------------------------------------------------------------------------- listing


def fill(database: Database) -> None:
    for number, (principal, action, subject) in enumerate(
        [
            ("ann", "version.published", "models/m/v1"),
            ("bob", "version.published", "models/m/v2"),
            ("ann", "version.blocked", "models/m/v1"),
            ("operator", "user.added", "users/ann"),
            ("operator", "user.disabled", "users/ann"),
            ("ann", "versions", "models/m%/v1"),
        ]
    ):
        add_events(
            database,
            subject,
            principal=principal,
            action=action,
            at=AT + timedelta(minutes=number),
        )


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (ANY, [1, 2, 3, 4, 5, 6]),
        (Filters(principal="ann"), [1, 3, 6]),
        (Filters(principal="an"), []),
        (Filters(action="version"), [1, 2, 3]),
        (Filters(action="version.published"), [1, 2]),
        (Filters(action="version.pub"), []),
        (Filters(subject="models/m"), [1, 2, 3]),
        (Filters(subject="models"), [1, 2, 3, 6]),
        (Filters(subject="models/m%"), [6]),
        (Filters(subject="models/m/v1"), [1, 3]),
        (Filters(subject="model_"), []),
        (Filters(since=AT + timedelta(minutes=4)), [5, 6]),
        (Filters(until=AT + timedelta(minutes=1)), [1]),
        (
            Filters(since=AT + timedelta(minutes=1), until=AT + timedelta(minutes=3)),
            [2, 3],
        ),
        (Filters(principal="ann", action="version", subject="models/m"), [1, 3]),
        (Filters(principal="\0"), []),
        (Filters(subject="\ud800"), []),
        (Filters(since=datetime.max.replace(tzinfo=UTC)), []),
    ],
    ids=str,
)
def test_events_are_filtered(
    database: Database, filters: Filters, found: list[int]
) -> None:
    fill(database)
    page = list_trail(database, filters, page=1, page_size=9)
    assert [event.seq for event in page.items] == found[::-1]
    assert page.total == len(found)
    exported = [event for batch in export_trail(database, filters) for event in batch]
    assert [event.seq for event in exported] == found


def test_events_are_listed_in_pages_newest_first(database: Database) -> None:
    fill(database)
    pages = [list_trail(database, ANY, page=page, page_size=4) for page in (1, 2, 3)]
    assert [[event.seq for event in page.items] for page in pages] == [
        [6, 5, 4, 3],
        [2, 1],
        [],
    ]
    assert {page.total for page in pages} == {6}


def test_events_of_one_moment_have_one_order(database: Database) -> None:
    for subject in "abcd":
        add_events(database, subject, at=AT)
    listed = [
        list_trail(database, ANY, page=page, page_size=1).items[0].subject
        for page in (1, 2, 3, 4)
    ]
    assert listed == ["d", "c", "b", "a"]


@pytest.mark.parametrize("batch", [1, 2, 4, 5, 100])
def test_an_export_has_all_events_in_their_order(
    database: Database, batch: int
) -> None:
    added = add_events(database, *"abcde")
    exported = list(export_trail(database, ANY, batch=batch))
    assert [event for events in exported for event in events] == added
    assert max(map(len, exported)) <= batch


def test_an_export_ends_though_events_are_added_meanwhile(database: Database) -> None:
    add_events(database, *"abc")
    found = []
    for events in export_trail(database, ANY, batch=1):
        found += events
        add_events(database, "later")
    assert [event.subject for event in found] == ["a", "b", "c"]


def test_an_export_holds_no_transaction_between_two_pieces(
    database: Database,
) -> None:
    add_events(database, *"abc")
    exporting = export_trail(database, ANY, batch=1)
    next(exporting)
    assert database._engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # of our pools


def test_documents_have_all_of_which_the_hash_is_made(database: Database) -> None:
    added = add_events(database, "a", "b", address="192.0.2.7")
    before = FIRST
    for event in added:
        document = json.loads(json.dumps(audit_trail.document_of(event)))
        again = Event(**{**document, "at": datetime.fromisoformat(document["at"])})
        assert again == event
        assert again.hash_after(before) == event.hash
        before = event.hash
