from __future__ import annotations

import asyncio
import io
import random
import zipfile
from pathlib import Path

import pytest

from tests.fakes.model_files import tflite
from tests.fakes.scripted_store import ScriptedStore
from tests.test_registry.conftest import Registry, open_registry
from vision_o3.content.dag import cid_of_bytes
from vision_o3.errors import IntegrityError, LengthMismatchError, ObjectNotFoundError
from vision_o3.registry import relaying
from vision_o3.storage.local import LocalStore

MIB = 1 << 20
SIZE = 3 * MIB + 5
EDGES = [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, SIZE - 6, SIZE - 1, SIZE]


def read(registry: Registry, start: int, end: int) -> bytes:
    async def gather() -> bytes:
        version = registry.models.latest("m")
        stream = registry.models.stream(version, start, end)
        return b"".join([bytes(piece) async for piece in stream])

    return asyncio.run(gather())


def test_every_range_is_what_was_published(registry: Registry) -> None:
    content = tflite(1, SIZE)
    registry.publish(content)
    for start in EDGES:
        for end in EDGES:
            if start <= end:
                assert read(registry, start, end) == content[start:end]


def test_small_file_needs_no_sidecar(registry: Registry) -> None:
    registry.publish(tflite(1, 100))
    version = registry.models.latest("m")
    assert version.sidecar_key is None
    assert registry.models.sidecar(version) is None
    assert read(registry, 10, 20) == tflite(1, 100)[10:20]


@pytest.mark.parametrize("offset", [0, MIB, SIZE - 1, random.Random(7).randrange(SIZE)])
def test_flipped_bit_in_the_store_is_never_handed_on(
    registry: Registry, tmp_path: Path, offset: int
) -> None:
    content = tflite(1, SIZE)
    registry.publish(content)
    stored = tmp_path / "objects" / "models" / "m" / "v1.tflite"
    damaged = bytearray(content)
    damaged[offset] ^= 0x10
    stored.chmod(0o600)
    stored.write_bytes(damaged)
    received = bytearray()

    async def gather() -> None:
        version = registry.models.latest("m")
        async for piece in registry.models.stream(version, 0, SIZE):
            received.extend(piece)

    with pytest.raises(IntegrityError):
        asyncio.run(gather())
    assert received == content[: offset // MIB * MIB]


@pytest.mark.parametrize("change", ["shorter", "empty"])
def test_truncated_object_is_refused(
    registry: Registry, tmp_path: Path, change: str
) -> None:
    content = tflite(1, SIZE)
    registry.publish(content)
    stored = tmp_path / "objects" / "models" / "m" / "v1.tflite"
    stored.chmod(0o600)
    stored.write_bytes(content[:-1] if change == "shorter" else b"")
    with pytest.raises((IntegrityError, LookupError, Exception)) as caught:
        read(registry, 0, SIZE)
    assert type(caught.value).__module__ == "vision_o3.errors"


def test_damaged_sidecar_is_refused(registry: Registry, tmp_path: Path) -> None:
    registry.publish(tflite(1, SIZE))
    sidecar = tmp_path / "objects" / "models" / "m" / "v1.dag.car"
    damaged = bytearray(sidecar.read_bytes())
    damaged[-1] ^= 1
    sidecar.chmod(0o600)
    sidecar.write_bytes(damaged)
    with pytest.raises(IntegrityError):
        read(registry, 0, SIZE)


def test_lost_object_is_said_so(registry: Registry) -> None:
    registry.publish(tflite(1, SIZE))
    registry.store.delete("models/m/v1.tflite")
    with pytest.raises(ObjectNotFoundError):
        read(registry, 0, SIZE)


def test_size_in_the_index_must_be_the_dags(registry: Registry) -> None:
    version = registry.publish(tflite(1, SIZE)).version
    sidecar = registry.models.sidecar(version)
    with pytest.raises(LengthMismatchError):
        relaying.leaf_table(version.cid, SIZE + 1, sidecar)


def test_leaving_early_frees_the_stream(registry: Registry) -> None:
    registry.publish(tflite(1, SIZE))

    async def leave() -> None:
        version = registry.models.latest("m")
        stream = registry.models.stream(version, 0, SIZE)
        await anext(stream)
        await stream.aclose()

    asyncio.run(leave())


def test_leaf_digests_are_read_once(tmp_path: Path) -> None:
    store = ScriptedStore("", LocalStore(tmp_path / "objects"))
    with open_registry(tmp_path, store) as registry:
        registry.publish(tflite(1, SIZE))
        relay = relaying.Relay(store)
        version = registry.models.latest("m")
        assert relay.table(version) is relay.table(version)


@pytest.mark.parametrize("letters", ["CO", "SO"])
def test_manifest_that_is_wrong_once_is_read_again(
    tmp_path: Path, letters: str
) -> None:
    store = ScriptedStore("", LocalStore(tmp_path / "objects"))
    with open_registry(tmp_path, store) as registry:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as writer:
            writer.writestr("a.txt", b"1")
        version = registry.publish_dataset(archive.getvalue()).version
        store._script = iter(letters)
        manifest = registry.datasets.manifest(version)
        assert str(cid_of_bytes(manifest)) == str(version.manifest_cid)
        store._script = iter("CC")
        with pytest.raises(IntegrityError):
            registry.datasets.manifest(version)
