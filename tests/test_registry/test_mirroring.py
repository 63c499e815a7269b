from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.model_files import tflite
from tests.fakes.scripted_store import ScriptedStore
from tests.test_registry.conftest import open_registry
from tests.test_registry.filled import (
    DAMAGES,
    OBJECTS,
    VERSIONS,
    contents,
    damage,
    filled,
    filled_objects,
    first_key,
    in_memory,
    no_sleep,
    objects_at,
)
from vision_o3.db.engine import Database
from vision_o3.db.migrate import migrate
from vision_o3.errors import StorageFullError
from vision_o3.registry.claims import Timing
from vision_o3.registry.inventory import Kind, verify_object
from vision_o3.registry.mirroring import Mirror
from vision_o3.registry.rebuilding import Rebuilder
from vision_o3.registry.services import DatasetService, ModelService
from vision_o3.registry.spool import Spool
from vision_o3.storage.base import ObjectStore
from vision_o3.storage.local import LocalStore
from vision_o3.storage.memory import MemoryStore

__all__ = ["filled", "filled_objects"]

Objects = dict[str, bytes]


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spool]:
    directory = tmp_path_factory.mktemp("spool")
    spool = Spool(directory, max_size=1 << 30, min_free=0)
    yield spool
    spool.close()
    assert not list(directory.iterdir())


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """Small objects of every kind, with content that is shared, for many examples."""
    home = tmp_path_factory.mktemp("few")
    with open_registry(home) as registry:
        registry.publish(tflite(1), "a")
        registry.publish(tflite(2, (1 << 20) + 5), "a")
        registry.publish(tflite(1), "b")
    return contents(LocalStore(home / "objects"))


def mirror_of(source: ObjectStore, target: ObjectStore, spool: Spool) -> Mirror:
    return Mirror(source, target, spool, parallel=1, sleep=no_sleep)


def check_target(target: ObjectStore, right: Objects) -> None:
    """Whatever the target's records name is there and right; nothing else is wrong."""
    for stored in objects_at(target).values():
        verify_object(target, stored)
    there = contents(target)
    assert there == {key: right[key] for key in there}


@pytest.mark.parametrize("parallel", [1, 4])
def test_mirror_has_all_that_the_source_has(
    filled_objects: Objects, spool: Spool, tmp_path: Path, parallel: int
) -> None:
    source, target = in_memory(filled_objects), LocalStore(tmp_path / "target")
    mirrored = Mirror(source, target, spool, parallel=parallel).mirror()
    assert mirrored.complete
    assert (mirrored.versions, mirrored.copied) == (VERSIONS, OBJECTS)
    assert mirrored.present == 0
    assert mirrored.bytes == sum(map(len, filled_objects.values()))
    assert contents(target) == filled_objects

    again = Mirror(source, target, spool, parallel=parallel).mirror()
    assert (again.complete, again.versions) == (True, VERSIONS)
    assert (again.copied, again.bytes, again.present) == (0, 0, OBJECTS)
    assert contents(target) == filled_objects


def test_mirror_of_an_empty_store_is_empty(spool: Spool) -> None:
    target = MemoryStore()
    mirrored = mirror_of(MemoryStore(), target, spool).mirror()
    assert (mirrored.complete, mirrored.versions) == (True, 0)
    assert contents(target) == {}


def test_what_is_there_is_not_read_again_unless_wanted(
    filled_objects: Objects, spool: Spool
) -> None:
    source = ScriptedStore("", in_memory(filled_objects))
    target = ScriptedStore("", in_memory(filled_objects))
    assert mirror_of(source, target, spool).mirror().complete
    # Records and the withdrawal alone, from both.
    assert source.calls.count("get") == target.calls.count("get") == VERSIONS + 1
    assert "get_range" not in target.calls
    assert mirror_of(source, target, spool).mirror(verify=True).complete
    assert "get_range" in target.calls
    assert "get_range" not in source.calls


