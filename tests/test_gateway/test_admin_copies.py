from __future__ import annotations

import io
import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.test_gateway.running import SECRET
from tests.test_registry.conftest import open_registry
from tests.test_registry.filled import (
    OBJECTS,
    VERSIONS,
    contents,
    damage,
    filled,
    filled_objects,
)
from tests.test_registry.test_publishing import claim
from vision_o3.__main__ import main
from vision_o3.db.engine import Database
from vision_o3.registry.suspects import Suspects
from vision_o3.settings import Settings, variable_of
from vision_o3.storage.local import LocalStore

__all__ = ["filled", "filled_objects"]

Capture = pytest.CaptureFixture[str]
ARTIFACT = "models/small/v1.tflite"
RECORD = "models/small/v1.record.json"


@pytest.fixture
def home(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a filled gateway's directory; a copy of its store is in ``second``."""
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    shutil.copytree(filled / "objects", tmp_path / "second")
    for field in Settings.model_fields:
        monkeypatch.delenv(variable_of(field), raising=False)
    monkeypatch.setenv("VISION_O3_DATABASE_URL", f"sqlite:///{tmp_path}/registry.db")
    monkeypatch.setenv("VISION_O3_STORE", str(tmp_path / "objects"))
    monkeypatch.setenv("VISION_O3_SECOND_STORE", str(tmp_path / "second"))
    monkeypatch.setenv("VISION_O3_JWT_SECRET", SECRET)
    return tmp_path


def run(capsys: Capture, *words: str) -> tuple[int, str, str]:
    code = main(["admin", *words])
    output = capsys.readouterr()
    return code, output.out, output.err


def run_json(capsys: Capture, *words: str) -> tuple[int, Any]:
    code, out, _ = run(capsys, *words, "--json")
    return code, json.loads(out)


def test_scrub_of_what_is_right_says_so(home: Path, capsys: Capture) -> None:
    del home
    code, out, err = run(capsys, "scrub", "--rate", "0")
    assert (code, err) == (0, "")
    assert out.startswith(f"Checked: {OBJECTS} objects, 9.4 MB read. Repaired: 0.")
    assert out.count("\n") == 1


def test_scrub_tells_what_is_wrong_and_repairs_it(home: Path, capsys: Capture) -> None:
    store = LocalStore(home / "objects")
    right = contents(store)
    damage(store, ARTIFACT, "flip")
    damage(store, RECORD, "remove")
    code, out, err = run(capsys, "scrub", "--rate", "0")
    assert code == 1
    assert f"wrong {ARTIFACT}: The artifact {ARTIFACT} is baf" in out
    assert f"missing {RECORD}: " in out
    assert "Wrong or missing: 2. Could not be read: 0." in out
    assert "vision-o3 admin scrub --marked --repair" in out
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert sorted(set(events)) == ["scrub.missing", "scrub.wrong", "suspect.noted"]

    code, document = run_json(capsys, "scrub", "--marked", "--repair")
    assert (code, document["clean"]) == (0, True)
    assert (document["checked"], document["repaired"]) == (2, 2)
    assert [(each["key"], each["remedy"]) for each in document["wrong"]] == [
        (RECORD, "Repaired from the database."),
        (ARTIFACT, "Repaired from the second store."),
    ]
    assert contents(store) == right
    assert run_json(capsys, "scrub", "--marked")[1]["checked"] == 0


def test_scrub_without_a_second_store_says_what_to_set(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VISION_O3_SECOND_STORE")
    damage(LocalStore(home / "objects"), ARTIFACT, "flip")
    code, out, _ = run(capsys, "scrub", "--repair")
    assert code == 1
    assert "No second store is set (VISION_O3_SECOND_STORE)." in out


@pytest.mark.parametrize("rate", ["-1", "nan", "inf"])
def test_impossible_rate_is_refused(home: Path, capsys: Capture, rate: str) -> None:
    del home
    code, out, err = run(capsys, "scrub", f"--rate={rate}")
    assert (code, out) == (3, "")
    assert "--rate 50" in err


def test_scrub_of_missing_tables_says_to_migrate(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISION_O3_DATABASE_URL", f"sqlite:///{home}/none.db")
    code, _, err = run(capsys, "scrub")
    assert code == 2
    assert "vision-o3 admin migrate" in err


def test_mirror_copies_and_is_continued(home: Path, capsys: Capture) -> None:
    source, target = str(home / "objects"), str(home / "copy")
    code, out, err = run(capsys, "mirror", source, target)
    assert (code, err) == (0, "")
    assert out.startswith(f"Copied: {OBJECTS} objects, 9.4 MB. There already: 0 ")
    assert f"Complete at {target}: {VERSIONS} versions." in out
    right = contents(LocalStore(home / "objects"))
    assert contents(LocalStore(home / "copy")) == right

    damage(LocalStore(home / "copy"), ARTIFACT, "remove")
    code, document = run_json(capsys, "mirror", source, target, "--verify")
    assert (code, document["complete"], document["copied"]) == (0, True, 1)
    assert document["bytes"] == len(right[ARTIFACT])
    assert document["problems"] == []


def test_mirror_tells_what_it_could_not_copy(home: Path, capsys: Capture) -> None:
    damage(LocalStore(home / "objects"), ARTIFACT, "flip")
    words = ("mirror", str(home / "objects"), str(home / "copy"))
    code, out, _ = run(capsys, *words)
    assert code == 1
    assert f"{ARTIFACT}: At the source: The artifact" in out
    code, document = run_json(capsys, *words)
    assert (code, document["complete"], document["problem_count"]) == (1, False, 1)
    assert document["problems"][0]["key"] == ARTIFACT


def test_mirror_leaves_out_uploads_at_work(home: Path, capsys: Capture) -> None:
    with open_registry(home) as registry:
        claim(registry, "late", lease=timedelta(seconds=60))
        said = registry.store.get(RECORD, max_size=1 << 20)
        registry.store.put(
            "models/late/v1.record.json",
            said.replace(b'"name":"small"', b'"name":"late"'),
        )
    code, document = run_json(
        capsys, "mirror", str(home / "objects"), str(home / "copy")
    )
    assert (code, document["skipped"], document["versions"]) == (0, 1, VERSIONS)
    assert not (home / "copy/models/late").exists()


def test_mirror_without_a_database_says_what_that_means(
    home: Path, capsys: Capture
) -> None:
    (home / "registry.db").unlink()
    code, out, err = run(capsys, "mirror", str(home / "second"), str(home / "copy"))
    assert code == 0
    assert f"{VERSIONS} versions" in out
    assert err.startswith("vision-o3: There is no database")


def test_mirror_to_itself_is_refused(home: Path, capsys: Capture) -> None:
    place = str(home / "objects")
    code, _, err = run(capsys, "mirror", place, place)
    assert code == 2
    assert "Name two stores" in err


@pytest.mark.parametrize(
    "words", [["scrub", "--json"], ["mirror", "SRC", "DST", "--json"]]
)
def test_stopping_prints_what_is_known(
    home: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            if " 1 " in f" {text.strip()} ".replace("\r", " "):
                raise KeyboardInterrupt
            return super().write(text)

    places = {"SRC": str(home / "objects"), "DST": str(home / "copy")}
    monkeypatch.setattr("sys.stderr", Terminal())
    code, out, _ = run(capsys, *(places.get(word, word) for word in words))
    assert code == 1
    assert json.loads(out)["ended_early"].endswith("was stopped.")


def test_progress_is_drawn_on_a_terminal_and_removed(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    del home

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert run(capsys, "scrub")[0] == 0
    drawn = terminal.getvalue()
    assert drawn.startswith("\r1 objects, ")
    assert drawn.endswith("\r\x1b[K")


def test_marks_of_gateways_are_what_is_looked_at(home: Path, capsys: Capture) -> None:
    with open_registry(home) as registry:
        version = registry.models.version("small", 1)
        Suspects(registry.database).mark(ARTIFACT, version.cid, "digest_mismatch")
    capsys.readouterr()
    code, document = run_json(capsys, "scrub", "--marked")
    assert (code, document["checked"]) == (0, 1)
    database = Database(f"sqlite:///{home}/registry.db")
    assert not list(Suspects(database).list())
    database.close()
