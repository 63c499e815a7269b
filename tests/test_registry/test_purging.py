from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from tests.fakes.archive_files import zip_file
from tests.fakes.model_files import tflite
from tests.fakes.scripted_store import ScriptedStore
from tests.test_registry.conftest import Registry, open_registry
from tests.test_registry.databases import registry, shared_postgres
from tests.test_registry.filled import contents, in_memory
from tests.test_registry.withdrawals import ANN, blocked, lifted, purge, purging
from vision_o3.content.dag import cid_of_bytes
from vision_o3.db import models as tables
from vision_o3.db.engine import Database
from vision_o3.db.queries import LineFilters
from vision_o3.errors import (
    ConfigurationError,
    NotFoundError,
    StorageError,
    TransientStorageError,
    UploadInProgressError,
    VersionPurgedError,
)
from vision_o3.registry.hot_cache import forget_content
from vision_o3.registry.maintenance import Sweeper
from vision_o3.registry.purging import Forgetter, Purger
from vision_o3.registry.records import decode_record
from vision_o3.registry.suspects import Suspects
from vision_o3.registry.values import Version
from vision_o3.storage.base import ObjectStore
from vision_o3.storage.local import LocalStore
from vision_o3.storage.memory import MemoryStore

__all__ = ["registry", "shared_postgres"]

MIB = 1 << 20
BAD = tflite(1, 2 * MIB)


def publish_bad(registry: Registry) -> Version:
    """Publish content three times that is to be purged, and other content."""
    registry.publish(BAD, "a", description="Anna Müller", tags=("anna",))
    registry.publish(tflite(2), "a")
    registry.publish(BAD, "a", framework="tf", model_type="faces")
    return registry.publish(BAD, "b").version


def left_of(registry: Registry, store: ObjectStore | None = None) -> set[str]:
    return {found.key for found in (store or registry.store).list()}


KEPT = {
    "models/a/v1.record.json",
    "models/a/v1.withdrawal-1.json",
    "models/a/v2.tflite",
    "models/a/v2.record.json",
    "models/a/v3.record.json",
    "models/a/v3.withdrawal-1.json",
    "models/b/v1.record.json",
    "models/b/v1.withdrawal-1.json",
}


def test_all_versions_of_the_content_go_and_say_so(registry: Registry) -> None:
    version = publish_bad(registry)
    done = purge(registry, version)
    assert [(each.name, each.version) for each in done.versions] == [
        ("a", 1),
        ("a", 3),
        ("b", 1),
    ]
    assert done.deleted == ("models/a/v1.dag.car", "models/a/v1.tflite")
    assert left_of(registry) == KEPT
    assert not any(BAD[:64] in each for each in contents(registry.store).values())
    assert registry.models.latest("a").version == 2
    with pytest.raises(VersionPurgedError, match="A court said so"):
        registry.models.latest("b")
    page = registry.models.history("a", page=1, page_size=9)
    assert [each.is_purged for each in page.items] == [True, False, True]
    for each in done.versions:
        found = registry.models.version(each.name, each.version)
        assert found.is_purged
        assert (found.description, found.tags, found.facts) == ("", (), {})
        assert (found.framework, found.model_type) == ("", "")
        assert (found.cid, found.file_size) == (version.cid, len(BAD))
    assert registry.models.by_cid(version.cid).is_purged


def test_nothing_that_was_said_of_it_can_be_found(registry: Registry) -> None:
    purge(registry, publish_bad(registry))
    for record in contents(registry.store).values():
        assert b"anna" not in record.lower()
        assert b"faces" not in record
    with registry.database.read() as session:
        assert session.scalars(select(tables.ModelTagRow)).all() == []
    filters = (LineFilters(q="müller"), LineFilters(tags=("anna",)))
    for each in filters:
        assert registry.models.list(each, sort="name", page=1, page_size=9).total == 0


def test_the_records_say_what_is_left(registry: Registry) -> None:
    publish_bad(registry)
    before = registry.models.version("a", 3)
    purge(registry, before)
    key = "models/a/v3.record.json"
    said = decode_record(registry.store.get(key, max_size=MIB), key).version
    assert said == registry.models.version("a", 3)
    kept = (said.id, said.name, said.version, said.cid, said.file_size)
    assert kept == (before.id, "a", 3, before.cid, len(BAD))
    assert (said.file_format, said.created_at) == ("tflite", before.created_at)
    assert (said.owner_id, said.publisher) == ("ann", "ann")
    assert said.withdrawal is not None
    assert said.withdrawal.reason == "A court said so."


