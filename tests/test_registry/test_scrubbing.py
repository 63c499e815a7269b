from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from tests.fakes.counting_store import CountingStore
from tests.fakes.scripted_store import ScriptedStore
from tests.test_integration.gateways import postgres_database
from tests.test_registry.conftest import Registry, open_registry
from tests.test_registry.filled import (
    BIG,
    DAMAGES,
    OBJECTS,
    contents,
    damage,
    filled,
    filled_objects,
    first_key,
    in_memory,
    no_sleep,
    objects_at,
)
from tests.test_registry.test_publishing import claim
from vision_o3.content.cid import CID
from vision_o3.db.engine import Database
from vision_o3.db.migrate import migrate
from vision_o3.db.models import ModelVersionRow
from vision_o3.errors import (
    StorageFullError,
    TransientStorageError,
)
from vision_o3.registry.claims import Timing
from vision_o3.registry.inventory import Kind, StoredObject
from vision_o3.registry.pacing import ATTEMPTS
from vision_o3.registry.rebuilding import Rebuilder
from vision_o3.registry.scrubbing import Fault, Scrubber
from vision_o3.registry.suspects import Suspects
from vision_o3.storage.base import ObjectStore
from vision_o3.storage.memory import MemoryStore

__all__ = ["filled", "filled_objects"]


@dataclass
class Site:
    """A filled registry, whose store is in memory, and a second store."""

    registry: Registry
    store: MemoryStore
    second: MemoryStore
    objects: dict[str, StoredObject]
    right: dict[str, bytes]

    @property
    def suspects(self) -> Suspects:
        return Suspects(self.registry.database)

    def scrubber(
        self,
        store: ObjectStore | None = None,
        second: ObjectStore | None = None,
        **more: object,
    ) -> Scrubber:
        return Scrubber(
            self.registry.database,
            store or self.store,
            second or self.second,
            self.suspects,
            self.registry.spool,
            **({"rate_bytes_per_s": 0, "sleep": no_sleep, "parallel": 1} | more),  # type: ignore[arg-type]  # the test's business
        )

    def without_second(self) -> Scrubber:
        scrubber = self.scrubber()
        scrubber._second = None
        return scrubber

    def key(self, kind: Kind) -> str:
        return first_key(self.objects, kind)


@pytest.fixture
def site(
    filled: Path, filled_objects: dict[str, bytes], tmp_path: Path
) -> Iterator[Site]:
    shutil.copy(filled / "registry.db", tmp_path)
    store, second = in_memory(filled_objects), in_memory(filled_objects)
    with open_registry(tmp_path, store) as registry:
        yield Site(registry, store, second, objects_at(store), filled_objects)


def test_right_objects_are_each_read_once(
    filled: Path, filled_objects: dict[str, bytes], tmp_path: Path
) -> None:
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    store = CountingStore(tmp_path / "objects")
    with open_registry(tmp_path, store) as registry:
        site = Site(registry, MemoryStore(), MemoryStore(), {}, {})
        scrubbed = site.scrubber(store, parallel=4).scrub()
    assert scrubbed.clean
    assert scrubbed.checked == OBJECTS
    total = sum(map(len, filled_objects.values()))
    assert scrubbed.bytes_read == total
    assert {key: len(content) for key, content in filled_objects.items()} == (
        store.bytes_read
    )
    assert (scrubbed.wrong, scrubbed.unreadable, scrubbed.repaired) == ((), (), 0)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_reported_marked_and_repaired(
    site: Site, kind: Kind, how: str
) -> None:
    key = site.key(kind)
    damage(site.store, key, how)
    before = contents(site.store)
    scrubbed = site.scrubber().scrub()
    if kind in {Kind.RECORD, Kind.WITHDRAWAL} and how == "extend":
        assert scrubbed.clean  # JSON may end in a line end
        return
    (finding,) = scrubbed.wrong
    assert (finding.key, finding.kind) == (key, kind)
    assert finding.fault is (Fault.MISSING if how == "remove" else Fault.WRONG)
    assert finding.detail
    assert (scrubbed.unrepaired, scrubbed.repaired, scrubbed.clean) == (1, 0, False)
    assert scrubbed.checked == OBJECTS
    assert contents(site.store) == before
    assert [each.key for each in site.suspects.list()] == [key]

    scrubbed = site.scrubber().scrub(marked=True, repair=True)
    assert scrubbed.clean
    assert (scrubbed.unrepaired, scrubbed.repaired) == (0, 1)
    is_said = kind in {Kind.RECORD, Kind.WITHDRAWAL}
    expected = "database" if is_said else "second store"
    assert scrubbed.wrong[0].remedy == f"Repaired from the {expected}."
    assert contents(site.store) == site.right
    assert not list(site.suspects.list())


