"""Withdrawals survive what versions survive: rebuilding, mirrors, scrubs, sweeps."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from tests.fakes.archive_files import zip_file
from tests.fakes.model_files import tflite
from tests.test_registry.conftest import Registry, open_registry
from tests.test_registry.filled import contents, in_memory, no_sleep
from tests.test_registry.withdrawals import (
    blocked,
    deprecated,
    lifted,
    purge,
)
from vision_o3.db.engine import Database
from vision_o3.db.migrate import migrate
from vision_o3.errors import ConfigurationError, VersionBlockedError, VersionPurgedError
from vision_o3.registry.mirroring import Mirror
from vision_o3.registry.rebuilding import Rebuilder, Rebuilt
from vision_o3.registry.scrubbing import Fault, Scrubber
from vision_o3.registry.suspects import Suspects
from vision_o3.registry.values import Version
from vision_o3.storage.base import ObjectStore
from vision_o3.storage.keys import withdrawal_key
from vision_o3.storage.memory import MemoryStore

BAD = tflite(9, 2 << 20)
LAST = "models/m/v3.withdrawal-3.json"


def fill(registry: Registry) -> None:
    """Publish versions and let each kind of thing become of one."""
    for seed in (1, 2, 3):
        registry.publish(tflite(seed))
    registry.models.withdraw("m", 1, deprecated())
    registry.models.withdraw("m", 2, blocked(is_admin=True))
    for wish in (deprecated(), lifted(), blocked("Ghosts.")):
        registry.models.withdraw("m", 3, wish)
    registry.publish(tflite(4), "lifted")
    registry.models.withdraw("lifted", 1, blocked())
    registry.models.withdraw("lifted", 1, lifted())
    registry.publish(BAD, "purged", description="Anna")
    registry.publish(tflite(5), "purged")
    registry.publish_dataset(zip_file("a.txt"), "set")
    registry.datasets.withdraw("set", 1, blocked())
    purge(registry, registry.models.version("purged", 1))


@pytest.fixture(scope="module")
def withdrawn_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("withdrawn")
    with open_registry(home) as registry:
        fill(registry)
    return home


@pytest.fixture
def registry(withdrawn_home: Path, tmp_path: Path) -> Iterator[Registry]:
    shutil.copytree(withdrawn_home, tmp_path, dirs_exist_ok=True)
    with open_registry(tmp_path) as registry:
        registry.store = in_memory(contents(registry.store))
        yield registry


def all_of(registry: Registry) -> list[Version]:
    return [
        version
        for service, names in (
            (registry.models, ("lifted", "m", "purged")),
            (registry.datasets, ("set",)),
        )
        for name in names
        for version in service.history(name, page=1, page_size=99).items
    ]


def rebuild(registry: Registry) -> Rebuilt:
    return Rebuilder(registry.database, registry.store, registry.timing).rebuild()


def with_empty_index(registry: Registry, home: Path) -> None:
    url = f"sqlite:///{home}/new.db"
    migrate(url)
    registry.database.close()
    registry.database = Database(url)


def copy_database(source: Path, target: Path) -> None:
    with (
        closing(sqlite3.connect(source)) as old,
        closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)


# --------------------------------------------------------------------------- rebuild


def test_a_rebuilt_index_has_blocked_what_was_blocked(
    registry: Registry, tmp_path: Path
) -> None:
    before = all_of(registry)
    assert {v.withdrawal and v.withdrawal.state for v in before} == {
        None,
        "deprecated",
        "blocked",
        "purged",
    }
    with_empty_index(registry, tmp_path)
    rebuilt = rebuild(registry)
    assert (rebuilt.unreadable, rebuilt.added) == ((), len(before))
    assert all_of(registry) == before
    assert registry.models.latest("m").version == 1
    assert registry.models.latest("purged").version == 2
    with pytest.raises(VersionBlockedError):
        registry.datasets.latest("set")
    again = rebuild(registry)
    assert (again.added, again.present, again.withdrawn) == (0, len(before), 0)
    # The numbers of decisions go on where they were.
    version = registry.models.withdraw("lifted", 1, blocked())
    assert version.withdrawal is not None
    assert version.withdrawal.number == 3


def test_an_index_that_is_older_learns_what_was_decided_since(
    tmp_path: Path,
) -> None:
    with open_registry(tmp_path) as registry:
        for seed in (1, 2, 3):
            registry.publish(tflite(seed))
        registry.publish(BAD, "purged", description="Anna", tags=("anna",))
        copy_database(tmp_path / "registry.db", tmp_path / "older.db")
        for wish in (deprecated(), lifted(), blocked()):
            registry.models.withdraw("m", 3, wish)
        registry.models.withdraw("m", 1, blocked())
        purge(registry, registry.models.version("purged", 1))
        newer = [
            *registry.models.history("m", page=1, page_size=9).items,
            registry.models.version("purged", 1),
        ]
        registry.database.close()
        registry.database = Database(f"sqlite:///{tmp_path}/older.db")
        assert registry.models.latest("m").version == 3
        rebuilt = rebuild(registry)
        assert (rebuilt.unreadable, rebuilt.added, rebuilt.withdrawn) == ((), 0, 3)
        assert [
            *registry.models.history("m", page=1, page_size=9).items,
            registry.models.version("purged", 1),
        ] == newer
        assert registry.models.latest("m").version == 2
        assert rebuild(registry).withdrawn == 0


def test_the_number_of_a_purged_version_is_not_used_by_an_older_index(
    tmp_path: Path,
) -> None:
    with open_registry(tmp_path) as registry:
        registry.publish(tflite(1))
        copy_database(tmp_path / "registry.db", tmp_path / "older.db")
        purge(registry, registry.publish(BAD).version)
        before = contents(registry.store)
        registry.database.close()
        registry.database = Database(f"sqlite:///{tmp_path}/older.db")
        with pytest.raises(ConfigurationError, match="rebuild-index"):
            registry.publish(tflite(2))
        assert contents(registry.store) == before
        assert rebuild(registry).added == 1
        assert registry.publish(tflite(2)).version.version == 3


def test_an_index_that_is_newer_is_left_as_it_is(registry: Registry) -> None:
    registry.store.delete(LAST)  # lost: the decision before it lifted a withdrawal
    before = all_of(registry)
    assert rebuild(registry).withdrawn == 0
    assert all_of(registry) == before


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 9999, b"x" * (17 << 10)])
def test_a_version_is_not_added_without_what_was_decided_on_it(
    registry: Registry, tmp_path: Path, content: bytes
) -> None:
    registry.store.delete(LAST)
    registry.store.put(LAST, content)
    with_empty_index(registry, tmp_path)
    (problem,) = rebuild(registry).unreadable
    assert problem.key == "models/m/v3.record.json"
    assert problem.reason
    assert registry.models.history("m", page=1, page_size=9).total == 2
    registry.store.delete(LAST)
    rebuilt = rebuild(registry)
    assert (rebuilt.unreadable, rebuilt.added) == ((), 1)
    assert registry.models.version("m", 3).withdrawal is None


def test_a_decision_on_another_version_is_not_taken(
    registry: Registry, tmp_path: Path
) -> None:
    content = registry.store.get(LAST, max_size=1 << 20)
    own = registry.models.version("m", 3).id.encode()
    other = registry.models.version("m", 2).id.encode()
    registry.store.delete(LAST)
    registry.store.put(LAST, content.replace(own, other))
    with_empty_index(registry, tmp_path)
    (problem,) = rebuild(registry).unreadable
    assert "another version" in problem.reason


def test_what_was_purged_half_is_purged_when_it_is_rebuilt(
    registry: Registry, tmp_path: Path
) -> None:
    """The row said so, and the record was not replaced yet, when all was lost."""
    registry.publish(BAD + b"?", "half", description="Bob")
    record = "models/half/v1.record.json"
    whole = registry.store.get(record, max_size=1 << 20)
    purge(registry, registry.models.version("half", 1))
    registry.store.delete(record)
    registry.store.put(record, whole)
    with_empty_index(registry, tmp_path)
    assert rebuild(registry).unreadable == ()
    version = registry.models.version("half", 1)
    assert (version.is_purged, version.description) == (True, "")
    purge(registry, version)  # goes on where it was broken off
    assert b"Bob" not in registry.store.get(record, max_size=1 << 20)


def test_the_record_alone_says_that_it_was_purged(
    registry: Registry, tmp_path: Path
) -> None:
    registry.store.delete("models/purged/v1.withdrawal-1.json")
    with_empty_index(registry, tmp_path)
    assert rebuild(registry).unreadable == ()
    assert registry.models.version("purged", 1).is_purged


# ---------------------------------------------------------------------------- mirror


def mirror(registry: Registry, target: ObjectStore) -> Mirror:
    return Mirror(registry.store, target, registry.spool, sleep=no_sleep)


def test_a_mirror_has_all_decisions(registry: Registry, tmp_path: Path) -> None:
    target = MemoryStore()
    mirrored = mirror(registry, target).mirror()
    assert mirrored.complete, mirrored.problems
    assert contents(target) == contents(registry.store)
    again = mirror(registry, target).mirror(verify=True)
    assert (again.complete, again.copied) == (True, 0)
    before = all_of(registry)
    with_empty_index(registry, tmp_path)
    registry.store = target
    rebuild(registry)
    assert all_of(registry) == before


def test_a_mirror_learns_of_later_decisions(registry: Registry) -> None:
    target = MemoryStore()
    assert mirror(registry, target).mirror().complete
    registry.models.withdraw("lifted", 1, blocked())
    mirrored = mirror(registry, target).mirror()
    assert (mirrored.complete, mirrored.copied) == (True, 1)
    assert contents(target) == contents(registry.store)


def test_decisions_come_before_the_record(registry: Registry) -> None:
    class Noting(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self.keys: list[str] = []

        def put(self, key: str, content: bytes) -> None:
            self.keys.append(key)
            super().put(key, content)

    target = Noting()
    assert mirror(registry, target).mirror().complete
    record = target.keys.index("models/m/v3.record.json")
    decisions = [target.keys.index(LAST.replace("3.json", f"{n}.json")) for n in "123"]
    assert decisions == sorted(decisions)
    assert max(decisions) < record


def test_a_mirror_that_still_has_what_was_purged_is_told_of(
    registry: Registry,
) -> None:
    registry.publish(BAD + b"?", "late")
    target = MemoryStore()
    assert mirror(registry, target).mirror().complete
    before = contents(target)
    purge(registry, registry.models.version("late", 1))
    mirrored = mirror(registry, target).mirror()
    (problem,) = mirrored.problems
    assert (problem.key, problem.code) == (
        "models/late/v1.record.json",
        "version_purged",
    )
    assert "admin purge" in problem.detail
    # Whoever rebuilds from the mirror finds it purged all the same.
    decision = "models/late/v1.withdrawal-1.json"
    assert set(contents(target)) - set(before) == {decision}
    purge(registry, registry.models.version("late", 1), target)
    assert contents(target) == contents(registry.store)
    assert mirror(registry, target).mirror().complete


def test_what_was_purged_at_the_target_alone_is_not_brought_back(
    registry: Registry,
) -> None:
    registry.publish(BAD + b"?", "late")
    target = MemoryStore()
    whole = in_memory(contents(registry.store))
    purge(registry, registry.models.version("late", 1), target)
    for key, content in contents(registry.store).items():
        target.put(key, content)
    registry.store = whole
    before = contents(target)
    (problem,) = mirror(registry, target).mirror().problems
    assert "purged at the target" in problem.detail
    assert contents(target) == before


def test_a_number_far_ahead_does_not_keep_a_mirror_busy(registry: Registry) -> None:
    """Whoever writes to the bucket may put one there."""
    last = registry.store.get(LAST, max_size=1 << 20)
    far = 999_999_999
    key = withdrawal_key("models", "m", 3, far)
    registry.store.put(key, last.replace(b'"number":3', b'"number":%d' % far))
    target = MemoryStore()
    assert mirror(registry, target).mirror().complete
    assert contents(target) == contents(registry.store)


class Purging(MemoryStore):
    """Lets somebody purge a version right before one of its objects is used."""

    def __init__(
        self, objects: MemoryStore, use: str, key: str, purge: Callable[[], object]
    ) -> None:
        super().__init__()
        self.__dict__.update(objects.__dict__)
        self._before: dict[tuple[str, str], Callable[[], object]] = {(use, key): purge}

    def put_file(self, key: str, path: Path) -> None:
        self._before.pop(("put_file", key), lambda: None)()
        super().put_file(key, path)

    def get(self, key: str, *, max_size: int) -> bytes:
        self._before.pop(("get", key), lambda: None)()
        return super().get(key, max_size=max_size)


@pytest.mark.parametrize("suffix", ["tflite", "dag.car"])
def test_a_mirror_does_not_keep_what_is_purged_while_it_is_copied(
    registry: Registry, suffix: str
) -> None:
    version = registry.publish(BAD + b"?", "late").version
    objects = MemoryStore()
    target = Purging(
        objects,
        "put_file",
        f"models/late/v1.{suffix}",
        lambda: purge(registry, version, second=objects),
    )
    first = mirror(registry, target).mirror()
    assert (first.complete, first.skipped) == (True, 1)
    assert not [key for key in contents(target) if key.startswith("models/late/")]
    assert mirror(registry, target).mirror().complete
    assert contents(target) == contents(registry.store)


def test_what_a_mirror_has_of_a_purged_version_is_told_of_without_its_record(
    registry: Registry,
) -> None:
    version = registry.publish(BAD + b"?", "late").version
    target = MemoryStore()  # the mirror was broken off before the record
    target.put(version.object_key, BAD + b"?")
    purge(registry, version)
    for _ in range(2):
        (problem,) = mirror(registry, target).mirror().problems
        assert problem.code == "version_purged"
    purge(registry, version, target)
    assert mirror(registry, target).mirror().complete
    assert contents(target) == contents(registry.store)


def test_another_decision_at_the_target_is_told_of(registry: Registry) -> None:
    target = in_memory(contents(registry.store))
    content = target.get(LAST, max_size=1 << 20)
    target.delete(LAST)
    target.put(LAST, content.replace(b"Ghosts.", b"Goblins"))
    before = contents(target)
    (problem,) = mirror(registry, target).mirror().problems
    assert (problem.key, problem.code) == (LAST, "already_exists")
    assert contents(target) == before


# ----------------------------------------------------------------------------- scrub


def scrubber(registry: Registry, second: ObjectStore | None = None) -> Scrubber:
    return Scrubber(
        registry.database,
        registry.store,
        second,
        Suspects(registry.database),
        registry.spool,
        rate_bytes_per_s=0,
        sleep=no_sleep,
    )


def test_a_scrub_of_withdrawn_versions_is_clean(registry: Registry) -> None:
    assert scrubber(registry).scrub().clean
    assert scrubber(registry).scrub().clean


@pytest.mark.parametrize("key", [LAST, "models/purged/v1.withdrawal-1.json"])
def test_a_decision_that_was_lost_is_written_anew(registry: Registry, key: str) -> None:
    right = contents(registry.store)
    registry.store.delete(key)
    (finding,) = scrubber(registry).scrub(repair=True).wrong
    assert (finding.key, finding.fault, finding.repaired) == (key, Fault.MISSING, True)
    assert contents(registry.store) == right


def test_a_good_decision_that_says_otherwise_is_left(registry: Registry) -> None:
    content = registry.store.get(LAST, max_size=1 << 20)
    registry.store.delete(LAST)
    registry.store.put(LAST, content.replace(b"Ghosts.", b"Goblins"))
    before = contents(registry.store)
    (finding,) = scrubber(registry).scrub(repair=True).wrong
    assert (finding.key, finding.repaired) == (LAST, False)
    assert "says otherwise" in finding.remedy
    assert contents(registry.store) == before


def test_a_scrub_does_not_bring_purged_content_back(registry: Registry) -> None:
    registry.publish(BAD + b"?", "late")
    second = in_memory(contents(registry.store))
    purge(registry, registry.models.version("late", 1))
    right = contents(registry.store)
    assert scrubber(registry, second).scrub(repair=True).clean
    assert contents(registry.store) == right
    key = "models/late/v1.record.json"
    registry.store.delete(key)
    registry.store.put(key, second.get(key, max_size=1 << 20))
    (finding,) = scrubber(registry, second).scrub(repair=True).wrong
    assert (finding.key, finding.repaired) == (key, True)
    assert contents(registry.store) == right, "the record is the reduced one again"


@pytest.mark.parametrize("suffix", ["tflite", "dag.car", "record.json"])
def test_a_scrub_does_not_bring_back_what_is_purged_while_it_repairs(
    registry: Registry, suffix: str
) -> None:
    version = registry.publish(BAD + b"?", "late", description="Anna").version
    second = in_memory(contents(registry.store))
    objects = in_memory(contents(registry.store))
    registry.store = objects
    key = f"models/late/v1.{suffix}"
    objects.delete(key)
    registry.store = Purging(
        objects, "put_file", key, lambda: purge(registry, version, second, objects)
    )
    scrubbed = scrubber(registry, second).scrub(repair=True)
    assert scrubbed.clean, scrubbed
    assert {each for each in contents(objects) if "/late/" in each} == {
        "models/late/v1.record.json",
        "models/late/v1.withdrawal-1.json",
    }
    assert b"Anna" not in objects.get("models/late/v1.record.json", max_size=1 << 20)
    assert scrubber(registry).scrub() == scrubber(registry).scrub(repair=True)


def test_what_was_purged_since_a_scrub_began_is_no_fault(registry: Registry) -> None:
    version = registry.publish(BAD + b"?", "late").version
    objects = in_memory(contents(registry.store))
    registry.store = Purging(
        objects, "get", version.object_key, lambda: purge(registry, version)
    )
    scrubbed = scrubber(registry).scrub()
    assert scrubbed.clean, scrubbed
    assert registry.models.version("late", 1).is_purged
    assert not list(Suspects(registry.database).list())


# ----------------------------------------------------------------------------- sweep


def test_a_sweep_removes_what_came_back_of_a_purged_version(
    registry: Registry,
) -> None:
    before = contents(registry.store)
    registry.store.put("models/purged/v1.tflite", BAD)
    swept = registry.sweeper.sweep_strays(grace=timedelta(seconds=-1))
    assert swept.objects == 1
    assert contents(registry.store) == before


def test_a_sweep_leaves_decisions_as_long_as_their_versions(
    registry: Registry,
) -> None:
    before = contents(registry.store)
    registry.store.put("models/m/v3.withdrawal-4.json", b"of one who was broken off")
    registry.store.put("models/m/v9.withdrawal-1.json", b"of no version")
    swept = registry.sweeper.sweep_strays(grace=timedelta(seconds=-1))
    assert swept.objects == 1
    left = contents(registry.store)
    assert set(left) - set(before) == {"models/m/v3.withdrawal-4.json"}


def test_a_purged_line_goes_on(registry: Registry) -> None:
    with pytest.raises(VersionPurgedError):
        registry.publish(BAD, "purged")
    third = registry.publish(tflite(6), "purged").version
    assert third.version == 3
