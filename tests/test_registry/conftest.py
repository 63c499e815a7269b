from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from vision_o3.db.engine import Database
from vision_o3.db.migrate import migrate
from vision_o3.formats.limits import Limits
from vision_o3.registry.claims import Timing
from vision_o3.registry.inspecting import Inspector
from vision_o3.registry.maintenance import Sweeper
from vision_o3.registry.services import ArtifactService, DatasetService, ModelService
from vision_o3.registry.spool import Spool
from vision_o3.registry.values import Published, Submission
from vision_o3.storage.base import ObjectStore
from vision_o3.storage.local import LocalStore


@dataclass
class Registry:
    """A registry on SQLite and a directory, as one gateway process has it."""

    database: Database
    store: ObjectStore
    spool: Spool
    inspector: Inspector
    timing: Timing = field(
        default_factory=lambda: Timing(lease=timedelta(seconds=30), claim_wait_s=20)
    )

    @property
    def models(self) -> ModelService:
        return ModelService(self.database, self.store, self.inspector, self.timing)

    @property
    def datasets(self) -> DatasetService:
        return DatasetService(self.database, self.store, self.inspector, self.timing)

    @property
    def sweeper(self) -> Sweeper:
        return Sweeper(self.database, self.store, self.spool, self.timing)

    def publish(
        self,
        content: bytes,
        name: str = "m",
        filename: str = "m.tflite",
        **more: object,
    ) -> Published:
        return self.publish_to(self.models, content, name, filename, **more)

    def publish_dataset(
        self, content: bytes, name: str = "d", filename: str = "d.zip"
    ) -> Published:
        return self.publish_to(self.datasets, content, name, filename)

    def publish_to(
        self,
        service: ArtifactService,
        content: bytes,
        name: str,
        filename: str,
        **more: object,
    ) -> Published:
        submission = Submission(name, "ann", filename=filename, **more)  # type: ignore[arg-type]  # the test's business

        async def receive_and_publish() -> Published:
            async with self.spool.open() as writer:
                await writer.write(content)
                spooled = await writer.finish()
                return await asyncio.to_thread(service.publish, submission, spooled)

        return asyncio.run(receive_and_publish())

    def stored_keys(self) -> set[str]:
        return {found.key for found in self.store.list()}

    def read(self, number: int, name: str = "m") -> bytes:
        async def gather() -> bytes:
            version = self.models.version(name, number)
            stream = self.models.stream(version, 0, version.file_size)
            return b"".join([bytes(piece) async for piece in stream])

        return asyncio.run(gather())


@contextmanager
def open_registry(root: Path, store: ObjectStore | None = None) -> Iterator[Registry]:
    url = f"sqlite:///{root}/registry.db"
    migrate(url)
    database = Database(url)
    spool = Spool(root / "spool", max_size=1 << 30, min_free=0)
    inspector = Inspector(spool, Limits())
    try:
        yield Registry(
            database, store or LocalStore(root / "objects"), spool, inspector
        )
        assert not list((root / "spool").iterdir()), "a spool file was left behind"
    finally:
        inspector.close()
        spool.close()
        database.close()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with open_registry(tmp_path) as registry:
        yield registry