def test_objects_that_belong_to_no_version_are_left_out(
    filled_objects: Objects, spool: Spool
) -> None:
    more = {
        "probe/ab12": b"x",
        "models/small/notes.txt": b"x",
        "models/small/v3.tflite": b"half an upload",
        "models/new/v1.dag.car": b"half an upload",
    }
    target = MemoryStore()
    mirrored = mirror_of(in_memory(filled_objects | more), target, spool).mirror()
    assert (mirrored.complete, mirrored.versions) == (True, VERSIONS)
    assert contents(target) == filled_objects


def test_upload_at_work_is_left_for_later(
    filled_objects: Objects, spool: Spool
) -> None:
    source, target = in_memory(filled_objects), MemoryStore()
    asked = []

    def is_claimed(*place: object) -> bool:
        asked.append(place)
        return place == ("models", "small", 2)

    mirrored = mirror_of(source, target, spool).mirror(is_claimed=is_claimed)
    assert (mirrored.complete, mirrored.skipped) == (True, 1)
    assert len(asked) == VERSIONS
    missing = {key for key in filled_objects if key.startswith("models/small/v2.")}
    assert set(contents(target)) == set(filled_objects) - missing
    assert mirror_of(source, target, spool).mirror().copied == len(missing)


def test_upload_withdrawn_meanwhile_is_left_out(
    filled_objects: Objects, spool: Spool
) -> None:
    source, target = in_memory(filled_objects), MemoryStore()
    record = "models/small/v2.record.json"

    def withdraw(*place: object) -> bool:
        if place == ("models", "small", 2):
            source.delete(record)
        return False

    mirrored = mirror_of(source, target, spool).mirror(is_claimed=withdraw)
    assert (mirrored.complete, mirrored.skipped) == (True, 1)
    assert record not in contents(target)
    check_target(target, filled_objects)


def test_version_that_the_listing_lacked_is_copied(
    filled_objects: Objects, spool: Spool
) -> None:
    class LateListing(MemoryStore):
        def list(self, prefix: str = "") -> Iterator[Any]:
            for found in super().list(prefix):
                if found.key != "models/small/v1.record.json":
                    yield found

    source, target = LateListing(), MemoryStore()
    for key, content in filled_objects.items():
        source.put(key, content)
    assert mirror_of(source, target, spool).mirror().complete
    assert contents(target) == filled_objects


# ------------------------------------------------------------------------- damage


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("how", DAMAGES)
def test_damage_at_the_source_is_reported_and_not_copied(
    filled_objects: Objects, spool: Spool, kind: Kind, how: str
) -> None:
    source, target = in_memory(filled_objects), MemoryStore()
    key = first_key(objects_at(source), kind)
    if kind is Kind.RECORD:
        key = "models/small/v1.record.json"
    damage(source, key, how)
    if kind is Kind.RECORD and how in {"flip", "extend"}:
        return  # may be a good record still: which text is right, nobody knows here
    if kind is Kind.WITHDRAWAL and how in {"extend", "remove"}:
        return  # good still; or nothing tells that it was there
    mirrored = mirror_of(source, target, spool).mirror()
    # Others are content of two versions.
    users = 1 if kind in {Kind.RECORD, Kind.WITHDRAWAL} else 2
    assert not mirrored.complete
    assert {problem.key for problem in mirrored.problems} == {key}
    assert mirrored.versions == VERSIONS - users
    assert all("ource" in p.detail or how == "remove" for p in mirrored.problems)
    assert key not in contents(target)
    check_target(target, filled_objects)
    source.delete(key)
    source.put(key, filled_objects[key])
    assert mirror_of(source, target, spool).mirror().complete
    assert contents(target) == filled_objects


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.RECORD])
@pytest.mark.parametrize("how", DAMAGES)
def test_damage_at_the_target_is_found_and_left(
    filled_objects: Objects, spool: Spool, kind: Kind, how: str
) -> None:
    source, target = in_memory(filled_objects), in_memory(filled_objects)
    key = first_key(objects_at(source), kind)
    damage(target, key, how)
    damaged = contents(target)
    mirrored = mirror_of(source, target, spool).mirror(verify=how == "flip")
    if how == "remove":
        assert (mirrored.complete, mirrored.copied) == (True, 1)
        assert contents(target) == filled_objects
        return
    assert {problem.key for problem in mirrored.problems} == {key}
    assert "Remove it there and mirror again." in mirrored.problems[0].detail
    assert contents(target) == damaged


