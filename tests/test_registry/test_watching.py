"""What the registry tells of its work, and that its threads know whose it is."""

from __future__ import annotations

import asyncio
import io
import threading
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.contextvars import bound_contextvars, get_contextvars
from structlog.testing import capture_logs

from tests.fakes.model_files import tflite
from tests.test_registry.conftest import Registry, open_registry
from vision_o3.db.models import MODELS
from vision_o3.errors import DatabaseUnavailableError
from vision_o3.registry.claims import Claim, Claims, Timing
from vision_o3.registry.watching import UNWATCHED, Event, Step
from vision_o3.storage.local import LocalStore
from vision_o3.storage.memory import MemoryStore


def zip_of(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return stream.getvalue()


BRISK = Timing(lease=timedelta(seconds=0.03))


class Told:
    """A watcher that keeps what it was told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.steps: list[tuple[Step, str | None, int | None]] = []
        self.changed = threading.Condition()

    def tell(self, event: Event, amount: int = 1) -> None:
        del amount
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    @contextmanager
    def step(
        self, step: Step, *, cid: str | None = None, size: int | None = None
    ) -> Iterator[None]:
        self.steps.append((step, cid, size))
        yield

    def wait_for(self, event: Event) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: event in self.events, timeout=20)


class LostDatabase:
    """Fails every transaction; says when the second one was tried."""

    def __init__(self) -> None:
        self.tries = 0
        self.tried_twice = threading.Event()

    def write(self) -> Any:
        self.tries += 1
        if self.tries == 2:
            self.tried_twice.set()
        raise DatabaseUnavailableError("down")


def a_claim() -> Claim:
    return Claim(MODELS, "m", 1, uuid.uuid4(), "token")


def test_lines_of_a_thread_that_renews_a_lease_name_the_request() -> None:
    database: Any = LostDatabase()
    claims = Claims(database, MemoryStore(), BRISK)
    merge = structlog.contextvars.merge_contextvars
    with (
        capture_logs(processors=[merge]) as lines,
        bound_contextvars(request_id="of-the-request"),
        claims.hold(a_claim()),
    ):
        assert database.tried_twice.wait(20)
    assert lines[0]["event"] == "lease.renewal_failed"
    assert {line["request_id"] for line in lines} == {"of-the-request"}


def test_lease_that_was_lost_is_told(registry: Registry) -> None:
    told = Told()
    claims = Claims(registry.database, registry.store, BRISK, told)
    with claims.hold(a_claim()):
        told.wait_for(Event.LEASE_LOST)
    assert told.events[0] is Event.LEASE_BEGUN
    assert told.events[-1] is Event.LEASE_ENDED


def test_publishing_is_told_step_by_step(registry: Registry) -> None:
    told = Told()
    service = type(registry.models)(
        registry.database,
        registry.store,
        registry.inspector,
        registry.timing,
        watcher=told,
    )
    published = registry.publish_to(service, tflite(), "m", "m.tflite")
    named = str(published.version.cid), published.version.file_size
    order = (Step.INSPECT, Step.CLAIM, Step.STORE, Step.PUBLISH)
    assert told.steps == [(step, *named) for step in order]
    assert told.events == [Event.LEASE_BEGUN, Event.LEASE_ENDED]


class RecordingStore(LocalStore):
    """Notes in whose context it is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.contexts: list[dict[str, Any]] = []

    def get_range(self, key: str, start: int, end: int) -> bytes:
        self.contexts.append(dict(get_contextvars()))
        return super().get_range(key, start, end)


def test_threads_that_read_an_archive_know_the_request(tmp_path: Path) -> None:
    store = RecordingStore(tmp_path / "objects")
    with open_registry(tmp_path, store) as registry:
        content = zip_of({"a.txt": b"a" * 10})
        version = registry.publish_dataset(content).version
        service = registry.datasets

        async def read() -> bytes:
            member = await asyncio.to_thread(service.find_file, version, "a.txt")
            pieces = [bytes(each) async for each in service.stream_file(member, 0, 10)]
            return b"".join(pieces)

        store.contexts.clear()
        with bound_contextvars(request_id="of-the-request"):
            assert asyncio.run(read()) == b"a" * 10
    assert store.contexts
    assert {context.get("request_id") for context in store.contexts} == {
        "of-the-request"
    }


def test_who_is_not_watched_is_not_disturbed() -> None:
    UNWATCHED.tell(Event.CACHE_HIT)
    with pytest.raises(KeyError), UNWATCHED.step(Step.STORE):
        raise KeyError