def test_each_version_is_in_the_audit_trail_once(registry: Registry) -> None:
    version = publish_bad(registry)
    purge(registry, version)
    purge(registry, version)
    with registry.database.read() as session:
        event = tables.AuditEventRow
        found = session.scalars(
            select(event).where(event.action == "version.purged").order_by(event.seq)
        ).all()
    assert [(each.principal, each.subject) for each in found] == [
        ("operator", "models/a/v1"),
        ("operator", "models/a/v3"),
        ("operator", "models/b/v1"),
    ]


def test_an_archive_loses_its_listings_in_both_collections(registry: Registry) -> None:
    archive = zip_file("anna.txt", "b.txt")
    version = registry.publish_dataset(archive, "d").version
    registry.publish_dataset(archive, "e")
    purge(registry, version)
    assert left_of(registry) == {
        f"datasets/{name}/v1.{suffix}"
        for name in "de"
        for suffix in ("record.json", "withdrawal-1.json")
    }
    assert not any(b"anna" in each for each in contents(registry.store).values())


def test_purged_is_final(registry: Registry) -> None:
    version = registry.publish(BAD).version
    registry.models.withdraw("m", 1, blocked(is_admin=True))
    purge(registry, version)
    for wish in (lifted(is_admin=True), blocked(is_admin=True)):
        with pytest.raises(VersionPurgedError):
            registry.models.withdraw("m", 1, wish)
    found = registry.models.version("m", 1).withdrawal
    assert found is not None
    assert (found.number, found.by) == (2, "operator")


def test_purged_content_is_published_again_by_admins_alone(registry: Registry) -> None:
    version = registry.publish(BAD, "a").version
    purge(registry, version)
    keys = left_of(registry)
    with pytest.raises(VersionPurgedError, match="Only an admin"):
        registry.publish(BAD, "b")
    with pytest.raises(VersionPurgedError):
        registry.publish(BAD, "a")
    assert left_of(registry) == keys
    again = registry.publish(BAD, "a", is_admin=True)
    assert (again.created, again.version.version) == (True, 2)
    assert again.version.object_key == "models/a/v2.tflite"
    assert registry.read(2, "a") == BAD
    assert registry.models.by_cid(version.cid) == again.version
    assert registry.publish(BAD, "c").created, "it is served again"


def test_purging_again_finds_nothing_to_do(registry: Registry) -> None:
    version = publish_bad(registry)
    purge(registry, version)
    before = contents(registry.store)
    again = purge(registry, version)
    assert again.deleted == ()
    assert contents(registry.store) == before


def test_what_no_version_has_cannot_be_purged(registry: Registry) -> None:
    registry.publish(BAD)
    purger = Purger(registry.database, registry.store, None, registry.timing)
    with pytest.raises(NotFoundError, match="No model and no dataset"):
        purger.purge(cid_of_bytes(b"?"), purging())
    assert registry.read(1) == BAD


def test_a_second_store_is_purged_too(registry: Registry) -> None:
    version = publish_bad(registry)
    second = in_memory(contents(registry.store))
    second.delete("models/b/v1.record.json")  # not mirrored yet
    done = purge(registry, version, second)
    assert done.deleted_from_second == done.deleted
    missing = {"models/b/v1.record.json", "models/b/v1.withdrawal-1.json"}
    assert left_of(registry, second) == KEPT - missing
    here = contents(registry.store)
    for key, content in contents(second).items():
        assert content == here[key], key


def test_a_second_store_that_was_set_later_is_purged_later(registry: Registry) -> None:
    version = publish_bad(registry)
    second = in_memory(contents(registry.store))
    purge(registry, version)
    assert purge(registry, version, second).deleted == ()
    assert left_of(registry, second) == KEPT


def test_another_decision_at_the_second_store_is_told(registry: Registry) -> None:
    version = publish_bad(registry)
    second = in_memory(contents(registry.store))
    second.put("models/a/v1.withdrawal-1.json", b"{}")
    with pytest.raises(ConfigurationError, match="another decision"):
        purge(registry, version, second)
    second.delete("models/a/v1.withdrawal-1.json")
    purge(registry, version, second)
    assert left_of(registry, second) == KEPT


class Keeping(MemoryStore):
    """Says that it deleted, and did not."""

    def delete(self, key: str) -> None:
        if key.endswith(".json"):
            super().delete(key)


def test_a_store_that_does_not_delete_is_told_of(registry: Registry) -> None:
    registry.store = Keeping()
    version = publish_bad(registry)
    with pytest.raises(StorageError, match="still has it"):
        purge(registry, version)
    assert registry.models.version("a", 1).is_purged


