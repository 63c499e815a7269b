"""The routes of the audit trail."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from tests.test_gateway.running import Running, problem
from tests.test_registry.trails import AT, add_events
from vision_o3.db.audit import FIRST, Event
from vision_o3.registry.audit_trail import BATCH, Head, verify_trail


def subjects(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["subject"] for item in answer.json()["items"]]


def events_of(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_change_is_listed_with_who_made_it_and_by_which_request(
    running: Running,
) -> None:
    published = running.publish()
    (event,) = running.get("/admin/audit?action=version.published").json()["items"]
    assert event["principal"] == "ann"
    assert event["subject"] == "models/m/v1"
    assert event["detail"]["cid"] == published.json()["cid"]
    assert event["request_id"] == published.headers["x-request-id"]
    assert datetime.fromisoformat(event["at"]).tzinfo
    head = running.get("/admin/audit/head").json()
    assert (head["chain"], head["seq"]) == (event["chain"], event["seq"])
    assert head["head"] == f"{head['chain']}:{head['seq']}:{head['hash']}"
    noted = Head.parse(head["head"])
    assert verify_trail(running.gateway.database, [noted]).whole


def test_events_come_in_pages_newest_first(running: Running) -> None:
    add_events(running.gateway.database, *(f"s/{number}" for number in range(5)))
    first = running.get("/admin/audit?page_size=2&subject=s")
    assert subjects(first) == ["s/4", "s/3"]
    document = first.json()
    assert (document["page"], document["page_size"], document["total"]) == (1, 2, 5)
    assert first.headers["link"].count("</admin/audit?subject=s&page=") == 3
    assert subjects(running.get("/admin/audit?page_size=2&page=3&subject=s")) == ["s/0"]
    assert subjects(running.get("/admin/audit?page_size=2&page=4&subject=s")) == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("principal=bob", ["s/2"]),
        ("action=a", ["s/1", "s/2"]),
        ("action=a.x", ["s/1"]),
        ("subject=s/1", ["s/1", "s/1/t"]),
        (f"since={quote((AT + timedelta(seconds=1)).isoformat())}&action=a", []),
        ("subject=s&until=2000-01-01T00:00:00Z", []),
        ("since=0001-01-01T00:00:00%2B23:59&action=a.x", ["s/1"]),
        ("until=9999-12-31T23:59:59-23:59&action=a.x", ["s/1"]),
        ("principal=%00", []),
    ],
)
def test_events_are_filtered_alike_in_list_and_export(
    running: Running, query: str, found: list[str]
) -> None:
    database = running.gateway.database
    add_events(database, "s/1", principal="ann", action="a.x")
    add_events(database, "s/2", principal="bob", action="a.y")
    add_events(database, "s/1/t", principal="eve", action="b")
    assert sorted(subjects(running.get(f"/admin/audit?{query}"))) == found
    exported = events_of(running.get(f"/admin/audit/export?{query}"))
    assert sorted(event["subject"] for event in exported) == found


def test_an_export_is_lines_of_all_events_that_verify(running: Running) -> None:
    running.publish()
    count = BATCH + 3
    add_events(running.gateway.database, *(f"s/{number}" for number in range(count)))
    answer = running.get("/admin/audit/export")
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert "content-length" not in answer.headers
    assert answer.text.endswith("\n")
    events = events_of(answer)
    assert [event["subject"] for event in events[-count:]] == [
        f"s/{number}" for number in range(count)
    ]
    before = FIRST
    for document in events:
        at = datetime.fromisoformat(document["at"])
        event = Event(**{**document, "at": at})
        assert event.hash_after(before) == event.hash
        before = event.hash
    assert running.get("/admin/audit/head").json()["hash"] == before


def test_an_export_of_nothing_is_empty(running: Running) -> None:
    answer = running.get("/admin/audit/export?principal=nobody")
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", ["", "/export"])
@pytest.mark.parametrize(
    "query",
    [
        "since=2026-11-25",
        "since=2026-11-25T10:00:00",
        "until=yesterday",
        "since=1e400",
        f"subject={'x' * 513}",
        f"principal={'x' * 256}",
        f"action={'x' * 65}",
        "who=ann",
    ],
)
def test_filters_that_are_none_are_told(
    running: Running, path: str, query: str
) -> None:
    answer = running.get(f"/admin/audit{path}?{query}")
    assert problem(answer) == (422, "invalid_input")


def test_an_export_has_no_pages(running: Running) -> None:
    answer = running.get("/admin/audit/export?page=1")
    assert problem(answer) == (422, "invalid_input")


def test_texts_of_callers_stay_on_one_line(running: Running) -> None:
    odd = "s/\n\r\u2028\x1b[31m\x7f\0\ud800"
    add_events(running.gateway.database, odd)
    answer = running.get("/admin/audit/export?subject=s")
    assert answer.text.count("\n") == 1
    assert answer.text.isascii()
    (event,) = events_of(answer)
    assert event["subject"] == "s/\n\r\u2028\x1b[31m\x7f\\x00\\ud800"
    assert subjects(running.get("/admin/audit?subject=s")) == [event["subject"]]
    assert datetime.fromisoformat(event["at"]) == AT.astimezone(UTC)
