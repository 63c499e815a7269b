"""What the metadata database promises, whichever it is.

A subclass gives the fixture ``empty_url``: a database without tables.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, inspect, select, text, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError
from sqlalchemy.orm import Session

from vision_o3.content.cid import CID, RAW
from vision_o3.db import models as tables
from vision_o3.db import queries
from vision_o3.db.audit import append_event
from vision_o3.db.engine import Database
from vision_o3.db.migrate import current_revision, downgrade, is_current, migrate
from vision_o3.db.models import DATASETS, MODELS, Collection
from vision_o3.db.queries import SORTS, LineFilters
from vision_o3.errors import (
    AlreadyExistsError,
    ConfigurationError,
    DatabaseUnavailableError,
    InputError,
)

NOW = datetime(2026, 5, 17, 12, 30, 15, 123456, tzinfo=UTC)
LEASE = timedelta(seconds=60)
LABELS = ("", "onnx", "pt", "h5")
TEXTS = st.text("aAbBßẞİ\u0131Σςé%_\\'\n", max_size=4)


def cid_of(content: str) -> CID:
    return CID.of_block(RAW, content.encode())


def user(**values: Any) -> dict[str, Any]:
    """Return a user's columns, with those that tests do not care about."""
    return {"roles": [], "permissions": [], "created_at": NOW, **values}


def claim(
    session: Session,
    collection: Collection,
    name: str = "m",
    token: str = "t",  # noqa: S107 - no secret
    **values: Any,
) -> tables.VersionRow:
    """Claim the next number of a line, with columns that tests do not care about."""
    now = values.pop("now", NOW)
    line = queries.get_or_create_line(session, collection, name, "ann", now)
    stem = f"{collection.name}/{name}/v{line.current_version + 1}"
    columns: dict[str, Any] = {
        "cid": cid_of(stem),
        "file_format": "onnx",
        "file_size": 3,
        "description": "",
        "tags": [],
        "facts": {},
        "owner_id": "ann",
        "object_key": f"{stem}.onnx",
        "sidecar_key": f"{stem}.dag.car",
        "record_key": f"{stem}.record.json",
        "created_at": now,
        "lease_token": token,
        "lease_expires_at": now + LEASE,
    }
    if collection is MODELS:
        columns |= {"framework": "", "model_type": ""}
    return queries.insert_claim(session, collection, line, **columns | values)


