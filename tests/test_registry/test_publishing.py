from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from tests.fakes.model_files import tflite
from tests.fakes.scripted_store import ScriptedStore
from tests.test_registry.conftest import Registry, open_registry
from vision_o3.content.cid import CID
from vision_o3.content.dag import cid_of_bytes
from vision_o3.db import models as tables
from vision_o3.db import queries
from vision_o3.db.engine import Database
from vision_o3.errors import (
    CIDMismatchError,
    ConfigurationError,
    DatabaseUnavailableError,
    FormatError,
    InputError,
    InvalidNameError,
    LimitExceededError,
    NotFoundError,
    StorageError,
    UploadInProgressError,
)
from vision_o3.registry.claims import Timing
from vision_o3.registry.suspects import Suspects
from vision_o3.registry.values import Submission
from vision_o3.storage.local import LocalStore

MIB = 1 << 20


def rows(registry: Registry) -> int:
    with registry.database.read() as session:
        return (
            session.query(tables.ModelVersionRow).count()
            + session.query(tables.ModelRow).count()
        )


def expire_claims(database: Database) -> None:
    with database.write() as session:
        session.execute(
            update(tables.ModelVersionRow)
            .where(tables.ModelVersionRow.state == "storing")
            .values(lease_expires_at=datetime(2000, 1, 1, tzinfo=UTC))
        )


def test_first_upload_becomes_version_1(registry: Registry) -> None:
    content = tflite(1, 3 * MIB + 5)
    published = registry.publish(content, tags=("b", "a", "b"), description="A model.")
    version = published.version
    assert published.created
    assert (version.name, version.version, version.file_size) == ("m", 1, len(content))
    assert version.cid == cid_of_bytes(content)
    assert version.tags == ("a", "b")
    assert version == registry.models.latest("m")
    assert version == registry.models.by_cid(version.cid)
    assert registry.read(1) == content
    assert registry.stored_keys() == {
        "models/m/v1.tflite",
        "models/m/v1.dag.car",
        "models/m/v1.record.json",
    }


def test_same_content_as_the_latest_is_answered_not_stored(registry: Registry) -> None:
    first = registry.publish(tflite(1))
    again = registry.publish(tflite(1), description="other words")
    assert not again.created
    assert again.version == first.version


def test_other_content_becomes_the_next_version(registry: Registry) -> None:
    registry.publish(tflite(1))
    second = registry.publish(tflite(2))
    assert second.created
    assert second.version.version == 2
    assert [
        v.version for v in registry.models.history("m", page=1, page_size=9).items
    ] == [2, 1]
    assert registry.read(1) == tflite(1)


def test_content_of_an_older_version_is_a_new_version_but_not_stored_again(
    registry: Registry,
) -> None:
    registry.publish(tflite(1, 2 * MIB))
    registry.publish(tflite(2))
    third = registry.publish(tflite(1, 2 * MIB))
    other_line = registry.publish(tflite(1, 2 * MIB), name="other")
    assert third.version.version == 3
    assert third.version.object_key == "models/m/v1.tflite"
    assert other_line.version.sidecar_key == "models/m/v1.dag.car"
    assert registry.stored_keys() >= {"models/m/v3.record.json"}
    assert not registry.stored_keys() & {"models/m/v3.tflite"}
    assert registry.read(3) == tflite(1, 2 * MIB)


def test_content_whose_stored_object_was_lost_is_stored_anew(
    registry: Registry,
) -> None:
    registry.publish(tflite(1))
    registry.store.delete("models/m/v1.tflite")
    healed = registry.publish(tflite(1), name="other")
    assert healed.version.object_key == "models/other/v1.tflite"
    assert registry.read(1, "other") == tflite(1)


