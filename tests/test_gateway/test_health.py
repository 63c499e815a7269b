from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from tests.fakes.scripted_store import ScriptedStore
from tests.test_gateway.running import OpenGateway, Running
from vision_o3 import __version__
from vision_o3.db.migrate import downgrade
from vision_o3.errors import ConfigurationError
from vision_o3.gateway.readiness import KEPT_S, NO_OBJECT, ReadinessCheck
from vision_o3.storage.base import ObjectMeta
from vision_o3.storage.local import LocalStore
from vision_o3.storage.memory import MemoryStore


def test_process_answers(running: Running) -> None:
    answer = running.get("/health", token=None)
    assert answer.json() == {"status": "ok", "version": __version__}


def test_ready_gateway_says_so(running: Running) -> None:
    answer = running.get("/health/ready", token=None)
    assert answer.status_code == 200
    checks = {"database": "ok", "migrations": "ok", "store": "ok", "spool": "ok"}
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
        # Nobody asks the store again for a moment, whoever asks the gateway.
        assert running.get("/health/ready", token=None).status_code == 503
        running.gateway.readiness.forget()
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


def test_full_spool_is_told(open_gateway: OpenGateway) -> None:
    with open_gateway(min_free_bytes=1 << 60) as running:
        answer = running.get("/health/ready", token=None)
    assert answer.status_code == 503
    assert "too full" in answer.json()["checks"]["spool"]


def test_lost_spool_is_told(running: Running) -> None:
    running.settings.spool_directory.rmdir()
    answer = running.get("/health/ready", token=None)
    assert answer.status_code == 503
    assert answer.json()["checks"]["spool"] == "The spool directory cannot be used."


def test_gateway_that_is_being_stopped_is_not_ready(running: Running) -> None:
    running.gateway.stopping.begun = True
    answer = running.get("/health/ready", token=None)
    assert answer.status_code == 503
    assert answer.json()["checks"] == {"gateway": "It is being stopped."}
    assert running.get("/health", token=None).status_code == 200


class SlowStore(MemoryStore):
    """Answers when the test says so; counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.goes_on = threading.Event()

    def find(self, key: str) -> ObjectMeta | None:
        if key == NO_OBJECT:
            self.asked += 1
            assert self.goes_on.wait(20)
        return super().find(key)


def test_many_who_ask_cost_one_look(open_gateway: OpenGateway) -> None:
    store = SlowStore()
    with open_gateway(store) as running:

        async def ask_all() -> list[httpx.Response]:
            asking = [
                asyncio.ensure_future(running.client.get("/health/ready"))
                for _ in range(50)
            ]
            await asyncio.sleep(0.05)
            asking.pop(0).cancel()  # who asked first leaves
            store.goes_on.set()
            return await asyncio.gather(*asking)

        answers = running.portal.call(ask_all)
        assert {answer.status_code for answer in answers} == {200}
        assert store.asked == 1
        running.get("/health/ready", token=None)
        assert store.asked == 1


def test_what_was_found_counts_for_a_moment_only(running: Running) -> None:
    now = 100.0
    store = MemoryStore()
    check = ReadinessCheck(running.settings, store, clock=lambda: now)
    assert set(running.portal.call(check.checks).values()) == {"ok"}
    running.settings.spool_directory.rmdir()
    now += KEPT_S / 2
    assert set(running.portal.call(check.checks).values()) == {"ok"}
    now += KEPT_S
    assert running.portal.call(check.checks)["spool"] != "ok"


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
