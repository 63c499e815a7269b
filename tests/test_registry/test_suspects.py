from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.conformance.metadata_store import cid_of
from tests.test_integration.gateways import postgres_database
from vision_o3.db import queries
from vision_o3.db.engine import Database
from vision_o3.db.migrate import migrate
from vision_o3.registry.suspects import Suspects

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
KEY, CID = "models/m/v1.onnx", cid_of("x")


class Clock:
    def __init__(self) -> None:
        self.passed_s = 0.0

    def __call__(self, _: object = None) -> datetime:
        return NOW + timedelta(seconds=self.passed_s)

    def monotonic(self) -> float:
        return self.passed_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)]
)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        yield from opened(f"sqlite:///{tmp_path}/registry.db")
    else:
        with postgres_database() as url:
            yield from opened(url)


def opened(url: str) -> Iterator[Database]:
    migrate(url)
    database = Database(url)
    yield database
    database.close()


def suspects_of(database: Database, clock: Clock) -> Suspects:
    return Suspects(database, clock, monotonic=clock.monotonic)


def test_marked_object_is_found_by_another_process(
    database: Database, clock: Clock
) -> None:
    suspects_of(database, clock).mark(KEY, CID, "digest_mismatch")
    other = suspects_of(database, clock)
    (found,) = other.list()
    assert (found.key, found.cid, found.reason) == (KEY, CID, "digest_mismatch")
    assert (found.first_seen_at, found.last_seen_at, found.times) == (NOW, NOW, 1)
    assert other.find(KEY) == found
    assert other.find("models/m/v2.onnx") is None


def test_object_is_written_once_a_minute(database: Database, clock: Clock) -> None:
    suspects = suspects_of(database, clock)
    for at in (0, 30, 59, 60, 119, 130):
        clock.passed_s = at
        suspects.mark(KEY, CID, "digest_mismatch")
    found = suspects.find(KEY)
    assert found
    assert found.times == 3
    assert found.last_seen_at == NOW + timedelta(seconds=130)


def test_many_threads_write_once(database: Database, clock: Clock) -> None:
    suspects = suspects_of(database, clock)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: suspects.mark(KEY, CID, "missing"), range(40)))
    found = suspects.find(KEY)
    assert found
    assert found.times == 1


def test_cleared_object_may_be_marked_again_at_once(
    database: Database, clock: Clock
) -> None:
    suspects = suspects_of(database, clock)
    assert not suspects.clear(KEY)
    suspects.mark(KEY, CID, "missing")
    assert suspects.clear(KEY)
    assert not list(suspects.list())
    suspects.mark(KEY, CID, "missing")
    assert [each.times for each in suspects.list()] == [1]


def test_object_marked_again_since_is_not_cleared(
    database: Database, clock: Clock
) -> None:
    suspects = suspects_of(database, clock)
    suspects.mark(KEY, CID, "missing")
    suspects_of(database, clock).mark(KEY, CID, "missing")
    assert not suspects.clear(KEY, times=1)
    assert suspects.clear(KEY, times=2)


def test_long_list_is_whole_and_in_order(database: Database, clock: Clock) -> None:
    suspects = suspects_of(database, clock)
    keys = [f"models/m/v{number}.onnx" for number in range(1, 1202)]
    with database.write() as session:
        for key in keys:
            queries.mark_suspect(session, key, CID, "missing", NOW)
    assert [each.key for each in suspects.list()] == sorted(keys)


def test_database_that_is_down_is_logged_and_no_more(
    clock: Clock, tmp_path: Path
) -> None:
    database = Database(f"sqlite:///{tmp_path}/absent/registry.db")
    suspects = suspects_of(database, clock)
    with capture_logs() as logs:
        suspects.mark(KEY, CID, "missing")
        suspects.mark(KEY, CID, "missing")
    (line,) = logs
    assert line["event"] == "suspect.not_noted"
    assert (line["key"], line["failure"]) == (KEY, "database_unavailable")


def test_tables_that_are_missing_do_not_raise_either(
    clock: Clock, tmp_path: Path
) -> None:
    database = Database(f"sqlite:///{tmp_path}/registry.db")
    with capture_logs() as logs:
        suspects_of(database, clock).mark(KEY, CID, "missing")
    database.close()
    assert [line["failure"] for line in logs] == ["invalid_configuration"]
