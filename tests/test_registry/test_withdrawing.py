from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.conformance.metadata_store import together
from tests.fakes.archive_files import zip_file
from tests.fakes.model_files import tflite
from tests.fakes.scripted_store import ScriptedStore
from tests.test_registry.conftest import Registry, open_registry
from tests.test_registry.databases import registry, shared_postgres
from tests.test_registry.withdrawals import (
    ANN,
    blocked,
    deprecated,
    lifted,
    purge,
    withdrawer_of,
)
from vision_o3.content.dag import cid_of_bytes
from vision_o3.db import models as tables
from vision_o3.db.models import DATASETS, MODELS
from vision_o3.db.queries import LineFilters
from vision_o3.errors import (
    ConflictError,
    InputError,
    InvalidNameError,
    NotFoundError,
    PermissionDeniedError,
    StorageError,
    VersionBlockedError,
    VersionPurgedError,
)
from vision_o3.registry.audit import OPERATOR, Actor
from vision_o3.registry.withdrawing import Wish
from vision_o3.storage.local import LocalStore

__all__ = ["registry", "shared_postgres"]

BOB = Actor("bob")


def documents(registry: Registry) -> dict[str, dict[str, Any]]:
    """Return the decisions in the store; of one version in their order."""
    return {
        found.key: json.loads(registry.store.get(found.key, max_size=found.size))
        for found in sorted(registry.store.list(), key=lambda found: found.key)
        if ".withdrawal-" in found.key
    }


def events(registry: Registry) -> list[tables.AuditEventRow]:
    with registry.database.read() as session:
        event = tables.AuditEventRow
        found = session.scalars(
            select(event).where(event.action != "version.published").order_by(event.seq)
        )
        return list(found)


def listed(registry: Registry) -> dict[str, int]:
    page = registry.models.list(LineFilters(), sort="name", page=1, page_size=50)
    assert page.total == len(page.items)
    return {each.name: each.version for each in page.items}


def test_a_deprecated_version_is_served_and_says_so(registry: Registry) -> None:
    registry.publish(tflite(1))
    before = datetime.now(UTC)
    version = registry.models.withdraw("m", 1, deprecated())
    assert version.withdrawal is not None
    assert (version.is_deprecated, version.withdrawal.reason) == (True, "Use v2.")
    assert before <= version.withdrawal.at <= datetime.now(UTC)
    assert registry.models.latest("m") == version
    assert registry.models.version("m", 1) == version
    assert registry.models.by_cid(version.cid) == version
    assert listed(registry) == {"m": 1}
    assert registry.read(1) == tflite(1)


def test_a_blocked_version_is_not_the_latest_until_it_is_lifted(
    registry: Registry,
) -> None:
    for seed in (1, 2, 3):
        registry.publish(tflite(seed))
    assert registry.models.withdraw("m", 3, blocked()).is_blocked
    assert registry.models.latest("m").version == 2
    assert listed(registry) == {"m": 2}
    assert registry.models.version("m", 3).is_blocked
    registry.models.withdraw("m", 1, blocked())
    assert registry.models.latest("m").version == 2
    page = registry.models.history("m", page=1, page_size=2)
    assert (page.total, [each.version for each in page.items]) == (3, [3, 2])
    assert registry.models.withdraw("m", 3, lifted()).withdrawal is None
    assert registry.models.latest("m").version == 3


def test_a_number_is_never_used_again(registry: Registry) -> None:
    registry.publish(tflite(1))
    registry.publish(tflite(2))
    registry.models.withdraw("m", 2, blocked())
    third = registry.publish(tflite(3))
    assert third.version.version == 3
    assert registry.models.latest("m").version == 3


def test_what_the_latest_has_is_asked_of_what_is_served(registry: Registry) -> None:
    registry.publish(tflite(1))
    registry.publish(tflite(2))
    registry.models.withdraw("m", 2, blocked())
    again = registry.publish(tflite(1))
    assert (again.created, again.version.version) == (False, 1)