def test_rest_of_a_withdrawn_upload_at_the_target_is_found(
    filled_objects: Objects, spool: Spool
) -> None:
    """Of the same size, without a record: not taken for what it should be."""
    key = "models/small/v2.tflite"
    target = in_memory({key: tflite(9)})
    mirrored = mirror_of(in_memory(filled_objects), target, spool).mirror()
    assert {problem.key for problem in mirrored.problems} == {key}
    assert "models/small/v2.record.json" not in contents(target)


def test_other_version_at_the_target_is_told_and_left(
    filled_objects: Objects, spool: Spool, tmp_path: Path
) -> None:
    with open_registry(tmp_path) as registry:
        registry.publish(tflite(9), "small")
    target = LocalStore(tmp_path / "objects")
    before = contents(target)
    mirrored = mirror_of(in_memory(filled_objects), target, spool).mirror()
    (problem,) = mirrored.problems
    assert problem.key == "models/small/v1.record.json"
    assert problem.code == "already_exists"
    assert mirrored.versions == VERSIONS - 1
    assert before.items() <= contents(target).items()


# ------------------------------------------------------------------- failing stores


class Killed(BaseException):
    """The process is gone."""


class DyingStore(ScriptedStore):
    """Calls ``D`` end the process after they were done, ``d`` before."""

    def __init__(self, script: str, inner: ObjectStore) -> None:
        super().__init__("", inner)
        self.letters = iter(script)

    def _step(self, call: str) -> Any:
        letter = next(self.letters, "O")
        if letter == "d":
            raise Killed
        return _dying(super()._step(call), letter)


class _dying:  # noqa: N801 - a context manager
    def __init__(self, inner: Any, letter: str) -> None:
        self.inner = inner
        self.letter = letter

    def __enter__(self) -> str:
        entered: str = self.inner.__enter__()
        return entered

    def __exit__(self, *error: object) -> None:
        self.inner.__exit__(*error)
        if self.letter == "D":
            raise Killed


@pytest.mark.parametrize("side", ["source", "target"])
def test_mirror_killed_at_any_call_is_continued(
    few: Objects, spool: Spool, side: str
) -> None:
    calls = 0
    for letter in "dD":
        for at in range(999):
            target = MemoryStore()
            stores: dict[str, ObjectStore] = {
                "source": in_memory(few),
                "target": target,
            }
            dying = DyingStore("O" * at + letter, stores[side])
            stores[side] = dying
            try:
                mirror_of(stores["source"], stores["target"], spool).mirror()
            except Killed:
                check_target(target, few)
            else:
                calls += at
                break
            assert mirror_of(in_memory(few), target, spool).mirror().complete
            assert contents(target) == few
    assert calls >= 20


SCRIPTS = st.text("OOOTXCS", max_size=60)


@given(source=SCRIPTS, target=SCRIPTS, kills=st.lists(st.integers(0, 40), max_size=3))
@settings(max_examples=60, deadline=None)
def test_faults_and_kills_never_leave_a_record_without_its_objects(
    few: Objects, spool: Spool, source: str, target: str, kills: list[int]
) -> None:
    there = MemoryStore()
    for at in kills:
        dying = DyingStore("O" * at + "D", there)
        with suppress(Killed):
            mirror_of(
                ScriptedStore(source, in_memory(few)),
                ScriptedStore(target, dying),
                spool,
            ).mirror()
        check_target(there, few)
    mirror_of(
        ScriptedStore(source, in_memory(few)), ScriptedStore(target, there), spool
    ).mirror()
    check_target(there, few)
    assert mirror_of(in_memory(few), there, spool).mirror().complete
    assert contents(there) == few


