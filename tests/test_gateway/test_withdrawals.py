"""Deprecated, blocked and purged versions over HTTP."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.archive_files import zip_file
from tests.fakes.model_files import tflite
from tests.fakes.scripted_store import ScriptedStore
from tests.test_gateway.running import MIB, OpenGateway, Running, problem
from vision_o3.content.cid import CID
from vision_o3.db import models as tables
from vision_o3.db.engine import Database
from vision_o3.gateway.opening import timing_of
from vision_o3.registry.audit import OPERATOR
from vision_o3.registry.purging import Purger
from vision_o3.registry.withdrawing import Wish
from vision_o3.storage.local import LocalStore

LARGE = tflite(1, 3 * MIB)
ARCHIVE = zip_file("a.txt", "b.txt")
REASON = "It misses people at night – nachts. Use v1."


def withdraw(
    running: Running,
    name: str,
    version: int,
    state: str = "blocked",
    *,
    collection: str = "models",
    reason: str = REASON,
    token: str = "",
) -> httpx.Response:
    return running.request(
        "PUT",
        f"/{collection}/{name}/versions/{version}/withdrawal",
        token,
        json={"state": state, "reason": reason},
    )


def lift(running: Running, name: str, version: int, token: str = "") -> httpx.Response:
    path = f"/models/{name}/versions/{version}/withdrawal"
    return running.request("DELETE", path, token)


def purge(running: Running, cid: str) -> None:
    """Purge as the command does, in another process: with a database of its own."""
    settings = running.settings
    with closing(Database(settings.database_url.get_secret_value())) as database:
        wish = Wish("purged", "A court said so.", OPERATOR, is_admin=True)
        store, timing = running.gateway.store, timing_of(settings)
        purger = Purger(database, store, None, timing, settings.cache_directory)
        purger.purge(CID.parse(cid), wish)


@pytest.fixture
def two(running: Running) -> Running:
    """A gateway with two versions of a model."""
    running.publish(tflite(1))
    running.publish(LARGE)
    return running


def test_a_deprecated_version_says_so_wherever_it_is_answered(two: Running) -> None:
    answer = withdraw(two, "m", 2, "deprecated")
    assert answer.status_code == 200
    document = answer.json()
    assert document["withdrawal"].keys() == {"state", "reason", "at"}
    assert document["withdrawal"]["state"] == "deprecated"
    assert document["withdrawal"]["reason"] == REASON
    at = datetime.fromisoformat(document["withdrawal"]["at"])
    cid = document["cid"]
    for path in ("/models/m", "/models/m/versions/2", f"/models/cid/{cid}"):
        assert two.get(path).json() == document
    assert two.get("/models").json()["items"] == [document]
    assert two.get("/models/m/versions").json()["items"][0] == document
    for path in (
        "/models/m/download",
        "/models/m/versions/2/download",
        f"/models/cid/{cid}/download",
        f"/models/cid/{cid}/dag",
    ):
        for method in ("GET", "HEAD"):
            told = two.request(method, path)
            assert told.status_code == 200
            assert told.headers["deprecation"] == f"@{int(at.timestamp())}"
    assert two.get("/models/m/download").content == LARGE
    other = two.get("/models/m/versions/1/download")
    assert "deprecation" not in other.headers
    assert "withdrawal" not in two.get("/models/m/versions/1").json()


def test_a_blocked_version_is_seen_but_not_handed_out(two: Running) -> None:
    assert two.get("/models/m").json()["version"] == 2  # so that it is kept
    document = withdraw(two, "m", 2).json()
    assert document["withdrawal"]["state"] == "blocked"
    cid = document["cid"]
    assert two.get("/models/m").json()["version"] == 1
    assert two.get("/models/m/download").content == tflite(1)
    assert [each["version"] for each in two.get("/models").json()["items"]] == [1]
    assert two.get("/models/m/versions/2").json() == document
    history = two.get("/models/m/versions").json()
    assert (history["total"], history["items"][0]) == (2, document)
    byte_paths = [
        "/models/m/versions/2/download",
        "/models/m/download?version=2",
        f"/models/cid/{cid}/download",
        f"/models/cid/{cid}/dag",
    ]
    for path in [*byte_paths, f"/models/cid/{cid}"]:
        refused = two.get(path)
        assert problem(refused) == (403, "version_blocked")
        assert refused.json()["reason"] == REASON
        assert REASON in refused.json()["detail"]
        assert "www-authenticate" not in refused.headers
        wanted = f"{path}{'&' if '?' in path else '?'}allow_blocked=true"
        assert two.get(wanted).status_code == 200
    for path in byte_paths:
        wanted = f"{path}{'&' if '?' in path else '?'}allow_blocked=true"
        assert two.get(wanted).headers["cache-control"] == "private, no-store"
    given = two.get("/models/m/versions/2/download?allow_blocked=true")
    assert given.content == LARGE
    assert two.get(f"/models/cid/{cid}?allow_blocked=true").json() == document


def test_a_line_without_a_latest_says_which_and_why(two: Running) -> None:
    withdraw(two, "m", 1, reason="Old.")
    withdraw(two, "m", 2)
    for path in ("/models/m", "/models/m/download"):
        for query in ("", "?allow_blocked=true"):
            refused = two.get(path + query)
            assert problem(refused) == (403, "version_blocked")
            assert "'m' version 2" in refused.json()["detail"]
    assert two.get("/models").json()["items"] == []
    assert two.get("/models/m/versions").json()["total"] == 2


def test_what_was_lifted_is_as_before(two: Running) -> None:
    before = two.get("/models/m/versions/2").json()
    withdraw(two, "m", 2)
    for _ in range(2):
        lifted = lift(two, "m", 2)
        assert (lifted.status_code, lifted.content) == (204, b"")
    assert two.get("/models/m/versions/2").json() == before
    assert two.get("/models/m").json() == before


def test_withdrawing_twice_is_once(two: Running) -> None:
    first = withdraw(two, "m", 2)
    assert withdraw(two, "m", 2).json() == first.json()
    found = [each.key for each in two.gateway.store.list("models/m/v2.withdrawal-")]
    assert found == ["models/m/v2.withdrawal-1.json"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"state": "blocked"},
        {"state": "purged", "reason": "x"},
        {"state": "lifted", "reason": "x"},
        {"state": "blocked", "reason": ""},
        {"state": "blocked", "reason": "x" * 501},
        {"state": "blocked", "reason": "two\nlines"},
        {"state": "blocked", "reason": "nul\0"},
        {"state": "blocked", "reason": "x", "at": "2026-01-01T00:00:00Z"},
        {"state": "blocked", "reason": 5},
        [],
        None,
    ],
)
def test_bad_bodies_are_refused(two: Running, body: Any) -> None:
    answer = two.request("PUT", "/models/m/versions/2/withdrawal", json=body)
    assert problem(answer) == (422, "invalid_input")
    assert "withdrawal" not in two.get("/models/m/versions/2").json()


def test_what_is_not_there_cannot_be_withdrawn(two: Running) -> None:
    for name, version, code in (
        ("m", "3", (404, "not_found")),
        ("n", "1", (404, "not_found")),
        ("m", "x", (422, "invalid_version")),
        ("M", "1", (422, "invalid_name")),
    ):
        path = f"/models/{name}/versions/{version}/withdrawal"
        body = {"state": "blocked", "reason": "x"}
        assert problem(two.request("PUT", path, json=body)) == code
        assert problem(two.request("DELETE", path)) == code


def test_only_who_may_write_to_the_line_withdraws(two: Running) -> None:
    writer = two.token("model:write", user="bob")
    for answer in (
        withdraw(two, "m", 2, token=writer),
        lift(two, "m", 2, token=writer),
        withdraw(two, "m", 2, token=two.token("model:read")),
        withdraw(two, "m", 2, token=two.token("dataset:write")),
    ):
        assert problem(answer) == (403, "permission_denied")
        assert answer.headers["www-authenticate"].startswith("Bearer error=")
    owner = two.token("model:write", user="ann")
    assert withdraw(two, "m", 2, token=owner).status_code == 200
    assert lift(two, "m", 2, token=owner).status_code == 204
    admin = two.token("model:write", "admin", user="bob")
    assert withdraw(two, "m", 2, token=admin).status_code == 200
    for answer in (
        lift(two, "m", 2, token=owner),
        withdraw(two, "m", 2, "deprecated", token=owner),
    ):
        assert problem(answer) == (403, "permission_denied")
        assert "Only an admin" in answer.json()["detail"]
    assert lift(two, "m", 2, token=admin).status_code == 204


def test_the_audit_trail_names_who_did_it(two: Running) -> None:
    answer = withdraw(two, "m", 2)
    with two.gateway.database.read() as session:
        event = (
            session.query(tables.AuditEventRow)
            .filter(tables.AuditEventRow.action == "version.blocked")
            .one()
        )
    assert (event.principal, event.subject) == ("ann", "models/m/v2")
    assert event.detail["reason"] == REASON
    assert event.request_id == answer.headers["x-request-id"]


def test_files_of_a_blocked_dataset_are_not_handed_out(running: Running) -> None:
    running.publish(ARCHIVE, "d.zip", "datasets")
    running.publish(zip_file("c.txt"), "d.zip", "datasets")
    assert withdraw(running, "m", 1, collection="datasets").status_code == 200
    for path in (
        "/datasets/m/versions/1/manifest",
        "/datasets/m/versions/1/manifest?page=1",
        "/datasets/m/versions/1/files/a.txt",
        "/datasets/m/diff?from=1&to=2",
        "/datasets/m/diff?from=2&to=1",
    ):
        assert problem(running.get(path)) == (403, "version_blocked")
        wanted = f"{path}{'&' if '?' in path else '?'}allow_blocked=true"
        assert running.get(wanted).status_code == 200
    withdraw(running, "m", 2, "deprecated", collection="datasets")
    for path in ("manifest", "files/c.txt"):
        answer = running.get(f"/datasets/m/versions/2/{path}")
        assert answer.headers["deprecation"].startswith("@")


def test_blocked_content_is_not_published_again(two: Running) -> None:
    cid = withdraw(two, "m", 2).json()["cid"]
    writer = two.token("model:write", "model:read")
    with_file = {"data": {"name": "n"}, "files": {"file": ("m.tflite", LARGE)}}
    fields = {"name": "n", "filename": "m.tflite", "cid": cid}
    without = {"files": {name: (None, value) for name, value in fields.items()}}
    for form in (with_file, without):
        answer = two.request("POST", "/models", writer, **form)
        assert problem(answer) == (403, "version_blocked")
        assert answer.json()["reason"] == REASON
    assert not list(two.settings.spool_directory.iterdir())
    assert two.publish(LARGE, name="other").status_code == 201, "by an admin"


def test_purged_content_is_gone(two: Running) -> None:
    document = two.get("/models/m/versions/2").json()
    cid = document["cid"]
    assert two.get("/models/m/download").content == LARGE
    purge(two, cid)
    for path in (
        "/models/m/versions/2",
        "/models/m/versions/2/download",
        "/models/m/versions/2/download?allow_blocked=true",
        "/models/m/download?version=2",
        f"/models/cid/{cid}",
        f"/models/cid/{cid}/download",
        f"/models/cid/{cid}/dag?allow_blocked=true",
    ):
        answer = two.get(path)
        assert problem(answer) == (410, "version_purged")
        assert answer.json()["reason"] == "A court said so."
    assert two.get("/models/m").json()["version"] == 1
    entry = two.get("/models/m/versions").json()["items"][0]
    assert entry["withdrawal"]["state"] == "purged"
    assert (entry["version"], entry["cid"], entry["facts"]) == (2, cid, {})
    assert problem(withdraw(two, "m", 2)) == (410, "version_purged")
    assert problem(lift(two, "m", 2)) == (410, "version_purged")
    writer = two.token("model:write", "model:read")
    answer = two.request(
        "POST",
        "/models",
        writer,
        data={"name": "n"},
        files={"file": ("m.tflite", LARGE)},
    )
    assert problem(answer) == (410, "version_purged")
    assert two.publish(LARGE).json()["version"] == 3
    assert two.get("/models/m/download").content == LARGE


def test_purged_content_leaves_the_hot_cache_when_the_gateway_sweeps(
    open_gateway: OpenGateway, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    # So that blocks are kept: of a local store they would not be.
    store = ScriptedStore("", LocalStore(tmp_path / "objects"))
    settings = {"cache_dir": str(cache), "sweep_interval_s": 3600}
    with open_gateway(store, **settings) as running:
        cid = running.publish(LARGE).json()["cid"]
        assert running.get("/models/m/download").content == LARGE
        assert list((cache / cid).iterdir())
        running.gateway.models.withdraw("m", 1, Wish("blocked", "x", OPERATOR))
        with closing(Database(running.settings.database_url.get_secret_value())) as own:
            wish = Wish("purged", "A court said so.", OPERATOR, is_admin=True)
            timing = timing_of(running.settings)
            Purger(own, store, None, timing).purge(CID.parse(cid), wish)
        assert list((cache / cid).iterdir()), "another machine's cache"
    with open_gateway(store, **settings) as running:
        deadline = 500
        while (cache / cid).exists():
            deadline -= 1
            assert deadline, "the first sweep did not remove it"
            running.get("/health", token=None)
