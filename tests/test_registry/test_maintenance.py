from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tests.fakes.model_files import tflite
from tests.fakes.scripted_store import ScriptedStore
from tests.test_registry.conftest import Registry, open_registry
from tests.test_registry.test_publishing import claim, rows
from vision_o3.registry.maintenance import Swept
from vision_o3.storage.local import LocalStore


def test_sweep_removes_what_a_killed_writer_left(registry: Registry) -> None:
    registry.publish(tflite(1), name="kept")
    before = registry.stored_keys()
    claim(registry, "m", lease=timedelta(seconds=-1))
    registry.store.put("models/m/v1.onnx", b"half")
    registry.store.put("models/m/v1.dag.car", b"half")
    (registry.spool._directory / "dead.upload").write_bytes(b"half")
    assert registry.sweeper.sweep() == Swept(claims=1, spool_files=1)
    assert registry.stored_keys() == before
    assert rows(registry) == 2
    assert registry.sweeper.sweep() == Swept()


def test_sweep_leaves_living_claims_alone(registry: Registry) -> None:
    claim(registry, "m", lease=timedelta(seconds=60))
    registry.store.put("models/m/v1.onnx", b"half")
    assert registry.sweeper.sweep() == Swept()
    assert registry.stored_keys() == {"models/m/v1.onnx"}


def test_sweep_does_not_touch_versions_whose_keys_begin_alike(
    registry: Registry,
) -> None:
    for seed in range(10):
        registry.publish(tflite(seed))
    before = registry.stored_keys()
    claim(registry, "m2", lease=timedelta(seconds=-1))
    registry.store.put("models/m2/v1.onnx", b"half")
    registry.sweeper.sweep()
    assert registry.stored_keys() == before


def test_sweep_goes_on_after_a_failing_store(tmp_path: Path) -> None:
    store = ScriptedStore("T", LocalStore(tmp_path / "objects"))
    with open_registry(tmp_path, store) as registry:
        claim(registry, "m1", lease=timedelta(seconds=-1))
        claim(registry, "m2", lease=timedelta(seconds=-1))
        assert registry.sweeper.sweep() == Swept(claims=1, failures=1)


@pytest.mark.parametrize("line_exists", [True, False])
def test_strays_are_removed_after_the_grace_period(
    registry: Registry, *, line_exists: bool
) -> None:
    if line_exists:
        registry.publish(tflite(1))
    before, rows_before = registry.stored_keys(), rows(registry)
    registry.store.put("models/m/v7.onnx", b"late write of a stalled gateway")
    assert registry.sweeper.sweep_strays() == Swept()
    assert registry.sweeper.sweep_strays(grace=timedelta(seconds=-1)) == Swept(
        objects=1
    )
    assert registry.stored_keys() == before
    assert rows(registry) == rows_before


def test_strays_of_a_claimed_line_wait(registry: Registry) -> None:
    claim(registry, "m", lease=timedelta(seconds=60))
    registry.store.put("models/m/v1.dag.car", b"being stored")
    assert registry.sweeper.sweep_strays(grace=timedelta(seconds=-1)) == Swept()
    assert registry.stored_keys() == {"models/m/v1.dag.car"}
