"""The commands ``admin audit …``."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.test_gateway.running import SECRET
from tests.test_integration.gateways import postgres_database
from tests.test_registry.trails import AT, add_events, tampering
from vision_o3.__main__ import main
from vision_o3.db.engine import Database
from vision_o3.db.migrate import migrate
from vision_o3.registry.audit_trail import head_of
from vision_o3.settings import Settings, variable_of

Capture = pytest.CaptureFixture[str]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database]:
    """A database that the environment's settings name."""

    def opened(url: str) -> Iterator[Database]:
        for field in Settings.model_fields:
            monkeypatch.delenv(variable_of(field), raising=False)
        monkeypatch.setenv("VISION_O3_DATABASE_URL", url)
        monkeypatch.setenv("VISION_O3_STORE", str(tmp_path / "objects"))
        monkeypatch.setenv("VISION_O3_JWT_SECRET", SECRET)
        migrate(url)
        database = Database(url)
        yield database
        database.close()

    if request.param == "sqlite":
        yield from opened(f"sqlite:///{tmp_path}/registry.db")
    else:
        with postgres_database() as url:
            yield from opened(url)


def run(*words: str) -> int:
    return main(["admin", "audit", *words])


def run_json(capsys: Capture, *words: str, code: int = 0) -> Any:
    assert run(*words, "--json") == code
    return json.loads(capsys.readouterr().out)


def test_a_whole_trail_is_said_to_be(database: Database, capsys: Capture) -> None:
    assert run("verify") == 0
    assert "whole: 0 events" in capsys.readouterr().out
    add_events(database, "a", "b")
    assert run("verify") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"Chain {head_of(database).chain} (this database's): 2 ")
    assert said[-1] == "The audit trail is whole: 2 events."
    document = run_json(capsys, "verify")
    assert document["whole"] is True
    assert document["chains"][0]["verified"] == 2


def test_tampering_is_told_with_where_and_what_to_do(
    database: Database, capsys: Capture
) -> None:
    add_events(database, "a", "b", "c")
    with tampering(database) as session:
        session.execute(text("UPDATE audit_events SET principal = 'x' WHERE seq = 2"))
    assert run("verify") == 7
    said = capsys.readouterr().out
    assert "3 events, 1 verified before the first of 1 faults, at event 2: it" in said
    assert "NOT whole" in said
    document = run_json(capsys, "verify", code=7)
    assert document["whole"] is False
    assert document["chains"][0]["first_fault"]["seq"] == 2


def test_a_head_that_was_noted_shows_what_was_cut_off(
    database: Database, capsys: Capture
) -> None:
    add_events(database, "a")
    assert run("head") == 0
    first = capsys.readouterr().out.strip()
    added = add_events(database, "b")
    second = run_json(capsys, "head")["head"]
    assert run("verify", "--head", first, "--head", second) == 0
    capsys.readouterr()
    with tampering(database) as session:
        session.execute(text("DELETE FROM audit_events WHERE seq = 2"))
        session.execute(
            text("UPDATE audit_head SET seq = 1, hash = :hash"),
            {"hash": first.rpartition(":")[2]},
        )
    assert run("verify") == 0
    assert run("verify", "--head", first, "--head", second) == 7
    said = capsys.readouterr().out
    assert f"The trail does not have {second}" in said
    assert f"The trail does not have {first}" not in said
    document = run_json(capsys, "verify", "--head", second, code=7)
    assert document["missing_heads"] == [second]
    assert added[0].hash in second


def test_events_are_listed_for_people_and_programs(
    database: Database, capsys: Capture
) -> None:
    add_events(database, "a/\x1b[31m", "a/2", "b", address="192.0.2.7")
    assert run("list", "--page-size", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2026-11-24T14:00:02Z   ann   version.published   b   ")
    assert lines[0].endswith("   from 192.0.2.7")
    assert lines[-1] == "Events: 3. Page 1 of 2."
    assert run("list", "--subject", "a") == 0
    assert "\x1b" not in capsys.readouterr().out
    found = run_json(capsys, "list", "--page-size", "1", "--page", "3")
    assert (found["page"], found["page_size"], found["total"]) == (3, 1, 3)
    assert found["items"][0]["subject"] == "a/\x1b[31m"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--principal", "ann"], 2),
        (["--principal", "bob"], 0),
        (["--action", "version"], 2),
        (["--subject", "a"], 1),
        (["--since", "2026-11-24"], 2),
        (["--until", "2026-11-24"], 0),
        (["--since", "2026-11-24T15:00:01.000007+01:00"], 1),
        (["--since", "2026-11-24T14:00:01Z", "--until", "2026-11-25"], 1),
    ],
)
def test_list_and_export_filter_alike(
    database: Database, tmp_path: Path, capsys: Capture, words: list[str], found: int
) -> None:
    add_events(database, "a", "b")
    assert run_json(capsys, "list", *words)["total"] == found
    path = str(tmp_path / "trail")
    exported = run_json(capsys, "export", path, *words)
    assert exported == {"file": path, "events": found}


def test_an_export_is_a_new_file_for_its_owner_alone(
    database: Database, tmp_path: Path, capsys: Capture
) -> None:
    add_events(database, "a", "b")
    path = tmp_path / "trail.jsonl"
    assert run("export", str(path)) == 0
    assert capsys.readouterr().out == f"2 events were written to {path}.\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["subject"] for line in lines] == ["a", "b"]
    assert lines[0]["at"] == AT.isoformat(timespec="microseconds")
    assert run("export", str(path)) == 6
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_an_export_to_the_output_is_nothing_else(
    database: Database, capfdbinary: pytest.CaptureFixture[bytes], words: list[str]
) -> None:
    add_events(database, "a", "b")
    assert run("export", "-", *words) == 0
    lines = capfdbinary.readouterr().out.splitlines()
    assert [json.loads(line)["subject"] for line in lines] == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["verify", "--head", "x"], "CHAIN:SEQ:HASH"),
        (["list", "--page", "0"], "--page is"),
        (["list", "--page-size", "201"], "--page-size is a whole number from 1 to 200"),
        (["list", "--since", "yesterday"], "--since 'yesterday' is no moment"),
        (["list", "--until", "2026-11-25T10:00:00"], "a time with its zone"),
        (["list", "--since", "2026-13-01"], "is no moment"),
        (["list", "--since", "0001-01-01T00:00:00+23:00"], "is no moment"),
        (["export", "none/x"], "cannot be opened"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    words: list[str],
    said: str,
) -> None:
    del database
    monkeypatch.chdir(tmp_path)
    before = {each.name for each in tmp_path.iterdir()}
    assert run(*words) == 3
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.count("\n") == 1
    assert {each.name for each in tmp_path.iterdir()} == before