def test_a_line_of_which_nothing_is_left_says_why(registry: Registry) -> None:
    registry.publish(tflite(1))
    registry.publish(tflite(2))
    registry.models.withdraw("m", 1, blocked("Old."))
    registry.models.withdraw("m", 2, blocked("It sees ghosts."))
    with pytest.raises(VersionBlockedError, match="'m' version 2 is blocked") as error:
        registry.models.latest("m")
    assert error.value.values["reason"] == "It sees ghosts."
    assert listed(registry) == {}
    assert registry.models.history("m", page=1, page_size=9).total == 2
    with pytest.raises(NotFoundError, match="Its latest is 2"):
        registry.models.version("m", 3)
    purge(registry, registry.models.version("m", 2))
    with pytest.raises(VersionBlockedError, match="version 1"):
        registry.models.latest("m")
    purge(registry, registry.models.version("m", 1))
    with pytest.raises(VersionPurgedError, match="version 2 was purged: A court"):
        registry.models.latest("m")


def test_a_cid_stands_for_a_version_that_may_be_used(registry: Registry) -> None:
    cid = registry.publish(tflite(1), "a").version.cid
    registry.publish(tflite(1), "b")
    registry.publish(tflite(1), "c")

    def name() -> str:
        return registry.models.by_cid(cid).name

    assert name() == "c"
    registry.models.withdraw("c", 1, blocked())
    assert name() == "b"
    registry.models.withdraw("b", 1, deprecated())
    assert name() == "a"
    registry.models.withdraw("a", 1, blocked())
    assert name() == "b"
    registry.models.withdraw("b", 1, blocked())
    assert registry.models.by_cid(cid).is_blocked
    assert name() == "c"


def test_content_that_is_blocked_everywhere_is_published_by_admins_alone(
    registry: Registry,
) -> None:
    archive = zip_file("a.txt")
    registry.publish_dataset(archive, "d")
    registry.publish_dataset(archive, "e")
    registry.datasets.withdraw("d", 1, blocked())
    registry.publish_dataset(archive, "f")
    for name in ("e", "f"):
        registry.datasets.withdraw(name, 1, blocked("Faces."))
    keys = registry.stored_keys()
    with pytest.raises(VersionBlockedError, match=r"was blocked: Faces\."):
        registry.publish_dataset(archive, "g")
    with pytest.raises(VersionBlockedError):
        registry.publish_dataset(archive, "d")
    assert registry.stored_keys() == keys
    assert registry.publish_to(
        registry.datasets, archive, "g", "d.zip", is_admin=True
    ).created
    assert registry.publish_dataset(archive, "h").created


def test_every_change_is_in_the_audit_trail_and_the_store(registry: Registry) -> None:
    cid = registry.publish(tflite(1)).version.cid
    registry.models.withdraw("m", 1, deprecated())
    registry.models.withdraw("m", 1, blocked())
    registry.models.withdraw("m", 1, lifted("It was the light."))
    recorded = events(registry)
    assert [(each.action, each.subject) for each in recorded] == [
        ("version.deprecated", "models/m/v1"),
        ("version.blocked", "models/m/v1"),
        ("version.unblocked", "models/m/v1"),
    ]
    assert {(e.principal, e.address, e.request_id) for e in recorded} == {
        (ANN.principal, ANN.address, ANN.request_id)
    }
    assert [each.detail for each in recorded] == [
        {"cid": str(cid), "number": 1, "reason": "Use v2."},
        {"cid": str(cid), "number": 2, "reason": "It sees ghosts."}
        | {"was": "deprecated"},
        {"cid": str(cid), "number": 3, "reason": "It was the light."}
        | {"was": "blocked"},
    ]
    stored = documents(registry)
    assert list(stored) == [f"models/m/v1.withdrawal-{n}.json" for n in (1, 2, 3)]
    assert [each["state"] for each in stored.values()] == [
        "deprecated",
        "blocked",
        "lifted",
    ]


