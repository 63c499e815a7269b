from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from tests.conformance.metadata_store import (
    NOW,
    MetadataStoreConformance,
    publish,
    user,
)
from vision_o3.db import queries
from vision_o3.db.engine import Database
from vision_o3.db.migrate import migrate
from vision_o3.db.models import MODELS
from vision_o3.errors import ConfigurationError, DatabaseUnavailableError

pytestmark = pytest.mark.integration


@pytest.fixture
def empty_url(postgres_url: str) -> Iterator[str]:
    yield postgres_url
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")


class TestPostgreSQL(MetadataStoreConformance):
    @pytest.fixture
    def empty_url(self, empty_url: str) -> str:
        return empty_url


@pytest.fixture
def database(empty_url: str) -> Iterator[Database]:
    migrate(empty_url)
    database = Database(empty_url)
    yield database
    database.close()


def _hang_up(session: Any) -> None:
    """Let the server end the session's connection."""
    connection = session.connection().connection.driver_connection
    with psycopg.connect(connection.info.dsn, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])


def test_lost_connection_is_told_apart_and_replaced(database: Database) -> None:
    with pytest.raises(DatabaseUnavailableError), database.write() as session:  # noqa: PT012 - a whole transaction
        _hang_up(session)
        queries.insert_user(session, "ann", **user())
    with database.write() as session:
        queries.insert_user(session, "ann", **user())


def test_connection_lost_on_commit_is_told_apart(database: Database) -> None:
    with pytest.raises(DatabaseUnavailableError), database.write() as session:  # noqa: PT012 - a whole transaction
        queries.insert_user(session, "ann", **user())
        _hang_up(session)


def test_idle_connection_that_was_lost_is_replaced_unseen(database: Database) -> None:
    with database.read() as session:
        connection = session.connection().connection.driver_connection
        assert connection
        pid, dsn = connection.info.backend_pid, connection.info.dsn
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s)", [pid])
    with database.read() as session:
        assert queries.list_users(session) == []


def test_times_are_utc_whatever_the_sessions_zone(
    empty_url: str, database: Database
) -> None:
    publish(database, MODELS)
    elsewhere = Database(f"{empty_url}?options=-c%20timezone%3DAsia/Tokyo")
    with elsewhere.read() as session:
        assert session.execute(text("SHOW timezone")).scalar_one() == "Asia/Tokyo"
        assert session.execute(text("SHOW lock_timeout")).scalar_one() == "30s"
        found = queries.find_latest(session, MODELS, "m")
        assert queries.database_now(session).utcoffset() == NOW.utcoffset()
    elsewhere.close()
    assert found
    assert found[0].created_at.isoformat() == NOW.isoformat()


def test_names_sort_by_code_point(database: Database) -> None:
    names = ["a-b", "a.c", "a_a", "ab", "a0"]
    for name in names:
        publish(database, MODELS, name)
    with database.read() as session:
        _, rows = queries.list_latest(
            session, MODELS, queries.LineFilters(), "name", 0, 9
        )
    assert [line.name for line, _ in rows] == sorted(names)


def test_unreachable_server_is_told_apart_without_the_password() -> None:
    url = "postgresql://ann:hunter2@127.0.0.1:1/registry"
    with pytest.raises(DatabaseUnavailableError, match="registry") as caught:
        migrate(url)
    assert "hunter2" not in str(caught.value)
    database = Database(url)
    with pytest.raises(DatabaseUnavailableError) as caught, database.read() as session:
        queries.find_user(session, "ann")
    assert "hunter2" not in str(caught.value)


def test_unknown_connection_parameter_is_named() -> None:
    with pytest.raises(ConfigurationError, match="sslmood"):
        migrate("postgresql://ann:hunter2@127.0.0.1:1/registry?sslmood=on")


def test_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match="pip install"):
        Database("postgresql://ann@localhost/registry")
