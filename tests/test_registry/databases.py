"""A registry on each of the databases, for what depends on the database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.test_integration.gateways import postgres_database
from tests.test_registry.conftest import Registry, open_registry
from tests.test_registry.trails import empty
from vision_o3.db.engine import Database
from vision_o3.db.migrate import migrate


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[Database]:
    """One database for many tests: making and dropping one takes seconds."""
    with postgres_database() as url:
        migrate(url)
        with closing(Database(url)) as database:
            yield database


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Database]:
    """An empty database of each kind."""
    if request.param == "postgresql":
        shared: Database = request.getfixturevalue("shared_postgres")
        empty(shared)
        yield shared
        return
    url = f"sqlite:///{tmp_path}/empty.db"
    migrate(url)
    with closing(Database(url)) as database:
        yield database


@pytest.fixture(params=["sqlite", "postgresql"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    with open_registry(tmp_path) as registry:
        if request.param == "postgresql":
            registry.database = request.getfixturevalue("shared_postgres")
            empty(registry.database)
        yield registry
