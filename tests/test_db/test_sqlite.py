from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from tests.conformance.metadata_store import (
    NOW,
    MetadataStoreConformance,
    cid_of,
    claim,
    publish,
)
from vision_o3.db import queries
from vision_o3.db.engine import Database
from vision_o3.db.migrate import current_revision, is_current, migrate
from vision_o3.db.models import MODELS
from vision_o3.db.queries import SORTS, LineFilters
from vision_o3.errors import ConfigurationError, DatabaseUnavailableError


class TestSQLite(MetadataStoreConformance):
    @pytest.fixture
    def empty_url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/new/registry.db"

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        (tmp_path / "new").mkdir()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/deep/er/registry.db"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    migrate(url)
    database = Database(url)
    yield database
    database.close()


def test_migrating_makes_the_directory(url: str) -> None:
    migrate(url)
    assert is_current(url)


def test_looking_makes_nothing(url: str, tmp_path: Path) -> None:
    assert current_revision(url) is None
    assert list(tmp_path.iterdir()) == []


def test_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"file/x cannot be made"):
        migrate(f"sqlite:///{tmp_path}/file/x/registry.db")


def test_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8" * 4096)
    with pytest.raises(ConfigurationError, match=r"photo\.jpg.*not a database"):
        migrate(f"sqlite:///{tmp_path}/photo.jpg")


def test_file_that_cannot_be_opened_is_an_outage(url: str) -> None:
    database = Database(url)
    with pytest.raises(DatabaseUnavailableError), database.read() as session:
        queries.find_user(session, "ann")


def test_what_is_committed_survives_power_loss(database: Database) -> None:
    with database.read() as session:
        pragmas = [
            session.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert pragmas == ["wal", 2, 1]


def test_second_process_waits_its_turn_and_no_longer(
    url: str, database: Database
) -> None:
    impatient = Database(url, wait_s=0.1)
    with database.write() as session:
        claim(session, MODELS)
        with (
            pytest.raises(DatabaseUnavailableError, match="did not answer"),
            impatient.write() as other,
        ):
            claim(other, MODELS)
    impatient.close()


def test_second_thread_waits_its_turn_and_no_longer(url: str) -> None:
    migrate(url)
    database = Database(url, wait_s=0.1)
    with (
        database.write(),
        pytest.raises(DatabaseUnavailableError, match="busy"),
        database.write(),
    ):
        pass
    database.close()


def test_migrating_refuses_to_leave_broken_links(url: str, database: Database) -> None:
    publish(database, MODELS)
    with database.write() as session:
        connection: Any = session.connection().connection.driver_connection
        session.rollback()
        connection.execute("PRAGMA query_only=OFF")
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.execute("DELETE FROM models")
    with pytest.raises(ConfigurationError, match="links"):
        migrate(url)


@contextmanager
def plans(database: Database) -> Iterator[list[str]]:
    """Collect the query plan of every statement that is run."""
    lines: list[str] = []

    def explain(_: Any, cursor: Any, statement: str, values: Any, *__: Any) -> None:
        if not statement.startswith(("BEGIN", "PRAGMA")):
            rows = cursor.connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)
            lines.extend(row[3] for row in rows)

    event.listen(database._engine, "before_cursor_execute", explain)
    yield lines
    event.remove(database._engine, "before_cursor_execute", explain)


LOOK_UPS: dict[str, Callable[[Session], object]] = {
    "line": lambda s: queries.find_line(s, MODELS, "m"),
    "latest": lambda s: queries.find_latest(s, MODELS, "m"),
    "version": lambda s: queries.find_version(s, MODELS, "m", 1),
    "history": lambda s: queries.history(s, MODELS, "m", 0, 9),
    "cid": lambda s: queries.find_by_cid(s, MODELS, cid_of("x")),
    "stored": lambda s: queries.find_stored_content(s, cid_of("x")),
    "named": lambda s: queries.object_is_named(s, "k"),
    "user": lambda s: queries.find_user(s, "ann"),
}


@pytest.mark.parametrize("what", LOOK_UPS)
def test_look_ups_use_an_index(database: Database, what: str) -> None:
    publish(database, MODELS)
    with plans(database) as lines, database.read() as session:
        LOOK_UPS[what](session)
    assert lines
    assert all(
        "SEARCH" in line and "INDEX" in line for line in lines if "B-" not in line
    )


def test_expired_claims_are_found_among_claims_alone(database: Database) -> None:
    with plans(database) as lines, database.read() as session:
        queries.expired_claims(session, MODELS, NOW, 9)
    assert any("uq_model_versions_storing" in line for line in lines)


@pytest.mark.parametrize("sort", SORTS)
def test_pages_are_read_in_the_order_of_an_index(database: Database, sort: str) -> None:
    with plans(database) as lines, database.read() as session:
        queries.list_latest(session, MODELS, LineFilters(), sort, 0, 9)
    assert lines
    assert not any("TEMP B-TREE" in line for line in lines)
    assert all("INDEX" in line for line in lines)


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        (LineFilters(framework="x"), "ix_model_versions_current_framework"),
        (LineFilters(model_type="x"), "ix_model_versions_current_model_type"),
        (LineFilters(file_format="x"), "ix_model_versions_current_file_format"),
        (LineFilters(tags=("x",)), "ix_model_tags_tag_version_id"),
        (LineFilters(owner="x"), "ix_models_owner_id"),
    ],
)
def test_filters_use_their_index(
    database: Database, filters: LineFilters, index: str
) -> None:
    with plans(database) as lines, database.read() as session:
        queries.list_latest(session, MODELS, filters, "-created_at", 0, 9)
    assert any(index in line for line in lines)
