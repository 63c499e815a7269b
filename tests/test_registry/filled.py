"""A registry with a version of every kind, made once and copied for each test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.archive_files import zip_file
from tests.fakes.model_files import tflite
from tests.test_registry.conftest import open_registry
from tests.test_registry.withdrawals import deprecated
from vision_o3.registry.inventory import Kind, StoredObject, objects_of
from vision_o3.registry.records import decode_record
from vision_o3.registry.withdrawal_records import decode_decision
from vision_o3.storage.base import ObjectStore
from vision_o3.storage.local import LocalStore
from vision_o3.storage.memory import MemoryStore

BIG = (9 << 20) + 5
"""Bytes: more than are read at once."""
VERSIONS = 7
OBJECTS = VERSIONS + 5 + 1 + 2 + 1
"""Records, artifacts, a sidecar, a manifest and its index, a withdrawal."""


def make_filled(home: Path) -> None:
    with open_registry(home) as registry:
        registry.publish(tflite(1), "small", tags=("a", "b"), description="ß\n")
        registry.publish(tflite(2, BIG), "big", framework="tf")
        registry.publish(tflite(3), "small")
        registry.publish(tflite(2, BIG), "other")
        archive = zip_file("images/a.txt", "images/b.txt")
        registry.publish_dataset(archive, "set")
        registry.publish_dataset(archive, "set-again")
        registry.publish_dataset(b'{"a": 1}', "set", "d.json")
        registry.models.withdraw("big", 1, deprecated("Use a smaller one."))


def in_memory(objects: dict[str, bytes]) -> MemoryStore:
    store = MemoryStore()
    for key, content in objects.items():
        store.put(key, content)
    return store


def contents(store: ObjectStore) -> dict[str, bytes]:
    return {
        found.key: store.get(found.key, max_size=found.size) for found in store.list()
    }


def objects_at(store: ObjectStore) -> dict[str, StoredObject]:
    """Return all objects that the records in a store name, and what is beside them."""
    named, found = {}, contents(store)
    for key, content in found.items():
        if key.endswith(".record.json"):
            version = decode_record(content, key).version
            decision = key.replace(".record.", ".withdrawal-1.")
            if decision in found:
                withdrawal = decode_decision(found[decision], decision).withdrawal
                version = replace(version, withdrawal=withdrawal)
            for stored in objects_of(version):
                named[stored.key] = stored
    return named


def first_key(objects: dict[str, StoredObject], kind: Kind) -> str:
    return min(key for key, stored in objects.items() if stored.kind is kind)


def damage(store: ObjectStore, key: str, how: str) -> None:
    """Flip a bit, cut, extend, empty or remove an object."""
    found = store.find(key)
    assert found
    content = bytearray(store.get(key, max_size=found.size))
    store.delete(key)
    if how == "flip":
        content[len(content) // 2] ^= 1
    elif how == "cut":
        del content[-1]
    elif how == "extend":
        content += b"\n"
    elif how == "empty":
        content.clear()
    if how != "remove":
        store.put(key, bytes(content))


DAMAGES = ("flip", "cut", "extend", "empty", "remove")


def no_sleep(_: float) -> None:
    return


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("filled")
    make_filled(home)
    return home


@pytest.fixture(scope="session")
def filled_objects(filled: Path) -> dict[str, bytes]:
    return contents(LocalStore(filled / "objects"))
