from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from tests.fakes.archive_files import zip_file
from tests.fakes.model_files import onnx, tflite
from tests.fakes.scripted_store import ScriptedStore
from tests.test_registry.conftest import Registry, open_registry
from tests.test_registry.databases import empty_database, shared_postgres
from vision_o3.content.cid import CID
from vision_o3.db import models as tables
from vision_o3.db import queries
from vision_o3.db.audit import Filters
from vision_o3.db.engine import Database
from vision_o3.db.migrate import migrate
from vision_o3.errors import ConfigurationError, TransientStorageError
from vision_o3.registry.audit_trail import list_trail, verify_trail
from vision_o3.registry.claims import Timing
from vision_o3.registry.rebuilding import Rebuilder, Rebuilt, require_index
from vision_o3.storage.base import ObjectMeta, ObjectStore
from vision_o3.storage.local import LocalStore
from vision_o3.storage.memory import MemoryStore

__all__ = ["empty_database", "shared_postgres"]

MIB = 1 << 20
LARGE = tflite(9, 2 * MIB + 5)
Rows = dict[str, list[dict[str, Any]]]


class Wrapping:
    """Hands all on to another store."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class FailingFind(Wrapping):
    def find(self, key: str) -> ObjectMeta | None:
        raise TransientStorageError(f"No answer about {key}.")


class Vanishing(Wrapping):
    """Removes what has a prefix as soon as it is looked for."""

    def __init__(self, inner: ObjectStore, prefix: str) -> None:
        super().__init__(inner)
        self._prefix = prefix

    def find(self, key: str) -> ObjectMeta | None:
        for found in list(self._inner.list(self._prefix)):
            self._inner.delete(found.key)
        return self._inner.find(key)


class Failing(Wrapping):
    """Fails on some records."""

    def __init__(self, inner: ObjectStore, fails: Callable[[str], bool]) -> None:
        super().__init__(inner)
        self._fails = fails

    def get(self, key: str, *, max_size: int) -> bytes:
        if self._fails(key):
            raise TransientStorageError("The store is busy.")
        return self._inner.get(key, max_size=max_size)


@pytest.fixture
def empty(empty_database: Database) -> Database:
    return empty_database


def rows_of(database: Database) -> Rows:
    """All that the index holds, but for when versions became visible."""
    found: Rows = {}
    with database.read() as session:
        for table in tables.Base.metadata.sorted_tables:
            if table.name in {"users", "audit_events", "audit_head"}:
                continue
            rows = session.execute(select(table)).mappings()
            found[table.name] = sorted(
                (
                    {name: row[name] for name in row if name != "published_at"}
                    for row in rows
                ),
                key=repr,
            )
    return found


def rebuild(
    database: Database, store: ObjectStore, *, batch: int = 500, **more: Any
) -> Rebuilt:
    return Rebuilder(database, store, Timing(), batch=batch).rebuild(**more)


def publish_mix(registry: Registry) -> int:
    """Publish some of everything; return how many versions that is."""
    registry.publish(tflite(1), "a", description="ÄRGER\n…", tags=("x", "edge"))
    registry.publish(tflite(2), "a", framework="tflite", model_type="detection")
    registry.publish(LARGE, "a", tags=("x",))
    registry.publish(onnx(), "b", "b.onnx")
    registry.publish(LARGE, "b")  # where it was stored first
    registry.publish(tflite(1), "b")
    registry.publish(tflite(1), "c")
    archive = zip_file("train/1.jpg", "train/2.jpg")
    registry.publish_dataset(archive, "a")
    registry.publish_dataset(archive, "z")
    registry.publish_dataset(b'{"a": [1]}', "z", "z.json")
    return 10


def test_the_index_is_as_before(registry: Registry, empty: Database) -> None:
    count = publish_mix(registry)
    before = registry.stored_keys()
    seen: list[tuple[int, int]] = []
    rebuilt = rebuild(
        empty, registry.store, batch=4, progress=lambda *at: seen.append(at)
    )
    assert rebuilt == Rebuilt(count, 0, ())
    assert seen[-1] == (count, count)
    assert rows_of(empty) == rows_of(registry.database)
    assert registry.stored_keys() == before
    assert rebuild(empty, registry.store) == Rebuilt(0, count, ())
    assert rows_of(empty) == rows_of(registry.database)
    with empty.read() as session:
        for version in (tables.ModelVersionRow, tables.DatasetVersionRow):
            late = version.published_at != version.created_at
            assert not session.scalars(select(version).where(late)).all()


@pytest.mark.parametrize(("batch", "events"), [(500, 2), (1, 10)])
def test_what_is_added_is_in_the_audit_trail(
    registry: Registry, empty: Database, batch: int, events: int
) -> None:
    count = publish_mix(registry)
    for _ in range(2):
        rebuild(empty, registry.store, batch=batch)
    found = list_trail(empty, Filters(action="index.rebuilt"), page=1, page_size=99)
    assert found.total == events
    assert {event.principal for event in found.items} == {"operator"}
    assert {event.subject for event in found.items} == {"models", "datasets"}
    assert sum(event.detail["added"] for event in found.items) == count
    assert verify_trail(empty).whole


@pytest.mark.parametrize("batch", [1, 3])
def test_it_may_be_broken_off_anywhere(
    registry: Registry, empty: Database, batch: int
) -> None:
    count = publish_mix(registry)

    class Killed(BaseException):
        pass

    def die(done: int, _: int) -> None:
        raise Killed(done)

    for _ in range(count):
        try:
            rebuild(empty, registry.store, batch=batch, progress=die)
        except Killed:
            continue
    # Each time the batch that was being added then stays; a line has no hole.
    with empty.read() as session:
        for line in session.scalars(select(tables.ModelRow)):
            numbers = session.scalars(
                select(tables.ModelVersionRow.version).where(
                    tables.ModelVersionRow.line_id == line.id
                )
            )
            assert sorted(numbers) == list(range(1, line.current_version + 1))
    rebuilt = rebuild(empty, registry.store, batch=batch)
    assert rebuilt.added + rebuilt.present == count
    assert rows_of(empty) == rows_of(registry.database)


def test_an_error_in_the_middle_of_a_batch_leaves_nothing_of_it(
    registry: Registry, empty: Database
) -> None:
    count = publish_mix(registry)
    with pytest.raises(TransientStorageError):
        rebuild(empty, FailingFind(registry.store))
    assert not any(rows_of(empty).values())
    assert rebuild(empty, registry.store) == Rebuilt(count, 0, ())


def test_several_at_once_do_the_work_once(registry: Registry, empty: Database) -> None:
    count = publish_mix(registry)
    done: list[Rebuilt] = []
    threads = [
        threading.Thread(
            target=lambda: done.append(rebuild(empty, registry.store, batch=2))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4
    assert sum(each.added for each in done) == count
    assert not [problem for each in done for problem in each.unreadable]
    assert rows_of(empty) == rows_of(registry.database)


def test_publishing_goes_on_where_it_ended(registry: Registry, empty: Database) -> None:
    publish_mix(registry)
    rebuild(empty, registry.store)
    registry.database.close()
    registry.database = empty
    assert registry.publish(LARGE, "a").created is False
    fourth = registry.publish(tflite(4), "a").version
    assert (fourth.version, fourth.owner_id) == (4, "ann")
    elsewhere = registry.publish(tflite(2), "new").version
    assert elsewhere.object_key == "models/a/v2.tflite"
    assert registry.read(4, "a") == tflite(4)
    assert rebuild(empty, registry.store) == Rebuilt(0, 12, ())


# --------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """Three versions of ``m`` and one of ``n``: their objects, and their rows."""
    root = tmp_path_factory.mktemp("three")
    with open_registry(root) as registry:
        for seed in (1, 2, 3):
            registry.publish(tflite(seed, MIB + seed), "m")
        registry.publish(tflite(4), "n")
        return root / "objects", rows_of(registry.database)


@dataclass
class Three:
    """A store with three versions of ``m`` and one of ``n``, whose index is lost."""

    objects: Path
    rows: Rows
    store: LocalStore


@pytest.fixture
def three(made_once: tuple[Path, Rows], tmp_path: Path) -> Three:
    objects, rows = made_once
    shutil.copytree(objects, tmp_path / "three")
    return Three(tmp_path / "three", rows, LocalStore(tmp_path / "three"))


def replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def remove(objects: Path, *versions: str) -> None:
    for version in versions:
        (objects / f"{version}.record.json").unlink()


def edit(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_bytes())
    document["line"] |= changes.pop("line", {})
    replace(path, json.dumps(document | changes).encode())


V1, V2, V3 = (f"models/m/v{number}" for number in (1, 2, 3))
AFTER_V2 = (f"{V3}.record.json", "comes after v2")
DAMAGE: dict[str, tuple[Callable[[Path], object], int, list[tuple[str, str]]]] = {
    "no artifact": (
        lambda at: (at / f"{V2}.tflite").unlink(),
        1,
        [(f"{V2}.tflite", "is missing"), AFTER_V2],
    ),
    "an artifact of another size": (
        lambda at: replace(at / f"{V2}.tflite", b"short"),
        1,
        [(f"{V2}.tflite", "is of 5 bytes, not 1048578"), AFTER_V2],
    ),
    "no sidecar": (
        lambda at: (at / f"{V2}.dag.car").unlink(),
        1,
        [(f"{V2}.dag.car", "is missing"), AFTER_V2],
    ),
    "garbage": (
        lambda at: replace(at / f"{V2}.record.json", b"\0garbage"),
        1,
        [(f"{V2}.record.json", "is not JSON"), AFTER_V2],
    ),
    "an empty record": (
        lambda at: replace(at / f"{V2}.record.json", b""),
        1,
        [(f"{V2}.record.json", "is not JSON"), AFTER_V2],
    ),
    "a huge record": (
        lambda at: replace(at / f"{V2}.record.json", bytes(9 << 20)),
        1,
        [(f"{V2}.record.json", "more than the 8388608 expected"), AFTER_V2],
    ),
    "a newer record": (
        lambda at: edit(at / f"{V2}.record.json", record_format=2),
        1,
        [(f"{V2}.record.json", "of record format 2"), AFTER_V2],
    ),
    "another's record": (
        lambda at: replace(
            at / f"{V2}.record.json", (at / f"{V1}.record.json").read_bytes()
        ),
        1,
        [(f"{V2}.record.json", "describes models/m/v1"), AFTER_V2],
    ),
    "a hole": (
        lambda at: (at / f"{V2}.record.json").unlink(),
        1,
        [(f"{V2}.record.json", "of v2 is missing"), AFTER_V2],
    ),
    "a wide hole": (
        lambda at: remove(at, V1, V2),
        0,
        [
            (f"{V1}.record.json", "of v1 to v2 are missing"),
            (f"{V3}.record.json", "comes after v1"),
            (f"{V2}.dag.car", "No record says what this is"),
        ],
    ),
    "the last record": (
        lambda at: (at / f"{V3}.record.json").unlink(),
        2,
        [(f"{V3}.dag.car", "No record says what this is")],
    ),
    "all records": (
        lambda at: remove(at, V1, V2, V3),
        0,
        [(f"{v}.dag.car", "No record says what this is") for v in (V1, V2, V3)],
    ),
    "another owner": (
        lambda at: edit(at / f"{V2}.record.json", line={"owner_id": "eve"}),
        1,
        [(f"{V2}.record.json", "says otherwise who began its line"), AFTER_V2],
    ),
    "another line": (
        lambda at: edit(at / f"{V2}.record.json", line={"id": str(uuid4())}),
        1,
        [(f"{V2}.record.json", "says otherwise who began its line"), AFTER_V2],
    ),
}


@pytest.mark.parametrize("batch", [1, 500])
@pytest.mark.parametrize(("harm", "left", "told"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_told_and_ends_its_line_only(
    three: Three,
    empty: Database,
    batch: int,
    harm: Callable[[Path], object],
    left: int,
    told: list[tuple[str, str]],
) -> None:
    objects = three.objects
    whole = {path: path.read_bytes() for path in objects.rglob("v*")}
    harm(objects)
    rebuilt = rebuild(empty, three.store, batch=batch)
    assert (rebuilt.added, rebuilt.present) == (left + 1, 0)
    assert [problem.key for problem in rebuilt.unreadable] == [key for key, _ in told]
    for problem, (_, said) in zip(rebuilt.unreadable, told, strict=True):
        assert said in problem.reason
    with empty.read() as session:
        latest = queries.find_latest(session, tables.MODELS, "m")
        assert (latest[1].version if latest else 0) == left
        assert queries.find_latest(session, tables.MODELS, "n") is not None
    # Mended, the rest follows.
    for path, content in whole.items():
        replace(path, content)
    assert rebuild(empty, three.store, batch=batch) == Rebuilt(3 - left, left + 1, ())
    assert rows_of(empty) == three.rows


def test_lists_of_an_archive_must_be_there(registry: Registry, empty: Database) -> None:
    registry.publish_dataset(zip_file("a"), "d")
    for suffix in ("manifest.json", "members.idx"):
        path = registry.spool._directory.parent / f"objects/datasets/d/v1.{suffix}"
        path.rename(path.with_name("kept"))
        (problem,) = rebuild(empty, registry.store).unreadable
        assert problem.key == f"datasets/d/v1.{suffix}"
        path.with_name("kept").rename(path)
    assert rebuild(empty, registry.store).added == 1


def test_foreign_objects_are_passed_over(three: Three, empty: Database) -> None:
    for key in (
        "models/m/v1.record.json.bak",
        "models/m/v01.record.json",
        "models/cid/v1.record.json",
        "models/m/notes.txt",
        "users/m/v1.record.json",
        "probe/x",
        "v1.record.json",
    ):
        three.store.put(key, b"{}")
    assert rebuild(empty, three.store) == Rebuilt(4, 0, ())


def test_a_copied_line_is_left_out(three: Three, empty: Database) -> None:
    objects = three.objects
    shutil.copytree(objects / "models/m", objects / "models/copy")
    for number in (1, 2, 3):
        edit(
            objects / f"models/copy/v{number}.record.json",
            line={"name": "copy"},
            object_key=f"models/copy/v{number}.tflite",
            sidecar_key=f"models/copy/v{number}.dag.car",
        )
    for batch in (500, 1):
        rebuilt = rebuild(empty, three.store, batch=batch)
        # The one that comes first is believed: there is no telling which is older.
        assert rebuilt.added + rebuilt.present == 4
        keys = [problem.key for problem in rebuilt.unreadable]
        assert keys == [f"{v}.record.json" for v in (V1, V2, V3)]
        assert "Another version has its id" in rebuilt.unreadable[0].reason
    edit(objects / "models/m/v1.record.json", id=str(uuid4()))
    reasons = [each.reason for each in rebuild(empty, three.store).unreadable]
    assert [reason for reason in reasons if "the id of another one" in reason]


# ---------------------------------------------------------- an index in use


def test_what_the_index_has_is_never_changed(three: Three, empty: Database) -> None:
    objects = three.objects
    rebuild(empty, three.store)
    before = rows_of(empty)
    edit(objects / f"{V1}.record.json", id=str(uuid4()))
    edit(objects / f"{V2}.record.json", cid=str(CID(0x70, bytes(32))))
    replace(objects / f"{V3}.record.json", b"x")
    edit(objects / "models/n/v1.record.json", description="changed")
    rebuilt = rebuild(empty, three.store)
    assert (rebuilt.added, rebuilt.present) == (0, 1)
    assert [problem.key for problem in rebuilt.unreadable] == [
        f"{v}.record.json" for v in (V1, V2, V3)
    ]
    assert "The index has another version" in rebuilt.unreadable[0].reason
    assert "is not JSON" in rebuilt.unreadable[2].reason
    assert rows_of(empty) == before


def test_a_record_that_only_the_index_has_is_told(
    three: Three, empty: Database
) -> None:
    objects = three.objects
    rebuild(empty, three.store)
    (objects / f"{V3}.record.json").unlink()
    rebuilt = rebuild(empty, three.store)
    assert (rebuilt.added, rebuilt.present) == (0, 3)
    (problem,) = rebuilt.unreadable
    assert problem.key == f"{V3}.record.json"
    assert "scrub --repair" in problem.reason


def claim(database: Database, name: str, lease: timedelta) -> None:
    """Claim a line's next number, as an upload does that is at work."""
    with database.write() as session:
        now = queries.database_now(session)
        line = queries.get_or_create_line(session, tables.MODELS, name, "eve", now)
        queries.insert_claim(
            session,
            tables.MODELS,
            line,
            cid=CID(0x55, bytes(32)),
            file_format="tflite",
            file_size=1,
            description="",
            tags=[],
            facts={},
            owner_id="eve",
            object_key="k",
            sidecar_key=None,
            record_key=f"models/{name}/v{line.current_version + 1}.record.json",
            created_at=now,
            lease_token="t",
            lease_expires_at=now + lease,
            framework="",
            model_type="",
        )


