"""Every command can be asked for JSON, and then prints one document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_gateway.running import SECRET
from vision_o3.__main__ import main
from vision_o3.gateway.arguments import add_commands
from vision_o3.sdk import cli
from vision_o3.sdk.completion import walk
from vision_o3.settings import Settings, variable_of


def test_every_command_can_be_asked_for_json() -> None:
    parser, commands = cli.build_parser()
    add_commands(commands)
    found = list(walk(parser))
    runnable = [each for each in found if not each.commands]
    assert len(runnable) > 25
    without = [
        each.words
        for each in runnable
        if not any("--json" in option.names for option in each.options)
    ]
    assert without == []


def test_operators_commands_print_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for field in Settings.model_fields:
        monkeypatch.delenv(variable_of(field), raising=False)
    monkeypatch.setenv("VISION_O3_DATABASE_URL", f"sqlite:///{tmp_path}/registry.db")
    monkeypatch.setenv("VISION_O3_STORE", str(tmp_path / "objects"))
    monkeypatch.setenv("VISION_O3_JWT_SECRET", SECRET)
    backup = str(tmp_path / "backup")

    def run(*words: str) -> Any:
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert run("admin", "migrate") == {"up_to_date": True}
    assert run("user", "add", "ann", "--scope", "model:read")["user"] == "ann"
    assert run("user", "disable", "ann") == {"user": "ann", "disabled": True}
    assert run("user", "list")[0]["disabled"] is True
    swept = run("admin", "sweep")
    assert swept["expired"]["claims"] == swept["unnamed"]["objects"] == 0
    assert run("admin", "backup", backup) == {
        "file": backup,
        "users": 1,
        "revoked_tokens": 0,
        "audit_events": 2,
        "audit_events_unreadable": 0,
    }
    assert run("admin", "restore", backup)["users_present"] == 1
    assert run("admin", "audit", "verify")["whole"] is True
    assert run("admin", "audit", "list")["total"] == 3
    assert run("admin", "audit", "head")["seq"] == 3
    assert run("admin", "audit", "export", f"{backup}.audit")["events"] == 3
    assert run("admin", "check-store")["ok"] is True
    assert run("admin", "rebuild-index")["added"] == 0
    assert run("admin", "scrub")["clean"] is True
