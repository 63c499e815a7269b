"""Telling other gateways of changes, on a real server."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url
from structlog.testing import capture_logs

from vision_o3.db import queries
from vision_o3.db.audit import append_event
from vision_o3.db.changes import (
    APPLICATION_NAME,
    CHANNEL,
    ChangeListener,
    CommitCounter,
    notify_change,
)
from vision_o3.db.engine import Database
from vision_o3.db.migrate import migrate
from vision_o3.errors import ConfigurationError

WAIT_S = 60
"""How long a test waits for what must come."""


@dataclass
class Heard:
    """What a listener said, in order: a line that changed, or told or not."""

    queue: queue.Queue[tuple[str, str] | bool] = field(default_factory=queue.Queue)

    def change(self, collection: str, line: str) -> None:
        self.queue.put((collection, line))

    def reset(self, told: bool) -> None:
        self.queue.put(told)

    def next(self) -> tuple[str, str] | bool:
        return self.queue.get(timeout=WAIT_S)


def listen(url: str, heard: Heard) -> ChangeListener:
    return ChangeListener(url, on_change=heard.change, on_reset=heard.reset)


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    database = Database(postgres_url)
    yield database
    database.close()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def listener(postgres_url: str, heard: Heard) -> Iterator[ChangeListener]:
    listener = listen(postgres_url, heard)
    assert heard.next() is True
    yield listener
    listener.close()
    assert not listener.live


def end_listening_connections(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as admin:
        ended = admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = %s AND datname = current_database()",
            [APPLICATION_NAME],
        )
        return len(ended.fetchall())


@pytest.mark.integration
def test_a_change_is_told_when_it_is_committed(
    database: Database, listener: ChangeListener, heard: Heard
) -> None:
    assert listener.live
    with database.write() as session:
        notify_change(session, "models", "rolled-back")
        session.rollback()
    with database.write() as session:
        notify_change(session, "models", "m")
        notify_change(session, "datasets", "d")
        session.flush()
        with pytest.raises(queue.Empty):
            heard.queue.get(timeout=0.5)
    assert [heard.next(), heard.next()] == [("models", "m"), ("datasets", "d")]


@pytest.mark.integration
def test_many_changes_are_all_told(
    database: Database, listener: ChangeListener, heard: Heard
) -> None:
    names = [f"line-{number}" for number in range(500)]
    for name in names:
        with database.write() as session:
            notify_change(session, "models", name)
    assert [heard.next() for _ in names] == [("models", name) for name in names]
    assert listener.live


@pytest.mark.integration
def test_a_lost_connection_is_said_and_replaced(
    postgres_url: str, database: Database, listener: ChangeListener, heard: Heard
) -> None:
    with capture_logs() as logs:
        for _ in range(3):
            assert end_listening_connections(postgres_url) == 1
            assert [heard.next(), heard.next()] == [False, True]
            with database.write() as session:
                notify_change(session, "models", "m")
            assert heard.next() == ("models", "m")
    lost = [entry for entry in logs if entry["event"] == "changes.lost"]
    assert len(lost) == 3
    assert listener.live


@pytest.mark.integration
def test_an_idle_connection_is_probed_and_goes_on(
    database: Database,
    heard: Heard,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vision_o3.db.changes._IDLE_S", 0.0)
    listener = listen(postgres_url, heard)
    assert heard.next() is True
    try:
        probes: set[object] = set()
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            while len(probes) < 3:
                found = admin.execute(
                    "SELECT query, query_start FROM pg_stat_activity"
                    " WHERE application_name = %s",
                    [APPLICATION_NAME],
                ).fetchone()
                if found is not None and found[0].startswith("SELECT pg_notify"):
                    probes.add(found[1])
        with database.write() as session:
            notify_change(session, "models", "m")
        assert heard.next() == ("models", "m")
    finally:
        listener.close()


@pytest.mark.integration
def test_listener_that_hears_nothing_does_not_count_as_one(
    database: Database,
    heard: Heard,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As behind a pooler in transaction mode, which swallows all messages."""
    del database
    deaf = threading.Event()
    real = psycopg.Connection.notifies

    def notifies(connection: Any, **options: Any) -> Iterator[psycopg.Notify]:
        for message in real(connection, **options):
            if not deaf.is_set():
                yield message

    monkeypatch.setattr(psycopg.Connection, "notifies", notifies)
    monkeypatch.setattr("vision_o3.db.changes._ECHO_S", 0.3)
    listener = listen(postgres_url, heard)
    try:
        assert heard.next() is True
        deaf.set()
        assert heard.next() is False
        assert not listener.live
        with pytest.raises(queue.Empty):
            heard.queue.get(timeout=1)
        deaf.clear()
        assert heard.next() is True
    finally:
        listener.close()