class Remembering(MemoryStore):
    """Keeps what is deleted; forgets it when it is told to, or does not."""

    def __init__(self, refusal: StorageError | None = None) -> None:
        super().__init__()
        self.past: list[str] = []
        self._refusal = refusal

    def delete(self, key: str) -> None:
        if self.find(key):
            self.past.append(key)
        super().delete(key)

    def erase_history(self, prefix: str) -> int:
        if self._refusal is not None:
            raise self._refusal
        gone = [key for key in self.past if key.startswith(prefix)]
        self.past = [key for key in self.past if key not in gone]
        return len(gone)


def test_what_a_bucket_remembers_goes_too(registry: Registry) -> None:
    registry.store = store = Remembering()
    version = publish_bad(registry)
    store.put("models/a/v22.tflite", b"x")
    store.delete("models/a/v22.tflite")
    store.past.append("models/b/v1.dag.car")  # of a purge that was broken off
    done = purge(registry, version)
    # Two objects, three records, and that one.
    assert (done.old_versions, done.kept) == (2 + 3 + 1, ())
    assert store.past == ["models/a/v22.tflite"]


def test_what_a_bucket_does_not_let_go_of_is_told(registry: Registry) -> None:
    registry.store = Remembering(StorageError("It is under a lock."))
    done = purge(registry, publish_bad(registry))
    assert done.kept == ("The store may keep old versions. It is under a lock.",)
    assert left_of(registry) == KEPT
    registry.store = Remembering(TransientStorageError("Busy."))
    version = registry.publish(tflite(77), "late").version
    with pytest.raises(TransientStorageError):
        purge(registry, version)


def test_suspects_of_purged_content_are_forgotten(registry: Registry) -> None:
    version = publish_bad(registry)
    suspects = Suspects(registry.database)
    suspects.mark(version.object_key, version.cid, "digest_mismatch")
    purge(registry, version)
    assert list(suspects.list()) == []


@pytest.fixture(scope="module")
def bad_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with content that is to be purged, to be copied."""
    home = tmp_path_factory.mktemp("bad")
    with open_registry(home) as registry:
        publish_bad(registry)
    return home


def purge_copy(bad_home: Path, home: Path, script: str) -> list[str]:
    """Purge in a copy of a registry through a store that fails once; then again.

    Returns:
        The calls of the store, until it failed.
    """
    shutil.copytree(bad_home, home)
    database = Database(f"sqlite:///{home}/registry.db")
    inner = LocalStore(home / "objects")
    store = ScriptedStore(script, inner)
    registry = Registry(database, inner, None, None)  # type: ignore[arg-type]  # nothing is received
    version = registry.models.version("b", 1)
    try:
        if not script:
            purge(registry, version, store=store)
            return store.calls
        with pytest.raises(StorageError):
            purge(registry, version, store=store)
        for each in registry.models.history("a", page=1, page_size=9).items:
            # What is not said to be gone is there.
            assert each.is_purged or inner.find(each.object_key)
        purge(registry, version)
        assert left_of(registry) >= KEPT
        # A decision that never reached its row is followed by another.
        assert all(".withdrawal-" in key for key in left_of(registry) - KEPT)
        for name, number in (("a", 1), ("a", 3), ("b", 1)):
            assert registry.models.version(name, number).is_purged
        assert registry.models.latest("a").version == 2
    finally:
        database.close()
        shutil.rmtree(home)
    return store.calls


@pytest.mark.parametrize("letter", ["T", "X"])
def test_a_purge_is_finished_from_wherever_it_broke(
    bad_home: Path, tmp_path: Path, letter: str
) -> None:
    count = len(purge_copy(bad_home, tmp_path / "counted", ""))
    assert count > 20
    for at in range(count):
        purge_copy(bad_home, tmp_path / str(at), "O" * at + letter)


def purged_while_published(registry: Registry, objects: Path) -> LocalStore:
    """Publish bad content as ``a``; return a store that purges it while ``b`` is."""
    version = registry.publish(BAD, "a").version
    inner = registry.store

    class Purging(LocalStore):
        def put(self, key: str, content: bytes) -> None:
            if key == "models/b/v1.record.json":
                purge(registry, version, store=inner)
            super().put(key, content)

    return Purging(objects)


def test_content_that_is_purged_while_it_is_published_is_not(
    registry: Registry, tmp_path: Path
) -> None:
    inner, registry.store = (
        registry.store,
        purged_while_published(registry, tmp_path / "objects"),
    )
    with pytest.raises(VersionPurgedError):
        registry.publish(BAD, "b")
    registry.store = inner
    assert left_of(registry) == {
        "models/a/v1.record.json",
        "models/a/v1.withdrawal-1.json",
    }
    with pytest.raises(NotFoundError):
        registry.models.version("b", 1)


def test_an_admin_does_not_publish_what_shares_a_purged_object(
    registry: Registry, tmp_path: Path
) -> None:
    inner, registry.store = (
        registry.store,
        purged_while_published(registry, tmp_path / "objects"),
    )
    with pytest.raises(UploadInProgressError, match="send the file again"):
        registry.publish(BAD, "b", is_admin=True)
    registry.store = inner
    again = registry.publish(BAD, "b", is_admin=True)
    assert again.version.object_key == "models/b/v1.tflite"
    assert registry.read(1, "b") == BAD


@pytest.mark.parametrize("collection", ["models", "datasets"])
def test_an_object_that_other_content_names_is_left_and_told(
    registry: Registry, collection: str
) -> None:
    """As a record says that somebody put into the bucket."""
    version = registry.publish(BAD, "a").version
    if collection == "models":
        registry.publish(tflite(2), "other")
        row: type[tables.VersionRow] = tables.ModelVersionRow
    else:
        registry.publish_dataset(zip_file("a.txt"), "other")
        row = tables.DatasetVersionRow
    with registry.database.write() as session:
        session.execute(
            update(row)
            .where(row.cid != version.cid)
            .values(sidecar_key=version.object_key)
        )
    before = contents(registry.store)
    with pytest.raises(ConfigurationError, match="Version 1 of 'other' names"):
        purge(registry, version)
    assert set(before) <= set(contents(registry.store))
    assert registry.models.version("a", 1).is_purged, "nothing of it is served"
    with registry.database.write() as session:
        session.execute(
            update(row).where(row.cid != version.cid).values(sidecar_key=None)
        )
    purge(registry, version)
    assert version.object_key not in left_of(registry)


def test_the_sweeper_leaves_what_says_that_it_was_purged(registry: Registry) -> None:
    purge(registry, publish_bad(registry))
    assert registry.sweeper.sweep_strays(grace=timedelta(seconds=-1)).objects == 0
    assert left_of(registry) == KEPT


class Recorder:
    """Remembers what it was told to forget."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def forget(self, *told: object) -> None:
        self.told.append(told)


