"""The registry on a faulty S3 store against a plain dictionary.

Uploads, downloads, faults, writers that die and sweeps, in any order; after each step
what is visible is compared, and at the end the bucket, object by object.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.fakes.fault_proxy import Fault
from tests.fakes.model_files import tflite
from tests.fakes.s3_servers import running
from tests.test_integration.faulty_sites import (
    MIB,
    FaultySite,
    Machine,
    dataset,
    expire_claims,
    faulty_site,
    machine,
    read_range,
    read_whole,
)
from tests.test_registry.conftest import Registry
from vision_o3.errors import (
    IntegrityError,
    NotFoundError,
    StorageError,
    UploadInProgressError,
)
from vision_o3.storage.base import ObjectStore

pytestmark = pytest.mark.integration

EXAMPLES = int(os.environ.get("VISION_O3_TEST_EXAMPLES", "8"))

CONTENTS = {
    "models": [
        tflite(0, 100),
        tflite(1, MIB + 7),
        tflite(2, 5 * MIB + 1),  # in parts
    ],
    "datasets": [dataset(0, 1000), dataset(1, MIB + 7)],
}
FILENAMES = {"models": "m.tflite", "datasets": "d.zip"}
LINES = [(collection, name) for collection in CONTENTS for name in ("a", "b")]
OPERATIONS = [
    "*",
    "*Object",
    "PutObject",
    "HeadObject",
    "GetObject",
    "DeleteObject",
    "ListObjects",
    "*Multipart*",
    "UploadPart",
]
# A late removal may remove what was published since: ``test_store_faults`` has it.
FAULTS = [f for f in Fault if f not in (Fault.PASS, Fault.LATE)]


class KilledError(BaseException):
    """The writer dies here: nothing of it runs any more."""


class DyingStore:
    """A store whose user dies at the n-th call that writes, before or after it.

    After that no call does anything: the dead do not clean up.
    """

    def __init__(self, inner: ObjectStore, calls: int, *, after: bool) -> None:
        self._inner = inner
        self._left = calls
        self._after = after
        self._dead = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name == "capabilities":
            return method

        def call(*arguments: Any, **more: Any) -> Any:
            if self._dead:
                raise KilledError
            if name not in {"put", "put_file", "delete"}:
                return method(*arguments, **more)
            self._left -= 1
            if self._left > 0:
                return method(*arguments, **more)
            self._dead = True
            if self._after:
                method(*arguments, **more)
            raise KilledError

        return call


class FaultyMachine(RuleBasedStateMachine):
    shared: Machine

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.stack = ExitStack()
        self.stack.callback(shutil.rmtree, self.home)
        self.site: FaultySite = self.stack.enter_context(
            faulty_site(self.shared, self.home)
        )
        self.lines: dict[tuple[str, str], list[bytes]] = {line: [] for line in LINES}

    # ------------------------------------------------------------------- what is done

    @rule(line=st.sampled_from(LINES), index=st.integers(0, 2))
    def upload(self, line: tuple[str, str], index: int) -> None:
        content = self.content(line, index)
        try:
            created = self.publish(self.site.hasty, line, content)
        except (StorageError, UploadInProgressError):
            return
        self.note(line, content, created=created)

    @rule(
        line=st.sampled_from(LINES),
        index=st.integers(0, 2),
        calls=st.integers(1, 6),
        after=st.booleans(),
    )
    def upload_and_die(
        self, line: tuple[str, str], index: int, calls: int, *, after: bool
    ) -> None:
        content = self.content(line, index)
        hasty = self.site.hasty
        dying: Any = DyingStore(hasty.store, calls, after=after)
        doomed = Registry(
            hasty.database, dying, hasty.spool, hasty.inspector, hasty.timing
        )
        with suppress(StorageError, UploadInProgressError, KilledError):
            # It may be done before it dies.
            created = self.publish(doomed, line, content)
            self.note(line, content, created=created)
        # Long after, or the next upload to the line would wait for the lease's end.
        expire_claims(hasty.database)

    @rule(line=st.sampled_from(LINES), which=st.integers(0), at=st.integers(0))
    def download(self, line: tuple[str, str], which: int, at: int) -> None:
        contents = self.lines[line]
        if not contents:
            return
        number = which % len(contents)
        content = contents[number]
        service = getattr(self.site.hasty, line[0])
        version = service.version(line[1], number + 1)
        with suppress(StorageError, IntegrityError, NotFoundError):
            if at % 2:
                assert read_whole(service, version) == content
            else:
                start = at % len(content)
                end = min(start + MIB, len(content))
                assert read_range(service, version, start, end) == content[start:end]

    @rule(
        fault=st.sampled_from(FAULTS),
        operation=st.sampled_from(OPERATIONS),
        nth=st.integers(1, 3),
        times=st.sampled_from([1, 2, None]),
    )
    def break_something(
        self, fault: Fault, operation: str, nth: int, times: int | None
    ) -> None:
        self.site.proxy.fail(fault, operation, nth=nth, times=times)

    @rule()
    def mend(self) -> None:
        self.site.proxy.clear()

    @rule()
    def sweep(self) -> None:
        """A sweep may meet faults; what it cannot do now the next one does."""
        expire_claims(self.site.hasty.database)
        self.site.hasty.sweeper.sweep()

    # -------------------------------------------------------------------- what must be

    @invariant()
    def visible_is_what_was_answered(self) -> None:
        for collection, name in LINES:
            versions = self.site.versions(collection, name)
            contents = self.lines[collection, name]
            assert [v.version for v in versions] == list(range(1, len(contents) + 1))
            for version, content in zip(versions, contents, strict=True):
                assert version.file_size == len(content)

    def teardown(self) -> None:
        with self.stack:
            self.site.proxy.clear()
            for (collection, name), contents in self.lines.items():
                self.site.check_line(collection, name, contents)
            self.site.check_bucket(*LINES)
            for collection, name in LINES:  # all goes on
                content = CONTENTS[collection][1]
                line = (collection, name)
                created = self.publish(self.site.patient, line, content)
                self.note(line, content, created=created)
                self.site.check_line(collection, name, self.lines[line])

    # ------------------------------------------------------------------------- helpers

    def content(self, line: tuple[str, str], index: int) -> bytes:
        contents = CONTENTS[line[0]]
        return contents[index % len(contents)]

    def publish(
        self, registry: Registry, line: tuple[str, str], content: bytes
    ) -> bool:
        collection, name = line
        service = getattr(registry, collection)
        return registry.publish_to(
            service, content, name, FILENAMES[collection]
        ).created

    def note(self, line: tuple[str, str], content: bytes, *, created: bool) -> None:
        contents = self.lines[line]
        assert created == (not contents or contents[-1] != content)
        if created:
            contents.append(content)


@contextmanager
def shared_machine(root: Path) -> Iterator[Machine]:
    with running("moto") as server, machine(server, root) as made:
        yield made


def test_registry_on_a_faulty_store(tmp_path: Path) -> None:
    with shared_machine(tmp_path) as shared:

        class OnThisServer(FaultyMachine):
            pass

        OnThisServer.shared = shared
        run_state_machine_as_test(
            OnThisServer,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=12,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