@pytest.mark.integration
def test_a_message_that_nobody_understands_resets(
    postgres_url: str, listener: ChangeListener, heard: Heard
) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as other:
        for payload in ("", "models", ":m", "models:"):
            other.execute("SELECT pg_notify(%s, %s)", [CHANNEL, payload])
            assert heard.next() is True
    assert listener.live


@pytest.mark.integration
def test_nothing_is_heard_after_closing(
    postgres_url: str, database: Database, heard: Heard
) -> None:
    listener = listen(postgres_url, heard)
    assert heard.next() is True
    listener.close()
    assert heard.next() is False
    with database.write() as session:
        notify_change(session, "models", "m")
    assert heard.queue.empty()
    assert end_listening_connections(postgres_url) == 0
    listener.close()


@pytest.mark.integration
def test_the_url_is_understood_as_by_the_database(
    postgres_url: str, heard: Heard
) -> None:
    url = make_url(postgres_url).set(drivername="postgres")
    url = url.update_query_dict(
        {"application_name": "mine", "options": "-c timezone=Asia/Tokyo"}
    )
    listener = listen(url.render_as_string(hide_password=False), heard)
    try:
        assert heard.next() is True
        with psycopg.connect(postgres_url) as admin:
            found = admin.execute(
                "SELECT 1 FROM pg_stat_activity WHERE application_name = 'mine'"
            )
            assert found.fetchone() is not None
    finally:
        listener.close()


@pytest.mark.integration
def test_a_callback_that_fails_does_not_end_the_thread(
    postgres_url: str, database: Database, heard: Heard
) -> None:
    def fail(_: str, line: str) -> None:
        if line == "bad":
            raise ValueError("a mistake of ours")
        heard.change(_, line)

    with capture_logs() as logs:
        listener = ChangeListener(postgres_url, on_change=fail, on_reset=heard.reset)
        assert heard.next() is True
        with database.write() as session:
            notify_change(session, "models", "bad")
        assert [heard.next(), heard.next()] == [False, True]
        with database.write() as session:
            notify_change(session, "models", "good")
        assert heard.next() == ("models", "good")
        listener.close()
    assert "changes.failed" in {entry["event"] for entry in logs}


def test_an_unreachable_server_is_tried_again_without_the_password(
    heard: Heard,
) -> None:
    with capture_logs() as logs:
        listener = listen("postgresql://ann:hunter2@127.0.0.1:1/registry", heard)
        while len(logs) < 2:
            assert not listener.live
        listener.close()
    assert {entry["event"] for entry in logs} == {"changes.lost"}
    assert "hunter2" not in str(logs)
    assert heard.queue.empty()


def test_only_postgresql_tells(heard: Heard) -> None:
    with pytest.raises(ConfigurationError, match="PostgreSQL"):
        listen("sqlite:///registry.db", heard)
    with pytest.raises(ConfigurationError, match="not usable") as caught:
        listen("mysql://ann:hunter2@h/db", heard)
    assert "hunter2" not in str(caught.value)


def test_sqlite_tells_of_commits_by_any_connection(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    migrate(url)
    database = Database(url)
    counter = CommitCounter(url)
    try:
        first = counter()
        assert counter() == first
        with database.write() as session:
            append_event(
                session,
                at=datetime.now(UTC),
                principal="ann",
                action="a",
                subject="s",
                detail={},
            )
        second = counter()
        assert second != first
        with database.read() as session:
            queries.list_users(session)
        assert counter() == second
    finally:
        counter.close()
        database.close()


def test_database_that_cannot_be_asked_counts_as_changed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    migrate(url)
    counter = CommitCounter(url)
    counter.close()  # as any failure of SQLite's
    assert counter() != counter()
