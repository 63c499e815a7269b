from __future__ import annotations

import pytest

from vision_o3.db.engine import Database, parse_url
from vision_o3.db.migrate import migrate
from vision_o3.errors import ConfigurationError


@pytest.mark.parametrize(
    "url",
    [
        "",
        "registry.db",
        "mysql://ann:hunter2@localhost/registry",
        "postgresql+asyncpg://ann:hunter2@localhost/registry",
        "postgresql://ann:hunter2@localhost:port/registry",
        "postgresql://ann:hunter2/registry",
        "postgresql://ann:hun@ter2@localhost/registry",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:registry.db?uri=true",
        "sqlite:///registry.db?mode=ro",
        "sqlite://ann:hunter2@registry.db",
    ],
)
def test_unusable_url_is_refused_without_telling_it(url: str) -> None:
    for use in (Database, migrate):
        with pytest.raises(ConfigurationError) as caught:
            use(url)
        shown = f"{caught.value} {caught.value.__cause__} {caught.value.values}"
        assert "ter2" not in shown
        assert caught.value.__suppress_context__ or not caught.value.__context__


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgresql_goes_by_all_its_names(scheme: str) -> None:
    assert parse_url(f"{scheme}://ann@localhost/x").drivername == "postgresql+psycopg"


def test_nothing_is_connected_before_use(tmp_path: object) -> None:
    assert Database("postgresql://ann@127.0.0.1:1/x").dialect == "postgresql"
    assert Database(f"sqlite:///{tmp_path}/none/x.db").dialect == "sqlite"
