from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.fakes.scripted_store import ScriptedStore
from tests.test_gateway.running import OpenGateway, Running
from vision_o3 import __version__
from vision_o3.db.migrate import downgrade
from vision_o3.errors import ConfigurationError
from vision_o3.storage.local import LocalStore


def test_process_answers(running: Running) -> None:
    answer = running.get("/health", token=None)
    assert answer.json() == {"status": "ok", "version": __version__}


def test_ready_gateway_says_so(running: Running) -> None:
    answer = running.get("/health/ready", token=None)
    assert answer.status_code == 200
    checks = {"database": "ok", "migrations": "ok", "store": "ok"}
    assert answer.json() == {"status": "ready", "checks": checks}


def test_lost_store_is_told(open_gateway: OpenGateway, tmp_path: Path) -> None:
    store = ScriptedStore("T", LocalStore(tmp_path / "objects"))
    with open_gateway(store) as running:
        with capture_logs() as logs:
            answer = running.get("/health/ready", token=None)
        assert answer.status_code == 503
        assert answer.json()["checks"]["store"] == "The object store cannot be reached."
        [told] = [line for line in logs if line["event"] == "store.unreachable"]
        assert told["code"] == "storage_unavailable"
        assert running.get("/health/ready", token=None).status_code == 200


def test_database_of_another_version_is_told(running: Running) -> None:
    downgrade(running.settings.database_url.get_secret_value(), "base")
    answer = running.get("/health/ready", token=None)
    assert answer.status_code == 503
    assert "vision-o3 admin migrate" in answer.json()["checks"]["migrations"]


def test_lost_database_is_told(running: Running, tmp_path: Path) -> None:
    database = tmp_path / "registry.db"
    for path in tmp_path.glob("registry.db*"):
        path.unlink()
    database.mkdir()
    answer = running.get("/health/ready", token=None)
    assert answer.status_code == 503
    assert answer.json()["checks"]["database"] == "The database cannot be used."
    assert str(tmp_path) not in answer.text


def test_gateway_does_not_start_on_an_old_database(
    open_gateway: OpenGateway, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/other.db"
    with (
        pytest.raises(ConfigurationError, match="vision-o3 admin migrate"),
        open_gateway(database_url=url),
    ):
        pass
    assert not list(tmp_path.glob("spool/*"))