@pytest.mark.parametrize(
    ("content", "more", "error"),
    [
        (tflite(1), {"declared_cid": cid_of_bytes(b"other")}, CIDMismatchError),
        (tflite(1), {"filename": "m.onnx"}, FormatError),
        (tflite(1), {"filename": "m.zip"}, FormatError),
        (tflite(1), {"filename": "m"}, FormatError),
        (tflite(1), {"filename": None, "file_format": "exe"}, FormatError),
        (b"", {}, FormatError),
    ],
)
def test_refused_upload_leaves_nothing(
    registry: Registry, content: bytes, more: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        registry.publish(content, **more)
    assert registry.stored_keys() == set()
    assert rows(registry) == 0


def test_right_declared_cid_is_accepted(registry: Registry) -> None:
    published = registry.publish(tflite(1), declared_cid=cid_of_bytes(tflite(1)))
    assert published.created


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"name": "Upper"}, InvalidNameError),
        ({"name": "cid"}, InvalidNameError),
        ({"description": "x" * 10_001}, LimitExceededError),
        ({"description": "a\0b"}, InputError),
        ({"description": "\ud800"}, InputError),
        ({"tags": tuple(f"t{i}" for i in range(65))}, LimitExceededError),
        ({"tags": ("",)}, InputError),
        ({"tags": ("a\nb",)}, InputError),
        ({"framework": "x" * 65}, InputError),
        ({"model_type": "<b>"}, InputError),
    ],
)
def test_submission_accepts_only_valid_fields(
    fields: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        Submission(**{"name": "m", "publisher": "ann", **fields})


def test_sixteen_writers_of_different_contents_make_sixteen_versions(
    registry: Registry,
) -> None:
    with ThreadPoolExecutor(16) as pool:
        published = list(pool.map(lambda i: registry.publish(tflite(i)), range(16)))
    assert sorted(p.version.version for p in published) == list(range(1, 17))
    for p in published:
        assert cid_of_bytes(registry.read(p.version.version)) == p.version.cid


def test_sixteen_writers_of_one_content_make_one_version(registry: Registry) -> None:
    with ThreadPoolExecutor(16) as pool:
        published = list(pool.map(lambda _: registry.publish(tflite(1)), range(16)))
    assert Counter(p.created for p in published) == {True: 1, False: 15}
    assert {p.version.version for p in published} == {1}


# The store calls of a first upload, in order: put_file, put (sidecar), put (record).
@pytest.mark.parametrize(
    "script", ["T", "OT", "OOT", "X", "OX", "OOX", "TT", "XT", "XTT"]
)
def test_failed_store_leaves_nothing_visible_and_a_retry_converges(
    tmp_path: Path, script: str
) -> None:
    inner = LocalStore(tmp_path / "objects")
    store = ScriptedStore(script, inner)
    content = tflite(1, 2 * MIB)
    with open_registry(tmp_path, store) as registry:
        with pytest.raises(StorageError):
            registry.publish(content)
        with pytest.raises(NotFoundError):
            registry.models.latest("m")
        for _ in script:  # a sweep, too, may meet a failing store
            expire_claims(registry.database)
            registry.sweeper.sweep()
        assert registry.stored_keys() == set()
        assert rows(registry) == 0
        assert registry.publish(content).version.version == 1
        assert registry.read(1) == content


class LosesAnswers(Database):
    """A database whose commit succeeds, but whose answer is lost, when told so."""

    lose_next_publication = False

    @contextmanager
    def write(self) -> Iterator[Session]:
        with super().write() as session:
            yield session
            published = self.lose_next_publication and bool(
                session.query(tables.AuditEventRow).count()
            )
        if published:
            self.lose_next_publication = False
            raise DatabaseUnavailableError("The answer was lost.")


def test_lost_answer_to_the_commit_loses_no_object(tmp_path: Path) -> None:
    with open_registry(tmp_path) as plain:
        database = LosesAnswers(f"sqlite:///{tmp_path}/registry.db")
        registry = Registry(database, plain.store, plain.spool, plain.inspector)
        database.lose_next_publication = True
        with pytest.raises(DatabaseUnavailableError):
            registry.publish(tflite(1))
        assert registry.read(1) == tflite(1)
        assert not registry.publish(tflite(1)).created
        database.close()


class StallingStore(ScriptedStore):
    """Runs what the test says in the middle of the first ``put_file``."""

    def __init__(self, inner: LocalStore, when: str) -> None:
        super().__init__("", inner)
        self.meanwhile: Any = None
        self._when = when

    def put_file(self, key: str, path: Path) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile and self._when == "before":
            meanwhile()
        super().put_file(key, path)
        if meanwhile and self._when == "after":
            meanwhile()


@pytest.mark.parametrize("when", ["before", "after"])
def test_stalled_writer_harms_nobody_when_it_wakes_up(
    tmp_path: Path, when: str
) -> None:
    store = StallingStore(LocalStore(tmp_path / "objects"), when)
    with open_registry(tmp_path, store) as registry:

        def another_takes_over() -> None:
            expire_claims(registry.database)
            assert registry.publish(tflite(2)).version.version == 1

        store.meanwhile = another_takes_over
        with pytest.raises((UploadInProgressError, StorageError)):
            registry.publish(tflite(1))
        assert registry.models.latest("m").cid == cid_of_bytes(tflite(2))
        assert registry.read(1) == tflite(2)
        assert registry.publish(tflite(1)).version.version == 2
        assert registry.read(2) == tflite(1)


def test_expired_claim_is_taken_over_and_its_objects_removed(
    registry: Registry,
) -> None:
    claim(registry, "m", lease=timedelta(seconds=-1))
    registry.store.put("models/m/v1.onnx", b"half of something")
    published = registry.publish(tflite(1))
    assert published.version.version == 1
    assert not registry.stored_keys() & {"models/m/v1.onnx"}


def test_living_claim_is_waited_for_then_refused(registry: Registry) -> None:
    claim(registry, "m", lease=timedelta(seconds=60))
    registry.timing = Timing(claim_wait_s=0.05)
    with pytest.raises(UploadInProgressError) as caught:
        registry.publish(tflite(1))
    assert caught.value.values["retry_after_s"] >= 1
    assert caught.value.retryable


def test_stragglers_object_under_our_key_is_replaced(registry: Registry) -> None:
    registry.store.put("models/m/v1.tflite", tflite(9))
    registry.publish(tflite(1))
    assert registry.read(1) == tflite(1)


def test_stragglers_lone_record_is_replaced(registry: Registry) -> None:
    registry.publish(tflite(1), name="n")
    record = registry.store.get("models/n/v1.record.json", max_size=9999)
    late = record.replace(b'"name":"n"', b'"name":"m"').replace(b"/n/", b"/m/")
    registry.store.put("models/m/v1.record.json", late)
    registry.publish(tflite(2))
    assert registry.read(1) == tflite(2)
    assert registry.store.get("models/m/v1.record.json", max_size=9999) != late


@pytest.mark.parametrize("damage", ["", "record"])
def test_version_that_only_the_store_has_is_not_written_over(
    registry: Registry, damage: str
) -> None:
    """As where the database was restored from a time before it was published."""
    registry.publish(tflite(1))
    registry.publish(tflite(2))
    if damage:
        registry.store.delete("models/m/v2.record.json")
        registry.store.put("models/m/v2.record.json", b"{}")
    before = {found.key: found.size for found in registry.store.list()}
    with registry.database.write() as session:
        session.execute(
            text("DELETE FROM model_versions WHERE version = 2"),
        )
        session.execute(text("UPDATE models SET current_version = 1"))
        session.execute(text("UPDATE model_versions SET is_current = true"))
    with pytest.raises(ConfigurationError, match="rebuild-index"):
        registry.publish(tflite(3))
    assert {found.key: found.size for found in registry.store.list()} == before
    assert registry.store.get("models/m/v2.tflite", max_size=9999) == tflite(2)
    with registry.database.read() as session:
        assert session.query(tables.ModelVersionRow).count() == 1


def test_object_lent_to_another_line_is_not_written_over(registry: Registry) -> None:
    registry.publish(tflite(1))
    registry.publish(tflite(1), name="borrower")
    with registry.database.write() as session:
        session.execute(
            text(
                "DELETE FROM model_versions WHERE model_id IN "
                "(SELECT id FROM models WHERE name = 'm')"
            )
        )
        session.execute(text("DELETE FROM models WHERE name = 'm'"))
    registry.store.delete("models/m/v1.record.json")
    with pytest.raises(ConfigurationError, match="rebuild-index"):
        registry.publish(tflite(2))
    assert registry.read(1, "borrower") == tflite(1)


def test_content_that_is_known_to_be_damaged_is_stored_anew(
    registry: Registry,
) -> None:
    version = registry.publish(tflite(1)).version
    Suspects(registry.database).mark(version.object_key, version.cid, "wrong")
    again = registry.publish(tflite(1), name="other").version
    assert again.object_key == "models/other/v1.tflite"


def test_lease_is_renewed_while_bytes_are_stored(tmp_path: Path) -> None:
    store = StallingStore(LocalStore(tmp_path / "objects"), "before")
    with open_registry(tmp_path, store) as registry:
        registry.timing = Timing(lease=timedelta(seconds=0.3), claim_wait_s=5)

        def wait_for_renewals() -> None:
            seen: set[object] = set()
            while len(seen) < 4:
                with registry.database.read() as session:
                    row = session.query(tables.ModelVersionRow).one()
                    seen.add(row.lease_expires_at)

        store.meanwhile = wait_for_renewals
        assert registry.publish(tflite(1)).created


def claim(registry: Registry, name: str, *, lease: timedelta) -> None:
    """Put a claim in place, as a killed writer leaves it."""
    with registry.database.write() as session:
        now = queries.database_now(session)
        line = queries.get_or_create_line(session, tables.MODELS, name, "bob", now)
        queries.insert_claim(
            session,
            tables.MODELS,
            line,
            cid=CID.of_block(0x55, b""),
            file_format="onnx",
            file_size=0,
            description="",
            tags=[],
            facts={},
            owner_id="bob",
            object_key=f"models/{name}/v1.onnx",
            sidecar_key=None,
            record_key=f"models/{name}/v1.record.json",
            created_at=now,
            lease_token="dead",
            lease_expires_at=now + lease,
            framework="",
            model_type="",
        )
