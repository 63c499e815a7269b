"""Registries that reach their store through a fault proxy, and what must hold."""

from __future__ import annotations

import asyncio
import io
import itertools
import random
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import update

from tests.fakes.dataset_files import coco_bytes
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.s3_servers import S3Server
from tests.test_registry.conftest import Registry
from vision_o3.content.dag import cid_of_bytes
from vision_o3.db import models as tables
from vision_o3.db.engine import Database
from vision_o3.db.migrate import migrate
from vision_o3.errors import NotFoundError
from vision_o3.formats.limits import Limits
from vision_o3.registry.claims import Timing
from vision_o3.registry.inspecting import Inspector
from vision_o3.registry.services import ArtifactService
from vision_o3.registry.spool import Spool
from vision_o3.registry.values import Version
from vision_o3.storage.keys import parse_key, version_keys
from vision_o3.storage.s3 import S3Options, S3Store

MIB = 1 << 20
PART = 5 * MIB
"""The least that S3 accepts."""
HASTY_S = 1.2
"""For all tries of a request; a stall is noticed after a third of it."""
PATIENT_S = 60.0


def dataset(seed: int, size: int) -> bytes:
    """Return an archive of about ``size`` bytes: annotations and noise."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (
            ("annotations.json", coco_bytes(1, [(1, None)], {1: "cat"})),
            ("noise.bin", random.Random(seed).randbytes(size)),
        ):
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), content)
    return file.getvalue()


@dataclass
class Way:
    """A way to a prefix of a bucket through a fault proxy of its own."""

    prefix: str
    proxy: FaultProxy
    hasty: S3Store
    patient: S3Store

    def close(self) -> None:
        self.hasty.close()
        self.patient.close()
        self.proxy.close()


@dataclass
class Machine:
    """What all registries of a test share: a server, a bucket, an inspector."""

    server: S3Server
    bucket: str
    template: Path
    """An empty database."""
    inspector: Inspector
    ways: dict[tuple[bool, float], list[Way]] = field(default_factory=dict)
    """Not in use now; making a client takes longer than most cases do."""

    @contextmanager
    def way(self, *, conditional: bool, timeout_s: float) -> Iterator[Way]:
        """Lend a way whose prefix is empty and whose proxy has no script."""
        idle = self.ways.setdefault((conditional, timeout_s), [])
        try:
            way = idle.pop()
        except IndexError:
            way = self._open_way(conditional=conditional, timeout_s=timeout_s)
        yield way
        way.proxy.forget()
        for key in self.keys(way.prefix):
            self.server.client.delete_object(
                Bucket=self.bucket, Key=f"{way.prefix}/{key}"
            )
        idle.append(way)

    def keys(self, prefix: str) -> set[str]:
        """Return what lies below a prefix, asked for past proxies and our own code."""
        pages = self.server.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"{prefix}/"
        )
        return {
            found["Key"].removeprefix(f"{prefix}/")
            for page in pages
            for found in page.get("Contents", ())
        }

    def _open_way(self, *, conditional: bool, timeout_s: float) -> Way:
        prefix = uuid.uuid4().hex
        proxy = FaultProxy(self.server.endpoint)
        hasty, patient = (
            S3Store(
                self.bucket,
                prefix,
                S3Options(
                    endpoint=proxy.endpoint,
                    region=self.server.region,
                    access_key_id=self.server.access_key,
                    secret_access_key=self.server.secret_key,
                    conditional_put=conditional,
                    multipart_bytes=PART,
                    part_bytes=PART,
                    timeout_s=seconds,
                ),
            )
            for seconds in (timeout_s, PATIENT_S)
        )
        return Way(prefix, proxy, hasty, patient)

    def close(self) -> None:
        for way in itertools.chain.from_iterable(self.ways.values()):
            way.close()


@contextmanager
def machine(server: S3Server, root: Path) -> Iterator[Machine]:
    """Make what the registries of a test share."""
    template = root / "template.db"
    migrate(f"sqlite:///{template}")
    spool = Spool(root / "inspection", max_size=1 << 30, min_free=0)
    inspector = Inspector(spool, Limits())
    made = Machine(server, server.make_bucket(), template, inspector)
    try:
        yield made
    finally:
        made.close()
        inspector.close()
        spool.close()


@dataclass
class FaultySite:
    """One registry on its own prefix of the bucket, seen in two ways.

    ``hasty`` goes through the proxy and soon gives up; ``patient`` goes through it too,
    and is for when the faults are over.
    """

    machine: Machine
    prefix: str
    proxy: FaultProxy
    hasty: Registry
    patient: Registry

    def keys(self) -> set[str]:
        return self.machine.keys(self.prefix)

    def unfinished(self) -> list[str]:
        return [
            key
            for key in self.machine.server.unfinished(self.machine.bucket)
            if key.startswith(f"{self.prefix}/")
        ]

    def service(self, collection: str) -> ArtifactService:
        return getattr(self.patient, collection)  # type: ignore[no-any-return]

    def versions(self, collection: str, name: str) -> list[Version]:
        """Return all that is visible of a line, oldest first."""
        try:
            page = self.service(collection).history(name, page=1, page_size=200)
        except NotFoundError:
            return []
        return list(reversed(page.items))

    def check_line(self, collection: str, name: str, expected: list[bytes]) -> None:
        """Check that just these contents are the line's versions, without a hole."""
        versions = self.versions(collection, name)
        assert [v.version for v in versions] == list(range(1, len(expected) + 1))
        for version, content in zip(versions, expected, strict=True):
            assert version.cid == cid_of_bytes(content)
            read = read_whole(self.service(collection), version)
            assert read == content, f"wrong bytes of {name} v{version.version}"

    def sweep(self) -> None:
        """Remove all that dead writers left, as if long after."""
        expire_claims(self.patient.database)
        swept = self.patient.sweeper.sweep()
        assert not swept.failures
        self.patient.sweeper.sweep_strays(grace=timedelta(minutes=-5))
        self.patient.store.remove_unfinished(
            "", before=datetime.now(UTC) + timedelta(minutes=5)
        )

    def check_bucket(self, *lines: tuple[str, str]) -> None:
        """Check that after a sweep the bucket holds what these lines' versions name."""
        self.sweep()
        named: set[str] = set()
        for collection, name in lines:
            for version in self.versions(collection, name):
                named |= named_by(version)
        assert self.keys() == named
        assert self.unfinished() == []