def test_a_gateway_forgets_what_others_purged_when_it_sweeps(
    registry: Registry, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    archive = zip_file("a.txt")
    kept = registry.publish(tflite(2), "kept").version
    version = registry.publish_dataset(archive).version
    for each in (kept, version):
        (cache / str(each.cid)).mkdir(parents=True)
        (cache / str(each.cid) / "0").write_bytes(b"12345")
        (cache / str(each.cid) / "1.part").write_bytes(b"1")
    recorder = Recorder()
    forgetter = Forgetter(registry.database, [recorder], cache)
    sweeper = Sweeper(
        registry.database, registry.store, None, registry.timing, forgetter=forgetter
    )
    sweeper.sweep()
    assert recorder.told == []
    purge(registry, version)
    assert forgetter.forget_purged() == 6
    assert recorder.told == [(version.cid, version.manifest_cid, version.index_cid)]
    assert [each.name for each in cache.iterdir()] == [str(kept.cid)]
    sweeper.sweep()
    assert len(recorder.told) == 2


def test_what_is_kept_in_memory_is_forgotten(registry: Registry) -> None:
    archive = zip_file("a.txt", "b.txt")
    service = registry.datasets
    version = registry.publish_to(service, archive, "d", "d.zip").version
    manifest = service.manifest(version)
    registry.store.delete(version.manifest_key or "")
    assert service.manifest(version) == manifest, "it is kept"
    service.forget(version.cid, version.manifest_cid, version.index_cid)
    with pytest.raises(NotFoundError):
        service.manifest(version)
    models = registry.models
    large = registry.publish_to(models, BAD, "m", "m.tflite").version
    assert models.sidecar(large)
    registry.store.delete(large.sidecar_key or "")
    assert models.sidecar(large)
    models.forget(large.cid)
    with pytest.raises(NotFoundError):
        models.sidecar(large)


def test_no_cache_is_no_reason_to_fail(tmp_path: Path) -> None:
    cid = cid_of_bytes(b"")
    assert forget_content(tmp_path / "absent", cid) == 0
    (tmp_path / str(cid)).write_bytes(b"not a folder")
    assert forget_content(tmp_path, cid) == 0


def test_the_actor_of_a_purge_is_named(registry: Registry) -> None:
    version = registry.publish(BAD).version
    assert version.publisher == ANN.principal
    done = purge(registry, version).versions[0].withdrawal
    assert done is not None
    assert (done.by, done.by_admin) == ("operator", True)