@pytest.mark.parametrize(
    ("lease", "said"),
    [
        (timedelta(seconds=60), "is at work"),
        (timedelta(seconds=-1), "run 'vision-o3 admin sweep'"),
    ],
)
def test_a_line_with_an_upload_is_left_alone(
    three: Three, empty: Database, lease: timedelta, said: str
) -> None:
    claim(empty, "m", lease)
    rebuilt = rebuild(empty, three.store, batch=2)
    assert (rebuilt.added, rebuilt.present) == (1, 0)
    assert [problem.key for problem in rebuilt.unreadable] == [
        f"{v}.record.json" for v in (V1, V2, V3)
    ]
    assert said in rebuilt.unreadable[0].reason
    assert "comes after v1" in rebuilt.unreadable[2].reason
    with empty.write() as session:
        line = queries.find_line(session, tables.MODELS, "m")
        assert line is not None
        assert line.current_version == 0
        claimed = queries.find_claim(session, tables.MODELS, line)
        assert claimed is not None
        assert queries.release_claim(session, tables.MODELS, claimed.id, "t")
    assert rebuild(empty, three.store) == Rebuilt(3, 1, ())


def test_an_upload_beside_a_whole_line_is_no_problem(
    three: Three, empty: Database
) -> None:
    rebuild(empty, three.store)
    claim(empty, "m", timedelta(seconds=60))
    three.store.put("models/m/v4.tflite", tflite(9))
    assert rebuild(empty, three.store) == Rebuilt(0, 4, ())