def test_everything_lost_comes_back(site: Site) -> None:
    for key in site.right:
        site.store.delete(key)
    scrubbed = site.scrubber(parallel=4).scrub(repair=True)
    assert (scrubbed.clean, scrubbed.repaired) == (True, OBJECTS)
    assert contents(site.store) == site.right


def test_swapped_objects_are_both_repaired(site: Site) -> None:
    first, second = [
        key for key, each in site.objects.items() if each.kind is Kind.ARTIFACT
    ][:2]
    for key, other in ((first, second), (second, first)):
        site.store.delete(key)
        site.store.put(key, site.right[other])
    scrubbed = site.scrubber().scrub(repair=True)
    assert {finding.key for finding in scrubbed.wrong} == {first, second}
    assert contents(site.store) == site.right


@pytest.mark.parametrize("kind", [Kind.SIDECAR, Kind.RECORD, Kind.WITHDRAWAL])
def test_what_follows_from_the_rest_needs_no_second_store(
    site: Site, kind: Kind
) -> None:
    damage(site.store, site.key(kind), "cut")
    scrubbed = site.without_second().scrub(repair=True)
    assert (scrubbed.clean, scrubbed.repaired) == (True, 1)
    assert contents(site.store) == site.right


@pytest.mark.parametrize("kind", [Kind.ARTIFACT, Kind.MANIFEST, Kind.INDEX])
def test_what_only_a_second_store_has_is_left_without_one(
    site: Site, kind: Kind
) -> None:
    damage(site.store, site.key(kind), "flip")
    damaged = contents(site.store)
    scrubbed = site.without_second().scrub(repair=True)
    assert (scrubbed.clean, scrubbed.unrepaired) == (False, 1)
    assert "VISION_O3_SECOND_STORE" in scrubbed.wrong[0].remedy
    assert contents(site.store) == damaged


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("kind", [Kind.ARTIFACT, Kind.MANIFEST])
def test_second_store_that_is_wrong_too_replaces_nothing(
    site: Site, kind: Kind, how: str
) -> None:
    key = site.key(kind)
    damage(site.store, key, "flip")
    damage(site.second, key, how)
    damaged = contents(site.store)
    scrubbed = site.scrubber().scrub(repair=True)
    assert scrubbed.unrepaired == 1
    assert "From the second store: The" in scrubbed.wrong[0].remedy
    assert contents(site.store) == damaged
    assert [each.key for each in site.suspects.list()] == [key]


def test_sidecar_and_artifact_wrong_at_once_are_both_repaired(site: Site) -> None:
    damage(site.store, site.key(Kind.SIDECAR), "flip")
    (large,) = (
        key
        for key, each in site.objects.items()
        if each.kind is Kind.ARTIFACT and each.file_size == BIG
    )
    damage(site.store, large, "flip")
    scrubbed = site.scrubber().scrub(repair=True)
    assert (scrubbed.repaired, scrubbed.unrepaired) == (2, 0)
    assert contents(site.store) == site.right


def test_marked_artifact_brings_its_sidecar_along(site: Site) -> None:
    sidecar = site.key(Kind.SIDECAR)
    artifact = site.registry.models.latest("big")
    damage(site.store, sidecar, "flip")
    site.suspects.mark(artifact.object_key, artifact.cid, "digest_mismatch")
    scrubbed = site.scrubber().scrub(marked=True, repair=True)
    assert (scrubbed.checked, scrubbed.repaired) == (2, 1)
    assert scrubbed.wrong[0].key == sidecar
    assert not list(site.suspects.list())


def test_marks_of_objects_that_are_right_are_cleared(site: Site) -> None:
    artifact = site.registry.models.latest("small")
    site.suspects.mark(artifact.object_key, artifact.cid, "digest_mismatch")
    assert site.scrubber().scrub(marked=True).checked == 1
    assert not list(site.suspects.list())
    site.suspects.mark(artifact.object_key, artifact.cid, "digest_mismatch")
    assert site.scrubber().scrub().checked == OBJECTS
    assert not list(site.suspects.list())


def test_mark_of_what_no_version_names_is_dropped(site: Site) -> None:
    cid = site.registry.models.latest("small").cid
    site.suspects.mark("models/none/v1.onnx", cid, "missing")
    scrubbed = site.scrubber().scrub(marked=True)
    assert (scrubbed.checked, scrubbed.clean) == (0, True)
    assert not list(site.suspects.list())