@contextmanager
def faulty_site(
    shared: Machine,
    root: Path,
    *,
    conditional: bool = True,
    timeout_s: float = HASTY_S,
) -> Iterator[FaultySite]:
    """Make a registry of its own on an empty prefix of the machine's bucket."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(shared.template, root / "registry.db")
    database = Database(f"sqlite:///{root}/registry.db")
    spool = Spool(root / "spool", max_size=1 << 30, min_free=0)
    timing = Timing(lease=timedelta(seconds=60), claim_wait_s=5)
    try:
        with shared.way(conditional=conditional, timeout_s=timeout_s) as way:
            hasty, patient = (
                Registry(database, store, spool, shared.inspector, timing)
                for store in (way.hasty, way.patient)
            )
            yield FaultySite(shared, way.prefix, way.proxy, hasty, patient)
        assert not list((root / "spool").iterdir()), "a spool file was left behind"
    finally:
        spool.close()
        database.close()


def read_whole(service: ArtifactService, version: Version) -> bytes:
    return read_range(service, version, 0, version.file_size)


def read_range(
    service: ArtifactService, version: Version, start: int, end: int
) -> bytes:
    async def gather() -> bytes:
        stream = service.stream(version, start, end)
        return b"".join([bytes(piece) async for piece in stream])

    return asyncio.run(gather())


def named_by(version: Version) -> set[str]:
    """Return the keys of all objects that a version needs."""
    parsed = parse_key(version.object_key)
    assert parsed is not None
    keys = version_keys(
        version.collection, version.name, version.version, version.file_format
    )
    optional = (version.sidecar_key, version.manifest_key, version.index_key)
    return {version.object_key, keys.record, *(key for key in optional if key)}


def expire_claims(database: Database) -> None:
    """Let every lease run out now."""
    for row in (tables.ModelVersionRow, tables.DatasetVersionRow):
        with database.write() as session:
            session.execute(
                update(row)
                .where(row.state == "storing")
                .values(lease_expires_at=datetime(2000, 1, 1, tzinfo=UTC))
            )