def test_what_an_upload_removes_meanwhile_is_not_added(
    three: Three, empty: Database
) -> None:
    store = Vanishing(three.store, "models/m/v1.")
    rebuilt = rebuild(empty, store)
    assert (rebuilt.added, rebuilt.present) == (1, 0)
    assert "removed just now" in rebuilt.unreadable[0].reason
    with empty.read() as session:
        assert queries.find_line(session, tables.MODELS, "m") is None


def test_an_upload_that_was_never_answered_may_become_visible(
    registry: Registry, empty: Database
) -> None:
    """ADR 12: all its bytes are there, and nobody can tell any more."""
    first = registry.publish(tflite(1)).version
    registry.publish(tflite(2))
    with registry.database.write() as session:  # as a gateway that died leaves it
        session.execute(
            update(tables.ModelVersionRow)
            .where(tables.ModelVersionRow.version == 2)
            .values(
                state=tables.STORING,
                is_current=False,
                published_at=None,
                lease_token="t",
                lease_expires_at=first.created_at,
            )
        )
        session.execute(
            update(tables.ModelVersionRow)
            .where(tables.ModelVersionRow.version == 1)
            .values(is_current=True)
        )
        session.execute(update(tables.ModelRow).values(current_version=1))
    assert rebuild(empty, registry.store) == Rebuilt(2, 0, ())
    # Also in place of its claim, once that is over: the index may have been restored
    # from a moment at which a version that was answered later was being stored.
    assert rebuild(registry.database, registry.store) == Rebuilt(1, 1, ())
    assert registry.models.latest("m").version == 2
    registry.sweeper.sweep()
    assert registry.read(2) == tflite(2)