def test_claims_are_passed_over(site: Site) -> None:
    claim(site.registry, "claimed", lease=timedelta(seconds=60))
    assert site.scrubber().scrub().checked == OBJECTS


def test_content_whose_first_version_names_another_is_still_read(site: Site) -> None:
    """A row of the owner that was changed does not hide what others name."""
    with site.registry.database.write() as session:
        other = site.registry.models.latest("other")
        session.execute(
            update(ModelVersionRow)
            .where(ModelVersionRow.object_key == other.object_key)
            .where(ModelVersionRow.record_key == "models/big/v1.record.json")
            .values(object_key="models/big/v9.tflite")
        )
    scrubbed = site.scrubber().scrub()
    assert {finding.key for finding in scrubbed.wrong} == {
        "models/big/v9.tflite",
        "models/big/v1.record.json",
    }
    assert scrubbed.checked == OBJECTS + 1


# ------------------------------------------------------------------- a failing store


@pytest.mark.parametrize("letter", "TCSX")
def test_one_failure_or_wrong_answer_is_no_finding(site: Site, letter: str) -> None:
    for at in range(2 * OBJECTS):
        scripted = ScriptedStore("O" * at + letter, site.store)
        scrubbed = site.scrubber(scripted).scrub(repair=True)
        assert (scrubbed.clean, scrubbed.checked, scrubbed.wrong) == (
            True,
            OBJECTS,
            (),
        )
    assert contents(site.store) == site.right


def test_object_that_cannot_be_read_is_not_called_wrong(site: Site) -> None:
    scrubbed = site.scrubber(ScriptedStore("T" * ATTEMPTS, site.store)).scrub(
        repair=True
    )
    assert not scrubbed.clean
    assert (scrubbed.wrong, scrubbed.unreadable_count) == ((), 1)
    (finding,) = scrubbed.unreadable
    assert (finding.fault, finding.detail) == (Fault.UNREADABLE, "The store is busy.")
    assert not list(site.suspects.list())


