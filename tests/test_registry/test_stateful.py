"""The registry against a plain dictionary, with faults, crashes and sweeps mixed in."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.fakes.model_files import tflite
from tests.fakes.scripted_store import ScriptedStore
from tests.test_registry.conftest import open_registry
from tests.test_registry.test_publishing import expire_claims
from vision_o3.content.dag import cid_of_bytes
from vision_o3.errors import NotFoundError, StorageError
from vision_o3.storage.local import LocalStore

NAMES = st.sampled_from(["a", "b"])
SEEDS = st.integers(0, 3)


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.store = ScriptedStore("", LocalStore(self.home / "objects"))
        self.context = open_registry(self.home, self.store)
        self.registry = self.context.__enter__()
        self.model: dict[str, list[int]] = {}

    @rule(name=NAMES, seed=SEEDS)
    def publish(self, name: str, seed: int) -> None:
        expected = self.model.setdefault(name, [])
        is_new = not expected or expected[-1] != seed
        published = self.registry.publish(tflite(seed), name=name)
        assert published.created == is_new
        if is_new:
            expected.append(seed)
        assert published.version.version == len(expected)

    @rule(name=NAMES, seed=SEEDS, script=st.text("OTX", min_size=1, max_size=6))
    def publish_through_faults(self, name: str, seed: int, script: str) -> None:
        self.store._script = iter(script)
        expected = self.model.get(name, [])
        try:
            published = self.registry.publish(tflite(seed), name=name)
        except StorageError:
            return
        finally:
            self.store._script = iter("")
            expire_claims(self.registry.database)
        if published.created:
            self.model.setdefault(name, expected).append(seed)

    @rule()
    def sweep(self) -> None:
        self.registry.sweeper.sweep()
        named = {
            f"models/{name}/v{number}.record.json"
            for name, seeds in self.model.items()
            for number in range(1, len(seeds) + 1)
        }
        records = {k for k in self.registry.stored_keys() if k.endswith(".record.json")}
        assert records == named

    @invariant()
    def all_that_was_answered_is_there(self) -> None:
        for name, seeds in self.model.items():
            if not seeds:
                continue
            page = self.registry.models.history(name, page=1, page_size=100)
            assert [v.version for v in page.items] == list(range(len(seeds), 0, -1))
            for version in page.items:
                content = tflite(seeds[version.version - 1])
                assert version.cid == cid_of_bytes(content)
                assert self.registry.read(version.version, name) == content

    @invariant()
    def nothing_else_is_visible(self) -> None:
        for name in ("a", "b"):
            if not self.model.get(name):
                try:
                    self.registry.models.latest(name)
                except NotFoundError:
                    continue
                raise AssertionError(f"{name} is visible")

    def teardown(self) -> None:
        self.context.__exit__(None, None, None)
        shutil.rmtree(self.home)


TestRegistry = RegistryMachine.TestCase
TestRegistry.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