def test_uploads_go_on_beside_it(registry: Registry, empty: Database) -> None:
    publish_mix(registry)
    registry.database.close()
    registry.database = empty
    failures: list[BaseException] = []

    def upload() -> None:
        try:
            for seed in range(6):
                registry.publish(tflite(100 + seed), "busy")
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    thread = threading.Thread(target=upload)
    thread.start()
    told = set[str]()
    while thread.is_alive():
        rebuilt = rebuild(empty, registry.store, batch=1)
        told |= {problem.key for problem in rebuilt.unreadable}
    thread.join()
    assert not failures
    # Nothing but what was just being uploaded was out of reach.
    assert all(key.startswith("models/busy/") for key in told)
    assert rebuild(empty, registry.store) == Rebuilt(0, 16, ())
    assert registry.models.latest("busy").version == 6
    assert registry.read(3, "busy") == tflite(102)


def test_an_index_that_was_lost_is_noticed(three: Three, empty: Database) -> None:
    with pytest.raises(ConfigurationError, match="run 'vision-o3 admin rebuild-index"):
        require_index(empty, three.store)
    rebuild(empty, three.store)
    require_index(empty, ScriptedStore("T", three.store))  # which is not asked


def test_a_store_without_records_needs_no_index(empty: Database) -> None:
    store = MemoryStore()
    store.put("models/m/v1.onnx", b"left by an upload")
    store.put("other/v1.record.json", b"{}")
    require_index(empty, store)
    store.put("models/m/v1.record.json", b"{}")
    claim(empty, "m", timedelta(seconds=60))
    require_index(empty, store)  # an upload is at work on it