def test_a_wish_that_is_met_changes_nothing(registry: Registry) -> None:
    registry.publish(tflite(1))
    assert registry.models.withdraw("m", 1, lifted()).withdrawal is None
    first = registry.models.withdraw("m", 1, blocked())
    assert registry.models.withdraw("m", 1, blocked()) == first
    assert len(documents(registry)) == len(events(registry)) == 1
    other = registry.models.withdraw("m", 1, blocked("Another reason."))
    assert other.withdrawal is not None
    assert other.withdrawal.number == 2


@pytest.mark.parametrize(
    "reason", ["", " ", "a\nb", "a\u2028b", "a\x00", "\ud800", "x" * 501, " a", "a "]
)
def test_what_is_no_reason_is_refused(reason: str) -> None:
    for state in ("deprecated", "blocked", "purged", "lifted"):
        with pytest.raises(InputError, match="reason"):
            Wish(state, reason, ANN)
    assert Wish("blocked", "x" * 500, ANN).reason


def test_only_what_is_there_can_be_withdrawn(registry: Registry) -> None:
    registry.publish(tflite(1))
    for name, number, error in (
        ("m", 2, NotFoundError),
        ("n", 1, NotFoundError),
        ("N", 1, InvalidNameError),
    ):
        with pytest.raises(error):
            registry.models.withdraw(name, number, blocked())
    with pytest.raises(NotFoundError):
        registry.datasets.withdraw("m", 1, blocked())
    assert documents(registry) == {}


def test_the_line_of_another_is_left_alone(registry: Registry) -> None:
    registry.publish(tflite(1))
    for state in ("deprecated", "blocked", "lifted"):
        with pytest.raises(PermissionDeniedError, match="another's"):
            registry.models.withdraw("m", 1, Wish(state, "No.", BOB, owner_only=True))
    assert documents(registry) == {}
    assert registry.models.withdraw("m", 1, blocked(owner_only=True)).is_blocked
    lifting = registry.models.withdraw("m", 1, Wish("lifted", None, BOB))
    assert lifting.withdrawal is None


def test_what_an_admin_blocked_only_an_admin_lifts(registry: Registry) -> None:
    registry.publish(tflite(1))
    registry.models.withdraw("m", 1, blocked())
    # The same by an admin is more: the owner cannot take it back any more.
    registry.models.withdraw("m", 1, blocked(is_admin=True))
    for wish in (lifted(), deprecated(), blocked("Other."), lifted(owner_only=True)):
        with pytest.raises(PermissionDeniedError, match="Only an admin"):
            registry.models.withdraw("m", 1, wish)
    assert registry.models.withdraw("m", 1, blocked()).is_blocked, "it is met"
    assert len(documents(registry)) == 2
    assert not registry.models.withdraw("m", 1, lifted(is_admin=True)).is_blocked
    registry.models.withdraw("m", 1, deprecated(is_admin=True))
    assert registry.models.withdraw("m", 1, lifted()).withdrawal is None


def test_all_versions_of_a_content_are_blocked_at_once(registry: Registry) -> None:
    cid = registry.publish(tflite(1), "a").version.cid
    other = registry.publish(tflite(2), "a").version.cid
    registry.publish(tflite(1), "a")
    registry.publish(tflite(1), "b")
    done = withdrawer_of(registry).withdraw_content(cid, blocked())
    assert [(each.name, each.version) for each in done] == [
        ("a", 1),
        ("a", 3),
        ("b", 1),
    ]
    assert all(each.is_blocked for each in done)
    assert listed(registry) == {"a": 2}
    lifting = withdrawer_of(registry).withdraw_content(cid, lifted())
    assert [each.withdrawal for each in lifting] == [None] * 3
    assert listed(registry) == {"a": 3, "b": 1}
    assert other not in {each.cid for each in (*done, *lifting)}
    with pytest.raises(NotFoundError, match="No model and no dataset"):
        withdrawer_of(registry).withdraw_content(cid_of_bytes(b"?"), blocked())