def publish(
    database: Database, collection: Collection, name: str = "m", **values: Any
) -> UUID:
    """Publish the next version of a line."""
    now = values.get("now", NOW)
    with database.write() as session:
        row = claim(session, collection, name, **values)
        assert queries.publish_claim(session, collection, row.id, "t", now)
    return row.id


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run ``work(0…)`` in threads that start at the same moment."""
    barrier = threading.Barrier(count)

    def run(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count)))


@dataclass(frozen=True)
class Listed:
    """What a list is judged by, in plain Python."""

    name: str
    labels: tuple[str, str, str]
    tags: tuple[str, ...]
    owner: str
    description: str
    size: int
    minute: int

    def passes(self, filters: LineFilters) -> bool:
        wanted = (filters.framework, filters.model_type, filters.file_format)
        part = (filters.q or "").casefold()
        return (
            all(w in (None, has) for w, has in zip(wanted, self.labels, strict=True))
            and set(filters.tags) <= set(self.tags)
            and filters.owner in (None, self.owner)
            and (part in self.name or part in self.description.casefold())
        )


LISTED = st.builds(
    Listed,
    name=st.text("ab-._0", min_size=1, max_size=3),
    labels=st.tuples(*[st.sampled_from(LABELS)] * 3),
    tags=st.lists(st.sampled_from("xyz"), unique=True).map(tuple),
    owner=st.sampled_from(("ann", "bob")),
    description=TEXTS,
    size=st.integers(0, 2),
    minute=st.integers(0, 2),
)
MAYBE_LABEL = st.none() | st.sampled_from(LABELS)
FILTERS = st.builds(
    LineFilters,
    framework=MAYBE_LABEL,
    model_type=MAYBE_LABEL,
    file_format=MAYBE_LABEL,
    tags=st.lists(st.sampled_from("xyz"), max_size=2).map(tuple),
    owner=st.sampled_from((None, None, "ann")),
    q=st.none() | TEXTS,
)


class MetadataStoreConformance:
    """Every test runs on an empty database of its own."""

    @pytest.fixture
    def empty_url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def url(self, empty_url: str) -> str:
        migrate(empty_url)
        return empty_url

    @pytest.fixture
    def database(self, url: str) -> Iterator[Database]:
        database = Database(url)
        yield database
        database.close()

    @pytest.fixture(params=[MODELS, DATASETS], ids=["models", "datasets"])
    def collection(self, request: pytest.FixtureRequest) -> Collection:
        found: Collection = request.param
        return found

    # -------------------------------------------------------------- migrations

    def test_migrating_makes_an_empty_database_current(self, empty_url: str) -> None:
        assert current_revision(empty_url) is None
        assert not is_current(empty_url)
        migrate(empty_url)
        assert is_current(empty_url)

    def test_migrating_again_keeps_what_is_there(
        self, url: str, database: Database
    ) -> None:
        publish(database, MODELS)
        migrate(url)
        with database.read() as session:
            assert queries.find_latest(session, MODELS, "m")

    def test_downgrade_removes_every_table(self, url: str, database: Database) -> None:
        publish(database, MODELS, tags=["a"])
        downgrade(url, "base")
        assert current_revision(url) is None
        with database.read() as session:
            left = inspect(session.connection()).get_table_names()
        assert left == ["alembic_version"]
        migrate(url)
        assert is_current(url)

    def test_migrations_make_the_tables_that_the_code_describes(
        self, database: Database
    ) -> None:
        with database.read() as session:
            context = MigrationContext.configure(
                session.connection(), opts={"compare_type": True}
            )
            assert compare_metadata(context, tables.Base.metadata) == []

    def test_migrations_make_the_constraints_that_the_code_describes(
        self, url: str, database: Database
    ) -> None:
        """Checks and partial indexes, which the comparison above does not see."""
        with database.read() as session:
            migrated = _constraints(session.connection())
        downgrade(url, "base")
        with database.write() as session:
            tables.Base.metadata.create_all(session.connection())
            assert _constraints(session.connection()) == migrated

    def test_many_processes_may_migrate_at_once(self, empty_url: str) -> None:
        program = (
            "import sys; from vision_o3.db.migrate import migrate as m; m(sys.argv[1])"
        )

        def run(_: int) -> str:
            return subprocess.run(
                [sys.executable, "-W", "error", "-c", program, empty_url],
                capture_output=True,
                text=True,
                check=False,
            ).stderr

        assert together(4, run) == [""] * 4
        assert is_current(empty_url)

    def test_database_of_a_newer_program_is_left_alone(
        self, url: str, database: Database
    ) -> None:
        with database.write() as session:
            session.execute(text("UPDATE alembic_version SET version_num = 'later'"))
        with pytest.raises(ConfigurationError, match="newer"):
            migrate(url)
        assert current_revision(url) == "later"
        assert not is_current(url)

    def test_missing_tables_say_to_migrate(self, empty_url: str) -> None:
        database = Database(empty_url)
        with (
            pytest.raises(ConfigurationError, match="admin migrate"),
            database.read() as session,
        ):
            queries.find_latest(session, MODELS, "m")
        database.close()

    # ------------------------------------------------------------ transactions

    def test_failed_transaction_leaves_nothing(self, database: Database) -> None:
        with pytest.raises(KeyError), database.write() as session:  # noqa: PT012 - a whole transaction
            claim(session, MODELS)
            raise KeyError
        with database.read() as session:
            assert queries.find_line(session, MODELS, "m") is None

    def test_rolled_back_transaction_ends_without_error(
        self, database: Database
    ) -> None:
        with database.write() as session:
            claim(session, MODELS)
            session.rollback()
        with database.read() as session:
            assert queries.find_line(session, MODELS, "m") is None

    def test_reading_sees_one_moment(self, database: Database) -> None:
        publish(database, MODELS)
        with database.read() as session:
            before = queries.list_latest(session, MODELS, LineFilters(), "name", 0, 9)
            publish(database, MODELS, "n")
            publish(database, MODELS)
            after = queries.list_latest(session, MODELS, LineFilters(), "name", 0, 9)
            assert before == after
            assert after[1][0][1].version == 1

    def test_reading_cannot_write(self, database: Database) -> None:
        with (
            pytest.raises((DBAPIError, DatabaseUnavailableError)),
            database.read() as session,
        ):
            queries.insert_user(session, "ann", **user())
        with database.write() as session:
            queries.insert_user(session, "ann", **user())

    def test_rows_are_usable_after_their_transaction(self, database: Database) -> None:
        publish(database, MODELS)
        with database.read() as session:
            found = queries.find_latest(session, MODELS, "m")
        with database.write() as session:
            row = claim(session, MODELS)
        assert found
        assert (found[0].name, found[1].version, row.version) == ("m", 1, 2)

    def test_busy_database_is_told_apart(self, url: str, database: Database) -> None:
        impatient = Database(url, wait_s=0.2)
        with database.write() as session:
            claim(session, MODELS)
            with (
                pytest.raises(DatabaseUnavailableError),
                impatient.write() as other,
            ):
                claim(other, MODELS)
        with impatient.write() as session:
            claim(session, MODELS, "other")
        impatient.close()

    def test_used_up_connections_are_told_apart(self, url: str) -> None:
        impatient = Database(url, wait_s=0.1)
        with ExitStack() as stack:
            for _ in range(20):
                session = stack.enter_context(impatient.read())
                queries.find_user(session, "ann")
            with (
                pytest.raises(DatabaseUnavailableError, match="busy"),
                impatient.read() as session,
            ):
                queries.find_user(session, "ann")
        with impatient.read() as session:
            assert queries.find_user(session, "ann") is None
        impatient.close()

    def test_mistakes_in_a_statement_are_not_taken_for_an_outage(
        self, database: Database
    ) -> None:
        with pytest.raises(DBAPIError), database.read() as session:
            session.execute(text("SELEKT 1"))

    # ------------------------------------------------------- tables and types

    def test_times_are_exact_and_utc(self, database: Database) -> None:
        elsewhere = NOW.astimezone(timezone(timedelta(hours=9)))
        publish(database, MODELS, now=elsewhere)
        with database.read() as session:
            found = queries.find_latest(session, MODELS, "m")
        assert found
        for at in (found[0].created_at, found[1].created_at, found[1].published_at):
            assert at == NOW
            assert at is not None
            assert at.tzinfo is UTC
        assert found[1].lease_expires_at is None

    def test_times_without_a_zone_are_refused(self, database: Database) -> None:
        with (
            pytest.raises(StatementError, match="no time zone"),
            database.write() as session,
        ):
            queries.insert_user(
                session, "ann", **user(created_at=NOW.replace(tzinfo=None))
            )

    def test_all_columns_come_back_as_given(self, database: Database) -> None:
        facts = {"opset": 17, "inputs": [{"name": "\u0000\ud800é", "shape": [1, None]}]}
        values: dict[str, Any] = {
            "description": "Zählt Äpfel\n",
            "tags": ["b", "a"],
            "facts": facts,
            "file_size": 2**40,
            "sidecar_key": None,
        }
        publish(database, MODELS, framework="tf", model_type="det", **values)
        publish(database, DATASETS, manifest_cid=cid_of("files"), **values)
        with database.read() as session:
            model = queries.find_latest(session, MODELS, "m")
            dataset = queries.find_latest(session, DATASETS, "m")
        assert model
        assert dataset
        for row in (model[1], dataset[1]):
            assert {name: getattr(row, name) for name in values} == values
        assert isinstance(model[1], tables.ModelVersionRow)
        assert (model[1].framework, model[1].model_type) == ("tf", "det")
        assert isinstance(dataset[1], tables.DatasetVersionRow)
        assert dataset[1].manifest_cid == cid_of("files")

    def test_facts_that_are_not_json_are_refused(self, database: Database) -> None:
        with (
            pytest.raises((StatementError, ValueError)),
            database.write() as session,
        ):
            claim(session, MODELS, facts={"x": float("nan")})

    def test_the_clock_runs(self, database: Database) -> None:
        with database.write() as session:
            first = queries.database_now(session)
            second = queries.database_now(session)
        assert first.tzinfo is UTC
        assert first < second
        assert abs(second - datetime.now(UTC)) < timedelta(minutes=5)

    @pytest.mark.parametrize(
        "values",
        [
            {"version": 0},
            {"file_size": -1},
            {"state": "lost"},
            {"lease_token": None},
            {"state": "published"},
            {"is_current": True},
            {"line_id": UUID(int=1)},
        ],
        ids=str,
    )
    def test_impossible_versions_are_refused(
        self, database: Database, collection: Collection, values: dict[str, Any]
    ) -> None:
        with pytest.raises(IntegrityError), database.write() as session:  # noqa: PT012 - a whole transaction
            row = claim(session, collection)
            version = collection.version
            session.execute(
                update(version).where(version.id == row.id).values(**values)
            )

    def test_tag_of_no_version_is_refused(
        self, database: Database, collection: Collection
    ) -> None:
        with pytest.raises(IntegrityError), database.write() as session:
            session.execute(insert(collection.tag).values(version_id=uuid4(), tag="a"))

    # ----------------------------------------------------------------- finding

    def test_nothing_is_found_in_an_empty_database(
        self, database: Database, collection: Collection
    ) -> None:
        cid = cid_of("nothing")
        with database.read() as session:
            assert queries.find_line(session, collection, "m") is None
            assert queries.find_latest(session, collection, "m") is None
            assert queries.find_version(session, collection, "m", 1) is None
            assert queries.find_by_cid(session, collection, cid) is None
            assert queries.find_stored_content(session, cid) is None
            assert queries.history(session, collection, "m", 0, 9) == (0, [])
            assert queries.expired_claims(session, collection, NOW, 9) == []
            listed = queries.list_latest(
                session, collection, LineFilters(), "name", 0, 9
            )
            assert listed == (0, [])

    def test_claims_are_invisible(
        self, database: Database, collection: Collection
    ) -> None:
        with database.write() as session:
            row = claim(session, collection)
        with database.read() as session:
            line = queries.find_line(session, collection, "m")
            assert line
            assert line.current_version == 0
            assert queries.find_latest(session, collection, "m") is None
            assert queries.find_version(session, collection, "m", 1) is None
            assert queries.find_by_cid(session, collection, row.cid) is None
            assert queries.find_stored_content(session, row.cid) is None
            assert queries.history(session, collection, "m", 0, 9) == (0, [])
            listed = queries.list_latest(
                session, collection, LineFilters(), "name", 0, 9
            )
            assert listed == (0, [])

    def test_published_versions_are_found(
        self, database: Database, collection: Collection
    ) -> None:
        for _ in range(3):
            publish(database, collection)
        publish(database, collection, "other")
        with database.write() as session:
            claim(session, collection)
        with database.read() as session:
            latest = queries.find_latest(session, collection, "m")
            assert latest
            assert (latest[0].current_version, latest[1].version) == (3, 3)
            second = queries.find_version(session, collection, "m", 2)
            assert second
            assert second[1].version == 2
            assert queries.find_version(session, collection, "m", 4) is None
            found = queries.find_by_cid(session, collection, second[1].cid)
            assert found == second

    def test_collections_do_not_mix(self, database: Database) -> None:
        publish(database, MODELS)
        with database.read() as session:
            assert queries.find_latest(session, DATASETS, "m") is None
            assert not queries.history(session, DATASETS, "m", 0, 9)[0]

    def test_history_is_newest_first_and_paged(
        self, database: Database, collection: Collection
    ) -> None:
        for _ in range(5):
            publish(database, collection)
        with database.read() as session:
            total, rows = queries.history(session, collection, "m", 1, 3)
            assert total == 5
            assert [row.version for _, row in rows] == [4, 3, 2]
            assert {line.name for line, _ in rows} == {"m"}
            assert queries.history(session, collection, "m", 5, 3) == (5, [])

    def test_content_is_answered_by_its_newest_publication(
        self, database: Database, collection: Collection
    ) -> None:
        cid = cid_of("same")
        publish(database, collection, "new", cid=cid, now=NOW + LEASE)
        publish(database, collection, "old", cid=cid)
        with database.read() as session:
            found = queries.find_by_cid(session, collection, cid)
        assert found
        assert found[0].name == "new"

    def test_equally_new_content_is_answered_alike_each_time(
        self, database: Database, collection: Collection
    ) -> None:
        cid = cid_of("same")
        ids = [publish(database, collection, name, cid=cid) for name in "abcd"]
        with database.read() as session:
            found = queries.find_by_cid(session, collection, cid)
        assert found
        assert found[1].id == max(ids)

    def test_stored_content_is_that_of_the_first_publication(
        self, database: Database
    ) -> None:
        cid = cid_of("same")
        publish(database, MODELS, "late", cid=cid, object_key="3", now=NOW + 2 * LEASE)
        publish(database, DATASETS, cid=cid, object_key="1", sidecar_key=None)
        publish(database, MODELS, cid=cid, object_key="2", now=NOW + LEASE)
        with database.read() as session:
            stored = queries.find_stored_content(session, cid)
        assert stored == queries.StoredContent("1", None)

    # ----------------------------------------------------------------- listing

    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.differing_executors,
            HealthCheck.too_slow,
        ],
    )
    @given(
        lines=st.lists(LISTED, max_size=8, unique_by=lambda line: line.name),
        filters=FILTERS,
        sort=st.sampled_from(SORTS),
        page_size=st.integers(1, 4),
    )
    def test_lists_equal_a_plain_filter(
        self,
        database: Database,
        lines: list[Listed],
        filters: LineFilters,
        sort: str,
        page_size: int,
    ) -> None:
        with database.write() as session:
            for table in (tables.ModelTagRow, tables.ModelVersionRow, tables.ModelRow):
                session.execute(delete(table))
            ids = {line.name: _publish_listed(session, line) for line in lines}
        keys: dict[str, Callable[[Listed], Any]] = {
            "name": lambda line: line.name,
            "created_at": lambda line: (line.minute, ids[line.name]),
            "size": lambda line: (line.size, ids[line.name]),
        }
        expected = [
            line.name
            for line in sorted(
                (line for line in lines if line.passes(filters)),
                key=keys[sort.removeprefix("-")],
                reverse=sort.startswith("-"),
            )
        ]
        listed: list[str] = []
        for offset in range(0, len(lines) + page_size, page_size):
            with database.read() as session:
                total, rows = queries.list_latest(
                    session, MODELS, filters, sort, offset, page_size
                )
            assert total == len(expected)
            listed += [line.name for line, _ in rows]
        assert listed == expected

    def test_lists_hold_current_versions_only(
        self, database: Database, collection: Collection
    ) -> None:
        publish(database, collection, tags=["old"], file_format="pt")
        publish(database, collection, tags=["new"])
        publish(database, collection, "other")
        with database.read() as session:

            def found(**filters: Any) -> list[tuple[str, int]]:
                total, rows = queries.list_latest(
                    session, collection, LineFilters(**filters), "name", 0, 9
                )
                assert total == len(rows)
                return [(line.name, row.version) for line, row in rows]

            assert found() == [("m", 2), ("other", 1)]
            assert found(tags=("new",)) == [("m", 2)]
            assert found(tags=("old",)) == []
            assert found(file_format="pt") == []

    def test_datasets_have_no_framework_to_filter_by(self, database: Database) -> None:
        publish(database, DATASETS)
        with database.read() as session:
            for filters in (LineFilters(framework=""), LineFilters(model_type="")):
                listed = queries.list_latest(session, DATASETS, filters, "name", 0, 9)
                assert listed == (0, [])

    @pytest.mark.parametrize("odd", ["\0", "\ud800", "%", "_", "\\", "x" * 100_000])
    def test_filters_that_nothing_can_match_find_nothing(
        self, database: Database, odd: str
    ) -> None:
        publish(database, MODELS)
        with database.read() as session:
            for filters in (
                LineFilters(q=odd),
                LineFilters(owner=odd),
                LineFilters(framework=odd),
                LineFilters(tags=(odd,)),
            ):
                listed = queries.list_latest(session, MODELS, filters, "name", 0, 9)
                assert listed == (0, [])

    def test_lists_are_filtered_by_facts(
        self, database: Database, collection: Collection
    ) -> None:
        def annotated(kind: str, **classes: int) -> dict[str, Any]:
            return {"annotations": {"format": kind, "classes": classes}}

        for name, facts in {
            "quantized": {"quantized": True},
            "float": {"quantized": False},
            "unsafe": {"safety": {"verdict": "unsafe", "findings": []}},
            "safe": {"safety": {"verdict": "safe", "findings": []}},
            "coco": annotated("coco", person=2, dog=0, **{"a.b $[0]": 1, "ü": 3}),
            "voc": annotated("voc", person=1),
            "none": {"annotations": None},
            "empty": {},
        }.items():
            publish(database, collection, name, facts=facts)
        with database.read() as session:

            def found(**filters: Any) -> list[str]:
                total, rows = queries.list_latest(
                    session, collection, LineFilters(**filters), "name", 0, 99
                )
                assert total == len(rows)
                return [line.name for line, _ in rows]

            assert len(found()) == 8
            assert found(quantized=True) == ["quantized"]
            assert found(quantized=False) == ["float"]
            assert found(safety="unsafe") == ["unsafe"]
            assert found(annotations="coco") == ["coco"]
            assert found(has_class="person") == ["coco", "voc"]
            assert found(has_class="person", annotations="voc") == ["voc"]
            assert found(has_class="dog") == []
            assert found(has_class="a.b $[0]") == ["coco"]
            assert found(has_class="ü") == ["coco"]
            for odd in ('"', "\\", "'", "$", "", "\0", "x" * 9999):
                assert found(has_class=odd) == []

    def test_listings_of_an_archive_are_kept_and_named(
        self, database: Database
    ) -> None:
        places: dict[str, Any] = {
            "manifest_cid": cid_of("manifest"),
            "manifest_key": "datasets/m/v1.manifest.json",
            "index_cid": cid_of("index"),
            "index_key": "datasets/m/v1.members.idx",
        }
        cid = cid_of("archive")
        publish(database, DATASETS, cid=cid, **places)
        with database.read() as session:
            stored = queries.find_stored_content(session, cid)
            assert stored
            assert stored.listings == queries.StoredListings(**places)
            keys = [places["manifest_key"], places["index_key"], "datasets/m/v1.x"]
            assert queries.named_objects(session, keys) == set(keys[:2])

    def test_unknown_sort_order_is_refused(self, database: Database) -> None:
        with pytest.raises(InputError, match="-created_at"), database.read() as session:
            queries.list_latest(session, MODELS, LineFilters(), "color", 0, 9)

    # ------------------------------------------------------------------ claims

    def test_claim_has_the_next_number_and_its_tags(
        self, database: Database, collection: Collection
    ) -> None:
        publish(database, collection)
        with database.write() as session:
            row = claim(session, collection, tags=["b", "a", "b"])
            line = queries.find_line(session, collection, "m")
            assert line
            assert queries.find_claim(session, collection, line) is row
            tag = collection.tag
            tags = session.scalars(select(tag.tag).where(tag.version_id == row.id))
            assert sorted(tags) == ["a", "b"]
        assert (row.version, row.state, row.is_current) == (2, tables.STORING, False)

    def test_line_without_upload_has_no_claim(
        self, database: Database, collection: Collection
    ) -> None:
        publish(database, collection)
        with database.read() as session:
            line = queries.find_line(session, collection, "m")
            assert line
            assert queries.find_claim(session, collection, line) is None

    def test_line_keeps_its_first_owner(self, database: Database) -> None:
        with database.write() as session:
            first = queries.get_or_create_line(session, MODELS, "m", "ann", NOW)
        with database.write() as session:
            again = queries.get_or_create_line(session, MODELS, "m", "bob", NOW + LEASE)
        assert (again.id, again.owner_id, again.created_at) == (first.id, "ann", NOW)

    def test_second_claim_is_refused_and_the_transaction_goes_on(
        self, database: Database, collection: Collection
    ) -> None:
        with database.write() as session:
            claim(session, collection)
            with pytest.raises(AlreadyExistsError):
                claim(session, collection)
            assert queries.find_line(session, collection, "m")

    def test_published_claim_becomes_the_current_version(
        self, database: Database, collection: Collection
    ) -> None:
        publish(database, collection)
        later = NOW + LEASE
        with database.write() as session:
            row = claim(session, collection)
        with database.write() as session:
            assert queries.publish_claim(session, collection, row.id, "t", later)
        with database.write() as session:
            assert not queries.publish_claim(session, collection, row.id, "t", later)
            versions = queries.history(session, collection, "m", 0, 9)[1]
            assert [(v.version, v.is_current) for _, v in versions] == [
                (2, True),
                (1, False),
            ]
            line, latest = versions[0]
        assert line.current_version == 2
        assert (latest.state, latest.published_at) == (tables.PUBLISHED, later)
        assert (latest.lease_token, latest.lease_expires_at) == (None, None)

    def test_claim_obeys_only_its_token(
        self, database: Database, collection: Collection
    ) -> None:
        with database.write() as session:
            row = claim(session, collection)
        with database.write() as session:
            late = NOW + 2 * LEASE
            for id_, token in ((row.id, "x"), (uuid4(), "t")):
                assert not queries.publish_claim(session, collection, id_, token, NOW)
                assert not queries.renew_lease(session, collection, id_, token, late)
                assert not queries.release_claim(session, collection, id_, token)
                assert not queries.take_over_claim(
                    session, collection, id_, token, "y", late, late
                )
        with database.read() as session:
            line = queries.find_line(session, collection, "m")
            assert line
            left = queries.find_claim(session, collection, line)
            assert left
            assert (left.lease_token, left.lease_expires_at) == ("t", NOW + LEASE)

    def test_published_version_is_no_claim_any_more(
        self, database: Database, collection: Collection
    ) -> None:
        id_ = publish(database, collection)
        with database.write() as session:
            assert not queries.renew_lease(session, collection, id_, "t", NOW)
            assert not queries.release_claim(session, collection, id_, "t")
            assert queries.find_latest(session, collection, "m")

    def test_renewed_lease_lasts_longer(
        self, database: Database, collection: Collection
    ) -> None:
        with database.write() as session:
            row = claim(session, collection)
            renewed = NOW + 2 * LEASE
            assert queries.renew_lease(session, collection, row.id, "t", renewed)
        with database.read() as session:
            early, late = renewed - timedelta(microseconds=1), renewed
            assert queries.expired_claims(session, collection, early, 9) == []
            found = queries.expired_claims(session, collection, late, 9)
            assert [(line.name, v.id) for line, v in found] == [("m", row.id)]

    def test_only_an_expired_claim_is_taken_over(
        self, database: Database, collection: Collection
    ) -> None:
        with database.write() as session:
            row = claim(session, collection)
        expiry = NOW + LEASE
        early = expiry - timedelta(microseconds=1)
        with database.write() as session:
            new = (row.id, "t", "u", expiry + LEASE)
            assert not queries.take_over_claim(session, collection, *new, early)
            assert queries.take_over_claim(session, collection, *new, expiry)
            assert not queries.take_over_claim(session, collection, *new, expiry)
            assert not queries.publish_claim(session, collection, row.id, "t", NOW)
            assert queries.publish_claim(session, collection, row.id, "u", NOW)

    def test_expired_claims_come_oldest_first(
        self, database: Database, collection: Collection
    ) -> None:
        with database.write() as session:
            for name, seconds in (("b", 2), ("c", 3), ("a", 1), ("d", 4)):
                at = NOW + timedelta(seconds=seconds)
                claim(session, collection, name, lease_expires_at=at)
        with database.read() as session:
            now = NOW + timedelta(seconds=3)
            found = queries.expired_claims(session, collection, now, 9)
            assert [line.name for line, _ in found] == ["a", "b", "c"]
            found = queries.expired_claims(session, collection, now, 1)
            assert [line.name for line, _ in found] == ["a"]

    def test_released_first_claim_leaves_nothing(
        self, database: Database, collection: Collection
    ) -> None:
        with database.write() as session:
            row = claim(session, collection, tags=["a"])
        with database.write() as session:
            assert queries.release_claim(session, collection, row.id, "t")
        with database.read() as session:
            for table in (collection.line, collection.version, collection.tag):
                assert session.scalars(select(table)).all() == []

    def test_released_later_claim_leaves_the_line(
        self, database: Database, collection: Collection
    ) -> None:
        publish(database, collection)
        with database.write() as session:
            row = claim(session, collection)
            assert queries.release_claim(session, collection, row.id, "t")
            assert claim(session, collection).version == 2

    def test_named_objects_are_those_of_versions_and_claims(
        self, database: Database, collection: Collection
    ) -> None:
        publish(database, collection, object_key="o", sidecar_key="s", record_key="r")
        with database.write() as session:
            claim(session, collection, object_key="p", sidecar_key=None)
        with database.read() as session:
            keys = ["o", "s", "r", "p", "x", *map(str, range(1200))]
            assert queries.named_objects(session, keys) == {"o", "s", "r", "p"}
            assert queries.named_objects(session, []) == set()
            assert queries.object_is_named(session, "s")
            assert not queries.object_is_named(session, "x")

    # ------------------------------------------------------------------- races

    def test_one_of_many_gets_the_claim(
        self, database: Database, collection: Collection
    ) -> None:
        def attempt(number: int) -> bool:
            with database.write() as session:
                line = queries.get_or_create_line(
                    session, collection, "m", str(number), NOW
                )
                if queries.find_claim(session, collection, line):
                    return False
                claim(session, collection, token=str(number))
                return True

        assert sum(together(8, attempt)) == 1
        with database.read() as session:
            assert len(session.scalars(select(collection.line)).all()) == 1

    def test_claims_that_do_not_look_first_still_exclude_each_other(
        self, database: Database, collection: Collection
    ) -> None:
        publish(database, collection)

        def attempt(number: int) -> bool:
            try:
                with database.write() as session:
                    claim(session, collection, token=str(number))
            except AlreadyExistsError:
                return False
            return True

        assert sum(together(8, attempt)) == 1

    def test_lines_that_come_and_go_are_always_locked(
        self, database: Database, collection: Collection
    ) -> None:
        def come_and_go(number: int) -> None:
            for _ in range(15):
                try:
                    with database.write() as session:
                        row = claim(session, collection, token=str(number))
                except AlreadyExistsError:
                    continue
                with database.write() as session:
                    assert queries.release_claim(
                        session, collection, row.id, str(number)
                    )

        together(4, come_and_go)
        with database.read() as session:
            assert session.scalars(select(collection.line)).all() == []

    def test_publishing_and_taking_over_exclude_each_other(
        self, database: Database, collection: Collection
    ) -> None:
        late = NOW + 2 * LEASE
        for round_ in range(8):
            with database.write() as session:
                row = claim(session, collection, str(round_))

            def finish(number: int, id_: UUID = row.id) -> bool:
                with database.write() as session:
                    if number:
                        return queries.publish_claim(
                            session, collection, id_, "t", late
                        )
                    return queries.take_over_claim(
                        session, collection, id_, "t", "u", late, late
                    )

            assert sum(together(2, finish)) == 1

    def test_versions_of_parallel_publishers_have_no_holes(
        self, database: Database, collection: Collection
    ) -> None:
        def publish_some(number: int) -> int:
            done = 0
            while done < 5:
                try:
                    with database.write() as session:
                        row = claim(session, collection, token=str(number))
                except AlreadyExistsError:
                    continue
                with database.write() as session:
                    done += queries.publish_claim(
                        session, collection, row.id, str(number), NOW
                    )
            return done

        assert sum(together(3, publish_some)) == 15
        with database.read() as session:
            total, rows = queries.history(session, collection, "m", 0, 99)
            assert total == 15
            assert [row.version for _, row in rows] == list(range(15, 0, -1))

    # --------------------------------------------------------- users and audit

    def test_users_are_added_and_found(self, database: Database) -> None:
        with database.write() as session:
            queries.insert_user(
                session, "bob", **user(permissions=["model:read"], max_bytes=1 << 40)
            )
            queries.insert_user(session, "ann", **user(roles=["admin"]))
        with database.read() as session:
            bob = queries.find_user(session, "bob")
            assert bob
            assert (bob.roles, bob.permissions) == ([], ["model:read"])
            assert (bob.created_at, bob.disabled_at) == (NOW, None)
            assert (bob.max_versions, bob.max_bytes) == (None, 1 << 40)
            assert bob.token_generation == 0
            assert [row.id for row in queries.list_users(session)] == ["ann", "bob"]
            assert queries.find_user(session, "eve") is None
            assert queries.find_user(session, "\0") is None

    def test_secrets_of_before_are_each_users_first(
        self, url: str, database: Database
    ) -> None:
        downgrade(url, "0003")
        with database.write() as session:
            for name in ("ann", "bob"):
                session.execute(
                    text(
                        "INSERT INTO users (id, permissions, secret_hash, created_at)"
                        " VALUES (:id, '[\"admin\"]', :hash, :at)"
                    ),
                    {"id": name, "hash": f"of {name}", "at": NOW},
                )
            session.execute(
                text(
                    "INSERT INTO audit_events (at, principal, action, subject, detail)"
                    " VALUES (:at, 'operator', 'user.added', 'users/ann', '{}')"
                ),
                {"at": NOW},
            )
        migrate(url)
        with database.read() as session:
            secrets = session.scalars(
                select(tables.UserSecretRow).order_by(tables.UserSecretRow.user_id)
            ).all()
            event = session.scalars(
                select(tables.AuditEventRow).order_by(tables.AuditEventRow.seq)
            ).first()
            assert event
            assert [(s.user_id, s.label, s.secret_hash) for s in secrets] == [
                ("ann", "first", "of ann"),
                ("bob", "first", "of bob"),
            ]
            assert (event.seq, event.action, event.at) == (1, "user.added", NOW)
        with database.write() as session:
            queries.insert_user(session, "eve", **user(roles=["admin"]))
            session.add(
                tables.UserSecretRow(
                    id="0",
                    user_id="eve",
                    label="of March",
                    secret_hash="of eve",
                    created_at=NOW,
                    expires_at=NOW,
                )
            )
        downgrade(url, "0003")
        with database.read() as session:
            kept = session.execute(
                text("SELECT id, secret_hash FROM users ORDER BY id")
            ).all()
        assert [tuple(row) for row in kept] == [
            ("ann", "of ann"),
            ("bob", "of bob"),
            ("eve", "none"),  # not one that would never expire
        ]

    def test_one_of_many_gets_a_users_name(self, database: Database) -> None:
        def attempt(number: int) -> bool:
            try:
                with database.write() as session:
                    queries.insert_user(
                        session, "ann", **user(permissions=[str(number)])
                    )
            except AlreadyExistsError:
                return False
            return True

        assert sum(together(6, attempt)) == 1

    def test_audit_events_are_kept_in_order(self, database: Database) -> None:
        with database.write() as session:
            for action in ("user.added", "version.published"):
                append_event(
                    session,
                    at=NOW,
                    principal="ann",
                    action=action,
                    subject="models/m/v1",
                    detail={"size": 3},
                )
        with database.read() as session:
            event = tables.AuditEventRow
            events = session.scalars(select(event).order_by(event.id)).all()
        assert [e.action for e in events] == ["user.added", "version.published"]
        assert (events[0].at, events[0].detail) == (NOW, {"size": 3})


def _publish_listed(session: Session, line: Listed) -> UUID:
    framework, model_type, file_format = line.labels
    queries.get_or_create_line(session, MODELS, line.name, line.owner, NOW)
    row = claim(
        session,
        MODELS,
        line.name,
        framework=framework,
        model_type=model_type,
        file_format=file_format,
        tags=list(line.tags),
        description=line.description,
        file_size=line.size,
        now=NOW + timedelta(minutes=line.minute),
    )
    assert queries.publish_claim(session, MODELS, row.id, "t", NOW)
    return row.id


def _constraints(connection: Connection) -> dict[str, Any]:
    found = inspect(connection)
    ours = [name for name in found.get_table_names() if name != "alembic_version"]
    return {
        name: (
            sorted(map(repr, found.get_check_constraints(name))),
            sorted(
                repr(
                    (
                        index["name"],
                        index["column_names"],
                        index["unique"],
                        [*map(str, index.get("dialect_options", {}).values())],
                    )
                )
                for index in found.get_indexes(name)
            ),
            sorted(map(repr, found.get_unique_constraints(name))),
            sorted(map(repr, found.get_foreign_keys(name))),
            found.get_pk_constraint(name),
            sorted(
                (c["name"], str(c["type"]), c["nullable"])
                for c in found.get_columns(name)
            ),
        )
        for name in ours
    }