# --------------------------------------------------------- a store that fails


def test_a_record_that_cannot_be_read_just_now_is_told(
    three: Three, empty: Database
) -> None:
    store = Failing(three.store, lambda key: key == f"{V2}.record.json")
    rebuilt = rebuild(empty, store)
    assert (rebuilt.added, rebuilt.present) == (2, 0)
    assert "busy. Later, then run" not in rebuilt.unreadable[0].reason
    assert "rebuild-index' again" in rebuilt.unreadable[0].reason
    assert rebuild(empty, three.store) == Rebuilt(2, 2, ())


def test_a_store_that_is_down_ends_it(empty: Database) -> None:
    store = MemoryStore()
    for number in range(40):
        store.put(f"models/m{number}/v1.record.json", b"{}")
    with pytest.raises(TransientStorageError, match="What was added so far stays"):
        rebuild(empty, Failing(store, lambda _: True))
    assert len(rebuild(empty, store).unreadable) == 40


def test_a_store_that_cannot_be_listed_is_told(empty: Database) -> None:
    with pytest.raises(TransientStorageError):
        rebuild(empty, ScriptedStore("T", MemoryStore()))
    assert rebuild(empty, MemoryStore()) == Rebuilt(0, 0, ())


@settings(max_examples=25, deadline=None)
@given(script=st.text("OOOTC", max_size=12))
def test_whatever_the_store_does_nothing_wrong_is_added(
    whole: tuple[Registry, int], script: str
) -> None:
    registry, count = whole
    path = registry.spool._directory.parent / f"{uuid4().hex}.db"
    shutil.copy(path.parent / "none.db", path)
    database = Database(f"sqlite:///{path}")
    try:
        with suppress(TransientStorageError):
            rebuild(database, ScriptedStore(script, registry.store), batch=3)
        rebuilt = rebuild(database, registry.store)
        assert rebuilt.added + rebuilt.present == count
        assert not rebuilt.unreadable
        assert rows_of(database) == rows_of(registry.database)
    finally:
        database.close()
        path.unlink()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Registry, int]]:
    """A registry with some of everything, and an empty database beside it."""
    root = tmp_path_factory.mktemp("whole")
    migrate(f"sqlite:///{root}/none.db")
    with open_registry(root) as registry:
        yield registry, publish_mix(registry)
