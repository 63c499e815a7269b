from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.model_files import tflite
from tests.test_gateway.running import SECRET
from tests.test_registry.conftest import open_registry
from vision_o3.__main__ import main
from vision_o3.content.dag import cid_of_bytes
from vision_o3.db.engine import Database
from vision_o3.db.models import MODELS
from vision_o3.registry.resolving import Resolver
from vision_o3.registry.values import Version
from vision_o3.settings import Settings, variable_of

Capture = pytest.CaptureFixture[str]
BAD = tflite(1, 2 << 20)
CID = str(cid_of_bytes(BAD))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("published")
    with open_registry(home) as registry:
        registry.publish(BAD, "a")
        registry.publish(tflite(2), "a")
        registry.publish(BAD, "b")
    return home


@pytest.fixture
def home(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gateway's directory; a copy of its store is in ``second``."""
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    shutil.copytree(published / "objects", tmp_path / "second")
    (tmp_path / "cache" / CID).mkdir(parents=True)
    (tmp_path / "cache" / CID / "0").write_bytes(b"x" * 10)
    for field in Settings.model_fields:
        monkeypatch.delenv(variable_of(field), raising=False)
    monkeypatch.setenv("VISION_O3_DATABASE_URL", f"sqlite:///{tmp_path}/registry.db")
    monkeypatch.setenv("VISION_O3_STORE", str(tmp_path / "objects"))
    monkeypatch.setenv("VISION_O3_SECOND_STORE", str(tmp_path / "second"))
    monkeypatch.setenv("VISION_O3_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("VISION_O3_JWT_SECRET", SECRET)
    return tmp_path


def run(capsys: Capture, *words: str) -> tuple[int, str, str]:
    code = main(["admin", *words])
    output = capsys.readouterr()
    return code, output.out, output.err


def run_json(capsys: Capture, *words: str) -> Any:
    code, out, error = run(capsys, *words, "--json")
    assert code == 0, error
    return json.loads(out)


def version(home: Path, name: str, number: int) -> Version:
    database = Database(f"sqlite:///{home}/registry.db")
    try:
        return Resolver(MODELS, database).version(name, number)
    finally:
        database.close()


def artifacts(folder: Path) -> set[str]:
    return {each.name for each in (folder / "models").rglob("*.tflite")}


def test_a_version_is_deprecated_blocked_and_lifted(
    home: Path, capsys: Capture
) -> None:
    code, out, _ = run(capsys, "deprecate", "models/a", "2", "--reason", "Use v3.")
    assert (code, out) == (0, "models/a v2 is deprecated: Use v3.\n")
    document = run_json(capsys, "block", "models/a", "2", "--reason", "Ghosts.")
    (told,) = document["versions"]
    assert (told["collection"], told["name"], told["version"]) == ("models", "a", 2)
    withdrawal = told["withdrawal"]
    assert (withdrawal["state"], withdrawal["by"]) == ("blocked", "operator")
    found = version(home, "a", 2).withdrawal
    assert found is not None
    assert found.by_admin
    code, out, _ = run(capsys, "unblock", "models/a", "2", "--reason", "A shadow.")
    assert (code, out) == (0, "models/a v2 may be used\n")
    assert version(home, "a", 2).withdrawal is None


def test_all_versions_of_a_content_are_blocked(home: Path, capsys: Capture) -> None:
    document = run_json(capsys, "block", "--cid", CID, "--reason", "Ghosts.")
    assert [each["name"] for each in document["versions"]] == ["a", "b"]
    assert version(home, "b", 1).is_blocked
    document = run_json(capsys, "unblock", "--cid", CID)
    assert [each["withdrawal"] for each in document["versions"]] == [None, None]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["block", "--reason", "x"], "or --cid CID"),
        (["block", "models/a", "--reason", "x"], "Say which"),
        (["block", "models/a", "1", "--cid", CID, "--reason", "x"], "Say which"),
        (["block", "a", "1", "--reason", "x"], "models/NAME or datasets/NAME"),
        (["block", "users/a", "1", "--reason", "x"], "is no line"),
        (["block", "models/", "1", "--reason", "x"], "is no line"),
        (["block", "models/a", "x", "--reason", "x"], "not a version number"),
        (["block", "models/a", "9", "--reason", "x"], "has no version 9"),
        (["block", "models/c", "1", "--reason", "x"], "Nothing is published as 'c'"),
        (["block", "--cid", "x", "--reason", "x"], "CID"),
        (["block", "models/a", "1", "--reason", "two\nlines"], "one line"),
        (["deprecate", "models/a", "1", "--reason", ""], "0 characters"),
        (["purge", "--reason", "x", "--yes"], "or --cid CID"),
        (["purge", "models/a", "9", "--reason", "x", "--yes"], "has no version 9"),
        (["purge", "models/a", "1", "--reason", "", "--yes"], "0 characters"),
    ],
)
def test_mistakes_are_told_and_change_nothing(
    home: Path, capsys: Capture, words: list[str], told: str
) -> None:
    code, out, error = run(capsys, *words)
    assert (code > 0, out) == (True, "")
    assert told in error
    assert version(home, "a", 1).withdrawal is None
    assert not list((home / "objects").rglob("*withdrawal*"))


def test_a_purge_tells_what_it_did_and_did_not_reach(
    home: Path, capsys: Capture
) -> None:
    code, out, _ = run(
        capsys, "purge", "models/a", "1", "--reason", "A court.", "--yes"
    )
    assert code == 0
    lines = out.splitlines()
    assert lines[:5] == [
        "models/a v1 is purged. Its number stays taken.",
        "models/b v1 is purged. Its number stays taken.",
        "Deleted models/a/v1.dag.car",
        "Deleted models/a/v1.tflite",
        f"Deleted from {home / 'second'}: 2 objects.",
    ]
    assert {"  devices that fetched it"} < set(lines[5:])
    for folder in ("objects", "second"):
        assert artifacts(home / folder) == {"v2.tflite"}
    assert not (home / "cache" / CID).exists()
    assert version(home, "b", 1).is_purged


def test_a_purge_in_json_can_be_run_again(home: Path, capsys: Capture) -> None:
    words = ("purge", "--cid", CID, "--reason", "A court.", "--yes")
    document = run_json(capsys, *words)
    assert document["cid"] == CID
    assert [each["withdrawal"]["state"] for each in document["versions"]] == [
        "purged",
        "purged",
    ]
    assert len(document["deleted"]) == len(document["deleted_from_second"]) == 2
    assert document["cache_bytes"] == 10
    assert document["copies_may_be_at"]
    again = run_json(capsys, *words)
    assert again["deleted"] == again["deleted_from_second"] == []
    assert artifacts(home / "objects") == {"v2.tflite"}
    code, _, error = run(capsys, "block", "models/a", "1", "--reason", "x")
    assert code > 0
    assert "was purged: A court." in error


@pytest.mark.parametrize(
    ("typed", "terminal", "purged"),
    [
        ("purge\n", True, True),
        ("yes\n", True, False),
        ("", True, False),
        ("purge\n", False, False),
    ],
)
def test_a_purge_is_asked_for_once_more(
    home: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    terminal: bool,
    purged: bool,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    monkeypatch.setattr("sys.stdin", Terminal(typed))
    code, _, error = run(capsys, "purge", "models/b", "1", "--reason", "A court.")
    assert "models/a v1" in error, "all that go with it are named"
    assert (code == 0) is purged
    assert version(home, "a", 1).is_purged is purged
    assert ("v1.tflite" in artifacts(home / "objects")) is not purged
    if not purged:
        told = "Nothing was deleted." if terminal else "say --yes"
        assert told in error