def test_content_cannot_slip_in_while_it_is_blocked(registry: Registry) -> None:
    cid = registry.publish(tflite(1), "first").version.cid

    def work(number: int) -> str:
        if number == 0:
            withdrawer_of(registry).withdraw_content(cid, blocked())
            return "blocked"
        try:
            registry.publish(tflite(1), f"line-{number}")
        except VersionBlockedError:
            return "refused"
        return "published"

    outcomes = together(6, work)
    assert outcomes[0] == "blocked"
    assert registry.models.by_cid(cid).is_blocked
    assert listed(registry) == {}
    visible = outcomes.count("published") + 1
    records = {key for key in registry.stored_keys() if key.endswith("record.json")}
    assert len(records) == visible, "the refused ones left nothing"


def test_content_that_is_purged_while_it_is_blocked_is_purged(
    registry: Registry, tmp_path: Path
) -> None:
    version = registry.publish(tflite(1), "a").version
    registry.publish(tflite(1), "b")
    inner = registry.store
    purged: list[object] = []

    class Purging(LocalStore):
        """Lets somebody purge all of it once the first of two versions is blocked."""

        def list(self, prefix: str = "") -> Iterator[Any]:
            if prefix == "models/b/v1.withdrawal-" and not purged:
                purged.append(purge(registry, version, store=inner))
            return super().list(prefix)

    registry.store = Purging(tmp_path / "objects")
    left = withdrawer_of(registry).withdraw_content(version.cid, blocked())
    assert [each.is_purged for each in left] == [True, True]
    assert purged


def test_many_who_decide_at_once_leave_one_order(registry: Registry) -> None:
    registry.publish(tflite(1))
    registry.publish(tflite(2))

    def work(number: int) -> object:
        wish = (deprecated, blocked)[number % 2](f"Reason {number}.")
        return registry.models.withdraw("m", 2, wish)

    together(8, work)
    stored = list(documents(registry).values())
    trail = [each.detail for each in events(registry)]
    assert len(stored) == len(trail) == 8
    by_number = sorted(stored, key=lambda each: int(each["number"]))
    assert [each["reason"] for each in by_number] == [each["reason"] for each in trail]
    last = registry.models.version("m", 2).withdrawal
    assert last is not None
    assert (last.number, last.reason) == (8, by_number[-1]["reason"])
    assert registry.models.latest("m").version == (1 if last.state == "blocked" else 2)


@pytest.mark.parametrize("script", ["T", "OT", "OX"])
def test_a_wish_that_was_broken_off_is_repeated(tmp_path: Path, script: str) -> None:
    store = ScriptedStore("", LocalStore(tmp_path / "objects"))
    with open_registry(tmp_path, store) as registry:
        registry.publish(tflite(1))
        store._script = iter(script)
        with pytest.raises(StorageError):
            registry.models.withdraw("m", 1, blocked())
        assert registry.models.version("m", 1).withdrawal is None
        assert events(registry) == []
        version = registry.models.withdraw("m", 1, blocked())
        assert version.is_blocked
        assert len(documents(registry)) == len(events(registry)) == 1


def test_another_wish_after_one_that_was_broken_off_comes_after_it(
    tmp_path: Path,
) -> None:
    store = ScriptedStore("", LocalStore(tmp_path / "objects"))
    with open_registry(tmp_path, store) as registry:
        registry.publish(tflite(1))
        store._script = iter("OX")
        with pytest.raises(StorageError):
            registry.models.withdraw("m", 1, blocked())
        # Not blocked as far as anybody was told, but a rebuilt index would say so.
        registry.models.withdraw("m", 1, lifted())
        assert [each["state"] for each in documents(registry).values()] == [
            "blocked",
            "lifted",
        ]
        registry.models.withdraw("m", 1, deprecated())
        assert len(documents(registry)) == 3


