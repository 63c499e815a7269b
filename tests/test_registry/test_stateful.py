"""The registry against a plain dictionary, with whatever may happen mixed in.

Faults, crashes, sweeps, withdrawals, and the loss of the index.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from tests.fakes.model_files import tflite
from tests.fakes.scripted_store import ScriptedStore
from tests.test_registry.conftest import open_registry
from tests.test_registry.test_publishing import expire_claims
from tests.test_registry.withdrawals import blocked, deprecated, lifted, purging
from vision_o3.content.dag import cid_of_bytes
from vision_o3.db.engine import Database
from vision_o3.db.migrate import migrate
from vision_o3.errors import (
    NotFoundError,
    StorageError,
    VersionBlockedError,
    VersionPurgedError,
)
from vision_o3.registry.purging import Purger
from vision_o3.registry.rebuilding import Rebuilder
from vision_o3.storage.local import LocalStore

NAMES = st.sampled_from(["a", "b"])
SEEDS = st.integers(0, 3)
WISHES = {"deprecated": deprecated, "blocked": blocked, "lifted": lifted}
REFUSED = (VersionBlockedError, VersionPurgedError)


@dataclass
class Known:
    """A version as the dictionary has it."""

    seed: int
    state: str | None = None

    @property
    def served(self) -> bool:
        return self.state not in {"blocked", "purged"}


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.store = ScriptedStore("", LocalStore(self.home / "objects"))
        self.context = open_registry(self.home, self.store)
        self.registry = self.context.__enter__()
        self.model: dict[str, list[Known]] = {}

    def of_content(self, seed: int) -> list[Known]:
        return [
            each
            for versions in self.model.values()
            for each in versions
            if each.seed == seed
        ]

    def is_refused(self, seed: int) -> bool:
        """Say whether content was withdrawn wherever it is."""
        known = self.of_content(seed)
        return bool(known) and not any(each.served for each in known)

    def latest(self, name: str) -> int:
        """Return the number of the latest version; 0 if there is none."""
        versions = self.model.get(name, [])
        numbers = [n for n, each in enumerate(versions, 1) if each.served]
        return max(numbers, default=0)

    @rule(name=NAMES, seed=SEEDS)
    def publish(self, name: str, seed: int) -> None:
        if self.is_refused(seed):
            with pytest.raises(REFUSED):
                self.registry.publish(tflite(seed), name=name)
            return
        expected = self.model.setdefault(name, [])
        latest = self.latest(name)
        is_new = not latest or expected[latest - 1].seed != seed
        published = self.registry.publish(tflite(seed), name=name)
        assert published.created == is_new
        if is_new:
            expected.append(Known(seed))
            latest = len(expected)
        assert published.version.version == latest

    @rule(name=NAMES, seed=SEEDS, script=st.text("OTX", min_size=1, max_size=6))
    def publish_through_faults(self, name: str, seed: int, script: str) -> None:
        self.store._script = iter(script)
        try:
            published = self.registry.publish(tflite(seed), name=name)
        except (StorageError, *REFUSED):
            return
        finally:
            self.store._script = iter("")
            expire_claims(self.registry.database)
        assert not self.is_refused(seed)
        if published.created:
            self.model.setdefault(name, []).append(Known(seed))

    @precondition(lambda self: any(self.model.values()))
    @rule(
        pick=st.randoms(use_true_random=False),
        state=st.sampled_from(sorted(WISHES)),
        script=st.just("") | st.text("OTX", min_size=1, max_size=3),
    )
    def withdraw(self, pick: Random, state: str, script: str) -> None:
        name = pick.choice(sorted(name for name, each in self.model.items() if each))
        number = pick.randint(1, len(self.model[name]))
        known = self.model[name][number - 1]
        self.store._script = iter(script)
        try:
            version = self.registry.models.withdraw(name, number, WISHES[state]())
        except StorageError:
            assert script
            return
        except VersionPurgedError:
            assert known.state == "purged"
            return
        finally:
            self.store._script = iter("")
        known.state = None if state == "lifted" else state
        assert (version.withdrawal and version.withdrawal.state) == known.state

    @precondition(lambda self: any(self.model.values()))
    @rule(pick=st.randoms(use_true_random=False))
    def purge(self, pick: Random) -> None:
        seed = pick.choice([k.seed for each in self.model.values() for k in each])
        cid = cid_of_bytes(tflite(seed))
        Purger(self.registry.database, self.store, None, self.registry.timing).purge(
            cid, purging()
        )
        for known in self.of_content(seed):
            known.state = "purged"

    @rule()
    def lose_the_index(self) -> None:
        self.registry.sweeper.sweep()
        self.registry.database.close()
        for file in self.home.glob("registry.db*"):
            file.unlink()
        url = f"sqlite:///{self.home}/registry.db"
        migrate(url)
        self.registry.database = Database(url)
        rebuilt = Rebuilder(
            self.registry.database, self.store, self.registry.timing
        ).rebuild()
        assert rebuilt.unreadable == ()
        # A decision that nobody was answered may have come to be.
        for name, versions in self.model.items():
            for number, known in enumerate(versions, 1):
                found = self.registry.models.version(name, number).withdrawal
                known.state = None if found is None else found.state

    @rule()
    def sweep(self) -> None:
        self.registry.sweeper.sweep()
        named = {
            f"models/{name}/v{number}.record.json"
            for name, versions in self.model.items()
            for number in range(1, len(versions) + 1)
        }
        records = {k for k in self.registry.stored_keys() if k.endswith(".record.json")}
        assert records == named

    @invariant()
    def all_that_was_answered_is_there(self) -> None:
        for name, versions in self.model.items():
            if not versions:
                continue
            page = self.registry.models.history(name, page=1, page_size=100)
            numbers = list(range(len(versions), 0, -1))
            assert [v.version for v in page.items] == numbers
            for version in page.items:
                known = versions[version.version - 1]
                content = tflite(known.seed)
                assert version.cid == cid_of_bytes(content)
                assert (version.withdrawal and version.withdrawal.state) == known.state
                if known.state != "purged":
                    assert self.registry.read(version.version, name) == content

    @invariant()
    def the_latest_is_the_highest_that_is_served(self) -> None:
        for name in ("a", "b"):
            try:
                found = self.registry.models.latest(name).version
            except NotFoundError:
                assert not self.model.get(name)
            except REFUSED:
                assert self.model[name]
                assert not self.latest(name)
            else:
                assert found == self.latest(name)

    def teardown(self) -> None:
        self.registry.database.close()
        self.context.__exit__(None, None, None)
        shutil.rmtree(self.home)


TestRegistry = RegistryMachine.TestCase
TestRegistry.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
