from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.conformance.metadata_store import NOW, cid_of, claim, publish
from tests.test_db.test_sqlite import plans
from vision_o3.db import queries
from vision_o3.db.engine import Database
from vision_o3.db.migrate import downgrade, migrate
from vision_o3.db.models import DATASETS, MODELS

LATER = NOW + timedelta(hours=1)


@pytest.fixture(
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)]
)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/registry.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    migrate(url)
    database = Database(url)
    yield database
    database.close()
    downgrade(url, "base")


def keys(database: Database, after: str = "", limit: int = 9) -> list[str]:
    with database.read() as session:
        return [row.object_key for row in queries.list_suspects(session, after, limit)]


def test_marked_object_is_kept_with_what_was_seen(database: Database) -> None:
    with database.write() as session:
        queries.mark_suspect(session, "a", cid_of("x"), "digest_mismatch", NOW)
        queries.mark_suspect(session, "a", cid_of("y"), "length_mismatch", LATER)
    with database.read() as session:
        found = queries.find_suspect(session, "a")
        assert queries.find_suspect(session, "b") is None
    assert found
    assert (found.cid, found.reason, found.times) == (
        cid_of("y"),
        "length_mismatch",
        2,
    )
    assert (found.first_seen_at, found.last_seen_at) == (NOW, LATER)


def test_suspects_are_listed_by_key_page_by_page(database: Database) -> None:
    marked = ["models/a_b/v1.pt", "models/a-b/v1.pt", "models/a.b/v1.pt", "models/ab"]
    with database.write() as session:
        for key in marked:
            queries.mark_suspect(session, key, cid_of("x"), "missing", NOW)
    assert keys(database) == sorted(marked)
    assert keys(database, sorted(marked)[1], 1) == sorted(marked)[2:3]


def test_cleared_object_is_gone_unless_it_was_marked_again(database: Database) -> None:
    with database.write() as session:
        for _ in range(3):
            queries.mark_suspect(session, "a", cid_of("x"), "missing", NOW)
    with database.write() as session:
        assert not queries.clear_suspect(session, "a", 2)
        assert not queries.clear_suspect(session, "b")
    assert keys(database) == ["a"]
    with database.write() as session:
        assert queries.clear_suspect(session, "a", 3)
    assert keys(database) == []


def test_every_published_version_is_walked_once(database: Database) -> None:
    expected = set()
    for collection in (MODELS, DATASETS):
        for number in range(7):
            expected.add(publish(database, collection, f"m{number % 3}"))
        with database.write() as session:
            claim(session, collection, "claimed")
    walked: list[UUID] = []
    for collection in (MODELS, DATASETS):
        after: UUID | None = None
        while True:
            with database.read() as session:
                page = queries.published_after(session, collection, after, 3)
            walked += [row.id for _, row in page]
            if not page:
                break
            after = page[-1][1].id
    assert len(walked) == 14
    assert set(walked) == expected


def test_version_is_found_by_each_object_that_it_names(database: Database) -> None:
    listings: dict[str, Any] = {
        "manifest_cid": cid_of("x"),
        "manifest_key": "datasets/m/v1.manifest.json",
        "index_cid": cid_of("y"),
        "index_key": "datasets/m/v1.members.idx",
    }
    version = publish(database, DATASETS, **listings)
    publish(database, DATASETS, object_key="datasets/m/v1.onnx", now=LATER)
    publish(database, MODELS)
    for ending in ("onnx", "dag.car", "record.json", "manifest.json", "members.idx"):
        with database.read() as session:
            key = f"datasets/m/v1.{ending}"
            found = queries.versions_naming(session, DATASETS, key, 1)
            assert [row.id for _, row in found] == [version]
            assert not queries.versions_naming(session, MODELS, key, 1)


def test_walk_and_look_up_use_an_index(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    migrate(url)
    database = Database(url)
    with plans(database) as lines, database.read() as session:
        queries.published_after(session, MODELS, UUID(int=0), 9)
        queries.list_suspects(session, "a", 9)
        for collection in (MODELS, DATASETS):
            queries.versions_naming(session, collection, "k", 1)
    database.close()
    assert lines
    assert not any(line.startswith("SCAN") for line in lines)