def test_saying_again_what_an_admin_said_does_not_take_it_from_them(
    tmp_path: Path,
) -> None:
    store = ScriptedStore("", LocalStore(tmp_path / "objects"))
    with open_registry(tmp_path, store) as registry:
        registry.publish(tflite(1))
        registry.models.withdraw("m", 1, blocked(is_admin=True))
        store._script = iter("OX")
        with pytest.raises(StorageError):
            registry.models.withdraw("m", 1, lifted(is_admin=True))
        # What is left of that makes the same block another decision.
        registry.models.withdraw("m", 1, blocked())
        assert len(documents(registry)) == 3
        with pytest.raises(PermissionDeniedError, match="Only an admin"):
            registry.models.withdraw("m", 1, lifted())


def test_what_lies_in_the_way_and_is_no_decision_is_passed_over(
    registry: Registry,
) -> None:
    registry.publish(tflite(1))
    registry.store.put("models/m/v1.withdrawal-1.json", b"{}")
    registry.store.put("models/m/v1.withdrawal-2.json", b"x" * (1 << 20))
    version = registry.models.withdraw("m", 1, blocked())
    assert version.withdrawal is not None
    assert version.withdrawal.number == 3


def test_an_endless_quarrel_is_given_up(registry: Registry, tmp_path: Path) -> None:
    registry.publish(tflite(1))

    class Forgetful(LocalStore):
        """Lists nothing, so that all that is put is there already."""

        def list(self, prefix: str = "") -> Iterator[Any]:
            del prefix
            return iter(())

    store = Forgetful(tmp_path / "objects")
    store.put("models/m/v1.withdrawal-1.json", b"{}")
    registry.store = store
    with pytest.raises(ConflictError, match="at the same moment"):
        registry.models.withdraw("m", 1, blocked())
    assert registry.models.version("m", 1).withdrawal is None


def test_a_block_while_a_version_is_stored_stops_it(
    registry: Registry, tmp_path: Path
) -> None:
    cid = registry.publish(tflite(1), "a").version.cid
    keys = registry.stored_keys()

    class Blocking(LocalStore):
        """Lets somebody block the content while its record is being stored."""

        def put(self, key: str, content: bytes) -> None:
            if key == "models/b/v1.record.json":
                withdrawer_of(registry).withdraw_content(cid, blocked())
            super().put(key, content)

    inner = registry.store
    registry.store = Blocking(tmp_path / "objects")
    with pytest.raises(VersionBlockedError, match="was blocked"):
        registry.publish(tflite(1), "b")
    registry.store = inner
    assert registry.stored_keys() == keys | {"models/a/v1.withdrawal-1.json"}
    with pytest.raises(NotFoundError):
        registry.models.version("b", 1)


def test_operators_are_named_as_such(registry: Registry) -> None:
    registry.publish_dataset(zip_file("a.txt"))
    wish = Wish("blocked", "Faces.", OPERATOR, is_admin=True)
    withdrawer_of(registry).withdraw(DATASETS, "d", 1, wish)
    assert events(registry)[0].principal == "operator"
    with pytest.raises(NotFoundError):
        withdrawer_of(registry).withdraw(MODELS, "d", 1, wish)


def test_readers_see_each_change_whole(registry: Registry) -> None:
    """While it is blocked and lifted again, a latest is always there."""
    registry.publish(tflite(1))
    registry.publish(tflite(2))
    stop = threading.Event()
    seen: set[int] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(registry.models.latest("m").version)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        wishes: tuple[Callable[[], Wish], ...] = (blocked, lifted)
        for number in range(10):
            registry.models.withdraw("m", 2, wishes[number % 2]())
    finally:
        stop.set()
        reader.join()
    assert seen <= {1, 2}
