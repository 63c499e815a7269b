from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.scripted_store import ScriptedStore
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
    objects_at,
)
from vision_o3.errors import (
    IntegrityError,
    LengthMismatchError,
    ObjectNotFoundError,
    StorageError,
    StorageFullError,
    TransientStorageError,
)
from vision_o3.registry.inventory import (
    Kind,
    StoredObject,
    fetch_object,
    read_dag,
    verify_object,
    write_file,
)

__all__ = ["filled", "filled_objects"]


def test_versions_consist_of_all_that_is_stored_for_them(
    filled_objects: dict[str, bytes],
) -> None:
    named = objects_at(in_memory(filled_objects))
    assert set(named) == set(filled_objects)
    assert len(named) == OBJECTS
    assert {stored.kind for stored in named.values()} == set(Kind)


def test_what_is_right_is_verified_and_counted(
    filled_objects: dict[str, bytes],
) -> None:
    store = in_memory(filled_objects)
    for key, stored in objects_at(store).items():
        read: list[int] = []
        verify_object(store, stored, read.append)
        assert sum(read) == len(filled_objects[key])
        assert max(read) <= 8 << 20


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("how", DAMAGES)
def test_every_damage_is_seen(
    filled_objects: dict[str, bytes], kind: Kind, how: str
) -> None:
    store = in_memory(filled_objects)
    objects = objects_at(store)
    key = first_key(objects, kind)
    damage(store, key, how)
    if kind is Kind.RECORD and how in {"flip", "extend"}:
        return  # text changed may still be a good record: see the scrub
    if kind is Kind.WITHDRAWAL and how == "extend":
        return  # JSON may end in a line end
    expected = ObjectNotFoundError if how == "remove" else IntegrityError
    with pytest.raises(expected):
        verify_object(store, objects[key])


@pytest.mark.parametrize("how", ["flip", "cut", "extend", "empty", "remove"])
def test_damage_of_a_large_artifact_is_seen(
    filled_objects: dict[str, bytes], how: str
) -> None:
    store = in_memory(filled_objects)
    stored = large(store)
    damage(store, stored.key, how)
    with pytest.raises((IntegrityError, ObjectNotFoundError)):
        verify_object(store, stored)


def large(store: object) -> StoredObject:
    objects = objects_at(store)  # type: ignore[arg-type]  # any store
    return next(
        stored
        for stored in objects.values()
        if stored.kind is Kind.ARTIFACT and stored.file_size == BIG
    )


@pytest.mark.parametrize("kind", Kind)
def test_swapped_objects_are_seen(filled_objects: dict[str, bytes], kind: Kind) -> None:
    objects = objects_at(in_memory(filled_objects))
    key = first_key(objects, kind)
    for other, content in filled_objects.items():
        if other != key:
            swapped = filled_objects | {key: content}
            with pytest.raises(IntegrityError):
                verify_object(in_memory(swapped), objects[key])


def test_artifact_is_verified_without_its_sidecar(
    filled_objects: dict[str, bytes],
) -> None:
    store = in_memory(filled_objects)
    objects = objects_at(store)
    sidecar = first_key(objects, Kind.SIDECAR)
    store.delete(sidecar)
    assert read_dag(store, large(store)).sidecar() == filled_objects[sidecar]
    verify_object(store, large(store))


def test_object_that_shrinks_while_it_is_read_is_seen(
    filled_objects: dict[str, bytes],
) -> None:
    store = in_memory(filled_objects)
    stored = large(store)

    def shrink(_: int) -> None:
        if len(contents(store)[stored.key]) == BIG:
            damage(store, stored.key, "cut")

    with pytest.raises(LengthMismatchError):
        verify_object(store, stored, shrink)


@pytest.mark.parametrize("script", ["T", "OT", "OOT"])
def test_failure_of_the_store_is_no_damage(
    filled_objects: dict[str, bytes], script: str
) -> None:
    store = in_memory(filled_objects)
    with pytest.raises(TransientStorageError):
        verify_object(ScriptedStore(script, store), large(store))


@pytest.mark.parametrize("script", ["OC", "OS", "OOC", "OOS"])
def test_wrong_answers_are_seen(filled_objects: dict[str, bytes], script: str) -> None:
    store = in_memory(filled_objects)
    with pytest.raises(IntegrityError):
        verify_object(ScriptedStore(script, store), large(store))


def test_fetched_file_has_the_objects_bytes(
    filled_objects: dict[str, bytes], tmp_path: Path
) -> None:
    store = in_memory(filled_objects)
    path = tmp_path / "fetched"
    for key, stored in objects_at(store).items():
        assert fetch_object(store, stored, path) == len(filled_objects[key])
        assert path.read_bytes() == filled_objects[key]


def test_full_disk_is_told_apart(filled_objects: dict[str, bytes]) -> None:
    store = in_memory(filled_objects)
    with pytest.raises(StorageFullError, match="VISION_O3_SPOOL_DIR"):
        fetch_object(store, large(store), Path("/dev/full"))


def test_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        write_file(tmp_path / "absent" / "file", [b"x"])