def test_store_out_of_reach_ends_the_scrub(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vision_o3.registry.scrubbing._UNREADABLE_IN_A_ROW", 5)
    scrubbed = site.scrubber(ScriptedStore("T" * 999, site.store)).scrub()
    assert (scrubbed.checked, scrubbed.unreadable_count) == (5, 5)
    assert scrubbed.ended_early
    assert "5 objects in a row" in scrubbed.ended_early


class FailingStore(ScriptedStore):
    """Fails to put, each time with the next of some errors."""

    def __init__(self, inner: ObjectStore, *errors: Exception) -> None:
        super().__init__("", inner)
        self.errors = list(errors)

    def put_file(self, key: str, path: Path) -> None:
        if self.errors:
            raise self.errors.pop(0)
        super().put_file(key, path)


def test_full_store_is_told_and_not_tried_again(site: Site) -> None:
    for kind in (Kind.ARTIFACT, Kind.MANIFEST):
        damage(site.store, site.key(kind), "flip")
    full = FailingStore(site.store, StorageFullError("The disk is full."))
    scrubbed = site.scrubber(full).scrub(repair=True)
    assert (scrubbed.repaired, scrubbed.unrepaired) == (0, 2)
    assert {finding.remedy for finding in scrubbed.wrong} == {
        "Not repaired. The disk is full.",
        "Not repaired, as there is no space left.",
    }
    assert full.calls.count("put_file") == 0
    scrubbed = site.scrubber().scrub(marked=True, repair=True)
    assert (scrubbed.repaired, scrubbed.unrepaired) == (2, 0)
    assert contents(site.store) == site.right


def test_store_that_fails_after_the_deletion_is_repaired_next_time(site: Site) -> None:
    key = site.key(Kind.ARTIFACT)
    damage(site.store, key, "flip")
    busy = [TransientStorageError("The store is busy.")] * ATTEMPTS
    scrubbed = site.scrubber(FailingStore(site.store, *busy)).scrub(repair=True)
    assert scrubbed.unrepaired == 1
    assert site.store.find(key) is None
    assert site.scrubber().scrub(marked=True, repair=True).repaired == 1
    assert contents(site.store) == site.right


def test_lost_answers_of_a_repair_do_no_harm(site: Site) -> None:
    key = site.key(Kind.ARTIFACT)
    cid = site.objects[key].cid
    for at in range(6):
        damage(site.store, key, "flip")
        site.suspects.mark(key, cid, "digest_mismatch")
        scripted = ScriptedStore("O" * at + "X", site.store)
        scrubbed = site.scrubber(scripted).scrub(marked=True, repair=True)
        assert (scrubbed.repaired, scrubbed.clean) == (1, True)
        assert contents(site.store) == site.right


# --------------------------------------------------------------------------- records


def test_record_of_another_version_may_be_right_and_is_left(
    site: Site, filled_objects: dict[str, bytes]
) -> None:
    """As when the database was restored from a wrong copy."""
    key = "models/small/v2.record.json"
    said = filled_objects[key].replace(
        site.registry.models.latest("small").id.encode(),
        b"01234567-89ab-cdef-0123-456789abcdef",
    )
    site.store.delete(key)
    site.store.put(key, said)
    scrubbed = site.scrubber().scrub(repair=True)
    (finding,) = scrubbed.wrong
    assert finding.detail.endswith("they differ in id.")
    assert "perhaps it is the database" in finding.remedy
    assert contents(site.store)[key] == said


def test_record_with_another_text_is_told_and_rewritten(site: Site) -> None:
    key = "models/small/v1.record.json"
    said = site.right[key].replace("ß".encode(), b"s")
    site.store.delete(key)
    site.store.put(key, said)
    scrubbed = site.scrubber().scrub(repair=True)
    assert scrubbed.wrong[0].detail.endswith("they differ in description.")
    assert contents(site.store) == site.right


# --------------------------------------------------------------------- rate, stopping


def test_rate_is_kept(site: Site) -> None:
    total = sum(map(len, site.right.values()))
    now = 0.0

    def sleep(wait_s: float) -> None:
        nonlocal now
        assert wait_s >= 0
        now += wait_s

    scrubber = site.scrubber(rate_bytes_per_s=1 << 20, clock=lambda: now, sleep=sleep)
    scrubbed = scrubber.scrub()
    assert scrubbed.bytes_read == total
    assert total / (1 << 20) - 1 <= now <= total / (1 << 20)


@pytest.mark.parametrize("parallel", [1, 4])
def test_stopping_gives_what_was_found_so_far(site: Site, parallel: int) -> None:
    for kind in (Kind.ARTIFACT, Kind.RECORD):
        for key, each in site.objects.items():
            if each.kind is kind:
                damage(site.store, key, "cut")

    def stop(checked: int, bytes_read: int, faults: int) -> None:
        assert bytes_read >= 0
        if checked == 3:
            assert faults
            raise KeyboardInterrupt

    scrubbed = site.scrubber(parallel=parallel).scrub(progress=stop)
    assert scrubbed.ended_early == "The scrub was stopped."
    assert scrubbed.checked == 3
    assert scrubbed.wrong
    assert not scrubbed.clean


def test_database_that_is_out_of_reach_ends_the_scrub(
    site: Site, tmp_path: Path
) -> None:
    site.registry.database.close()
    site.registry.database = Database(f"sqlite:///{tmp_path}/absent/registry.db")
    scrubbed = site.scrubber().scrub()
    assert (scrubbed.checked, scrubbed.clean) == (0, False)
    assert scrubbed.ended_early
    assert "database did not answer" in scrubbed.ended_early


def test_findings_are_logged_with_what_is_wrong(site: Site) -> None:
    damage(site.store, site.key(Kind.ARTIFACT), "flip")
    damage(site.store, site.key(Kind.INDEX), "remove")
    with capture_logs() as logs:
        site.scrubber().scrub(repair=True)
    events = [line["event"] for line in logs]
    assert sorted(events) == [
        "scrub.missing",
        "scrub.repaired",
        "scrub.repaired",
        "scrub.wrong",
    ]


@pytest.mark.integration
def test_scrub_on_postgresql(site: Site) -> None:
    with postgres_database() as url:
        migrate(url)
        database = Database(url)
        try:
            Rebuilder(database, site.store, Timing()).rebuild()
            site.registry.database.close()
            site.registry.database = database
            damage(site.store, site.key(Kind.ARTIFACT), "flip")
            scrubbed = site.scrubber(parallel=4).scrub()
            assert (scrubbed.checked, scrubbed.unrepaired) == (OBJECTS, 1)
            scrubbed = site.scrubber().scrub(marked=True, repair=True)
            assert (scrubbed.checked, scrubbed.clean) == (1, True)
            assert isinstance(scrubbed.wrong[0].cid, CID)
        finally:
            database.close()
    assert contents(site.store) == site.right