@pytest.mark.parametrize("letter", "TCSX")
def test_one_fault_is_survived(few: Objects, spool: Spool, letter: str) -> None:
    for at in range(30):
        target = MemoryStore()
        script = "O" * at + letter
        mirrored = mirror_of(
            ScriptedStore(script, in_memory(few)),
            ScriptedStore(script, target),
            spool,
        ).mirror()
        assert mirrored.complete, mirrored.problems
        assert contents(target) == few


def test_store_out_of_reach_ends_the_mirror(
    filled_objects: Objects, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vision_o3.registry.mirroring._FAILURES_IN_A_ROW", 3)
    target = ScriptedStore("T" * 999, MemoryStore())
    mirrored = mirror_of(in_memory(filled_objects), target, spool).mirror()
    assert mirrored.ended_early
    assert "3 versions in a row" in mirrored.ended_early
    assert not mirrored.complete
    source = ScriptedStore("T" * 999, MemoryStore())
    mirrored = mirror_of(source, MemoryStore(), spool).mirror()
    assert mirrored.ended_early == "The store is busy."


class FullStore(MemoryStore):
    def put_file(self, key: str, path: Path) -> None:
        if key.startswith("models/small"):
            raise StorageFullError("The disk is full.")
        super().put_file(key, path)


def test_full_target_ends_the_mirror(filled_objects: Objects, spool: Spool) -> None:
    target = FullStore()
    mirrored = mirror_of(in_memory(filled_objects), target, spool).mirror()
    assert mirrored.ended_early == "The disk is full."
    check_target(target, filled_objects)


@pytest.mark.parametrize("parallel", [1, 4])
def test_stopping_gives_what_was_done_so_far(
    filled_objects: Objects, spool: Spool, parallel: int
) -> None:
    def stop(seen: int, total: int, size: int) -> None:
        assert (total, size > 0) == (VERSIONS, True)
        if seen == 2:
            raise KeyboardInterrupt

    target = MemoryStore()
    source = in_memory(filled_objects)
    mirrored = Mirror(source, target, spool, parallel=parallel).mirror(progress=stop)
    assert mirrored.ended_early == "The mirror was stopped."
    assert mirrored.versions == 2
    check_target(target, filled_objects)
    assert mirror_of(source, target, spool).mirror().complete


def test_records_of_a_line_are_copied_in_order(
    filled_objects: Objects, spool: Spool
) -> None:
    order = []

    class Ordered(MemoryStore):
        def put(self, key: str, content: bytes) -> None:
            order.append(key)
            super().put(key, content)

    for _ in range(5):
        order.clear()
        Mirror(in_memory(filled_objects), Ordered(), spool, parallel=4).mirror()
        for line in ("models/small", "datasets/set"):
            mine = [key for key in order if f"{line}/" in key and "record" in key]
            assert mine == [f"{line}/v{number}.record.json" for number in (1, 2)]


# ----------------------------------------------------------------------- rebuilding


def test_registry_rebuilt_from_the_mirror_answers_the_same(
    filled: Path, spool: Spool, tmp_path: Path
) -> None:
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    target = LocalStore(tmp_path / "target")
    mirrored = Mirror(LocalStore(tmp_path / "objects"), target, spool).mirror()
    assert mirrored.complete
    migrate(f"sqlite:///{tmp_path}/rebuilt.db")
    answers = []
    for name, store in (
        ("registry.db", LocalStore(tmp_path / "objects")),
        ("rebuilt.db", target),
    ):
        database = Database(f"sqlite:///{tmp_path}/{name}")
        if name == "rebuilt.db":
            rebuilt = Rebuilder(database, target, Timing()).rebuild()
            assert (rebuilt.added, rebuilt.unreadable) == (VERSIONS, ())
        services = [
            service(database, store, None, Timing())  # type: ignore[arg-type]  # nothing is published
            for service in (ModelService, DatasetService)
        ]
        answers.append(
            [
                service.history(line, page=1, page_size=9)
                for service in services
                for line in ("small", "big", "other", "set", "set-again")
                if (line in {"set", "set-again"}) == (service is services[1])
            ]
        )
        database.close()
    assert answers[0] == answers[1]
