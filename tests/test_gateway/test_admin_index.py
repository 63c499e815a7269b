from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.fakes.archive_files import zip_file
from tests.fakes.dataset_files import coco_bytes
from tests.fakes.model_files import onnx, tflite
from tests.test_gateway.running import MIB, SECRET, OpenGateway, Running
from tests.test_integration.gateways import postgres_database
from tests.test_registry.trails import add_events, tampering
from vision_o3.__main__ import main
from vision_o3.db.audit import lock_head
from vision_o3.db.engine import Database
from vision_o3.db.migrate import downgrade, migrate
from vision_o3.errors import ConfigurationError
from vision_o3.settings import PREFIX, Settings

Capture = pytest.CaptureFixture[str]
SORTS = ("name", "-name", "created_at", "-created_at", "size", "-size")
FILTERS = ("", "tags=edge", "q=GRÜN", "owner=ann", "owner=bob", "framework=onnx")
LARGE = tflite(7, 2 * MIB + 1)
ARCHIVE = zip_file("train/b.jpg", "train/a ü.jpg", "labels.txt")
BOXES = [{"image_id": 1, "category_id": c, "bbox": [0, 0, 1, 1]} for c in (2, 2, 1)]
COCO = json.dumps(
    {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "zebra"}],
        "annotations": [{"id": at, **box} for at, box in enumerate(BOXES)],
    }
).encode()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/registry.db"
    else:
        with postgres_database() as found:
            yield found


@pytest.fixture
def home(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> Path:
    """Return a directory that the environment's settings point to."""
    for field in Settings.model_fields:
        monkeypatch.delenv((PREFIX + field).upper(), raising=False)
    monkeypatch.setenv("VISION_O3_DATABASE_URL", url)
    monkeypatch.setenv("VISION_O3_STORE", str(tmp_path / "objects"))
    monkeypatch.setenv("VISION_O3_JWT_SECRET", SECRET)
    main(["admin", "migrate"])
    capsys.readouterr()
    return tmp_path


def lose_database(url: str) -> None:
    """Drop all tables, and make empty ones."""
    downgrade(url, "base")
    migrate(url)


def publish_mix(running: Running) -> None:
    def publish(name: str, filename: str, content: bytes, **more: Any) -> None:
        user = more.pop("user", "ann")
        collection = more.pop("collection", "models")
        answer = running.request(
            "POST",
            f"/{collection}",
            running.token(user=user),
            data={"name": name, **more},
            files={"file": (filename, content)},
        )
        assert answer.status_code == 201, answer.text

    publish("m", "m.tflite", tflite(1), description="grün\n– 1️⃣", tags="edge,b,a")
    publish("m", "m.tflite", LARGE, user="bob", framework="tflite")
    publish("a.b-c", "m.onnx", onnx(), framework="onnx", model_type="detection")
    publish("a.b-c", "m.tflite", LARGE, user="bob", tags="edge")
    publish("z", "m.tflite", tflite(1), user="bob", description="GRÜN")
    publish("m", "m.tflite", tflite(1), user="bob")
    for name in ("d", "m"):
        publish(name, "d.zip", ARCHIVE, collection="datasets", tags="edge")
    publish("d", "d.json", COCO, collection="datasets", description="Grün")
    publish(
        "e",
        "d.json",
        coco_bytes(1, [(1, None)], {1: "x"}),
        collection="datasets",
        user="bob",
    )


def answers(running: Running) -> dict[str, tuple[int, dict[str, str], bytes]]:
    """All that the gateway answers about what is published, by path."""
    found: dict[str, tuple[int, dict[str, str], bytes]] = {}

    def get(path: str) -> Any:
        answer = running.get(path)
        headers = dict(answer.headers)
        request_id = headers.pop("x-request-id").encode()
        content = answer.content.replace(request_id, b"its id")
        found[path] = answer.status_code, headers, content
        kind = headers.get("content-type", "")
        return answer.json() if kind.startswith("application/json") else None

    for collection in ("models", "datasets"):
        for sort, wanted in itertools.product(SORTS, FILTERS):
            for page in (1, 2):
                get(f"/{collection}?page_size=2&page={page}&sort={sort}&{wanted}")
        names = [item["name"] for item in get(f"/{collection}?page_size=200")["items"]]
        for name in names:
            line = f"/{collection}/{name}"
            get(line)
            get(f"{line}/download")
            for version in get(f"{line}/versions?page_size=200")["items"]:
                at = f"{line}/versions/{version['version']}"
                by_cid = f"/{collection}/cid/{version['cid']}"
                for path in (at, f"{at}/download", by_cid, f"{by_cid}/download"):
                    get(path)
                get(f"{by_cid}/dag")
                if "manifest" in version["links"]:
                    get(f"{at}/manifest")
                    get(f"{at}/files/labels.txt")
            get(f"{line}/versions/9")
    get("/datasets?annotations=coco&has_class=zebra")
    get("/datasets/d/diff?from=1&to=2")
    return found


def test_every_answer_is_as_before_the_database_was_lost(
    home: Path, url: str, open_gateway: OpenGateway, capsys: Capture
) -> None:
    main(["user", "add", "cam", "--role", "device", "--json"])
    secret = json.loads(capsys.readouterr().out)["secret"]
    main(["user", "add", "dan", "--role", "publisher", "--max-bytes", "7"])
    main(["user", "disable", "dan"])
    with open_gateway(database_url=url) as running:
        publish_mix(running)
        before = answers(running)
    capsys.readouterr()
    main(["user", "list", "--json"])
    users = capsys.readouterr().out
    assert main(["admin", "backup", str(home / "backup")]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("4 users and 13 audit events"), said

    lose_database(url)

    assert main(["admin", "rebuild-index", "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == {
        "added": 10,
        "present": 0,
        "unreadable": [],
        "withdrawn": 0,
    }
    assert main(["admin", "rebuild-index"]) == 0
    assert "10 versions" in capsys.readouterr().out
    assert main(["admin", "restore", str(home / "backup")]) == 0
    assert "4 users and 13 audit events were added" in capsys.readouterr().out
    main(["user", "list", "--json"])
    assert capsys.readouterr().out == users
    with open_gateway(database_url=url) as running:
        after = answers(running)
        assert list(after) == list(before)
        for path in before:
            assert after[path] == before[path], path
        form = {"username": "cam", "password": secret, "grant_type": "password"}
        signed_in = running.request("POST", "/auth/token", None, data=form)
        assert signed_in.status_code == 200
        # And publishing goes on: the content is known, the number is the next.
        answer = running.publish(LARGE, name="m")
        assert answer.status_code == 201
        assert answer.json()["version"] == 4
    assert main(["admin", "backup", str(home / "again")]) == 0
    # Two of rebuilding, one for each user and one for all of restoring, one version.
    assert "4 users and 21 audit events" in capsys.readouterr().out
    assert main(["admin", "audit", "verify"]) == 0


def test_what_could_not_be_read_is_told(
    home: Path, url: str, open_gateway: OpenGateway, capsys: Capture
) -> None:
    with open_gateway(database_url=url) as running:
        running.publish(tflite(1))
        running.publish(tflite(2))
        path = running.object("models/m/v2.record.json")
        path.unlink()
        path.write_bytes(b"{")
    lose_database(url)
    capsys.readouterr()
    assert main(["admin", "rebuild-index"]) == 1
    output = capsys.readouterr()
    assert "1 were added, 0 were there. Problems: 1." in output.out
    told = [line for line in output.err.splitlines() if line.startswith("models/")]
    assert [line.partition(": ")[0] for line in told] == ["models/m/v2.record.json"]
    assert main(["admin", "rebuild-index", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["added"], document["present"]) == (0, 1)
    assert [set(each) for each in document["unreadable"]] == [{"key", "reason"}]
    del home


def test_user_who_differs_is_told(home: Path, capsys: Capture) -> None:
    main(["user", "add", "ann", "--scope", "model:read"])
    assert main(["admin", "backup", str(home / "b")]) == 0
    main(["user", "disable", "ann"])
    capsys.readouterr()
    assert main(["admin", "restore", str(home / "b")]) == 1
    output = capsys.readouterr()
    assert "User 'ann' is there, but not as in the backup" in output.err
    assert "0 users and 1 audit events were added" not in output.out


@pytest.mark.usefixtures("home")
def test_gateway_does_not_start_over_a_store_whose_index_is_lost(
    url: str, open_gateway: OpenGateway
) -> None:
    """An upload would take a number that is taken, and its objects."""
    with open_gateway(database_url=url) as running:
        running.publish(tflite(1))
    lose_database(url)
    with (
        pytest.raises(ConfigurationError, match="rebuild-index"),
        open_gateway(database_url=url),
    ):
        pass


def test_events_that_differ_are_told(home: Path, url: str, capsys: Capture) -> None:
    database = Database(url)
    added = add_events(database, "a", "b", "c")
    main(["admin", "backup", str(home / "b")])
    with tampering(database) as session:  # as if it went back to an earlier moment
        session.execute(text("DELETE FROM audit_events WHERE seq > 1"))
        head = lock_head(session)
        head.seq, head.hash = 1, added[0].hash
    add_events(database, "other")
    database.close()
    capsys.readouterr()
    assert main(["admin", "restore", str(home / "b")]) == 1
    said = f"2 audit events, as of {added[0].chain}:2, were left out"
    assert said in capsys.readouterr().err
    assert main(["admin", "restore", str(home / "b"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["events_differing"] == 2
    assert main(["admin", "audit", "verify"]) == 0


def test_events_that_no_backup_can_hold_are_told(
    home: Path, url: str, capsys: Capture
) -> None:
    database = Database(url)
    add_events(database, "a", "b")
    with tampering(database) as session:
        session.execute(text("UPDATE audit_events SET detail = '[]' WHERE seq = 1"))
    database.close()
    assert main(["admin", "backup", str(home / "b")]) == 1
    output = capsys.readouterr()
    assert "0 users and 1 audit events were written" in output.out
    assert "1 audit events were left out" in output.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["backup", "taken"], 6, "is there already"),
        (["backup", "none/b"], 3, "No such file or directory"),
        (["restore", "none"], 3, "No such file or directory"),
        (["restore", "taken"], 7, "not a whole backup"),
    ],
)
def test_mistakes_are_one_line_and_a_code(
    home: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(home)
    (home / "taken").write_text("mine\n")
    assert main(["admin", *words]) == code
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.count("\n") == 1
    assert not output.out


@pytest.mark.parametrize(
    "words", [["rebuild-index"], ["backup", "b"], ["restore", "b"]]
)
def test_missing_tables_are_told(
    home: Path, url: str, capsys: Capture, words: list[str]
) -> None:
    downgrade(url, "base")
    assert main(["admin", *words]) == 2
    assert "vision-o3 admin migrate" in capsys.readouterr().err
    assert not (home / "b").exists()


def test_a_kill_in_the_middle_costs_nothing(
    home: Path, open_gateway: OpenGateway, url: str
) -> None:
    """A process that is killed while it adds: what is committed is whole."""
    with open_gateway(database_url=url) as running:
        publish_mix(running)
        before = answers(running)
    lose_database(url)
    script = (
        "import os, signal, sys\n"
        "from vision_o3.registry import rebuilding\n"
        "from vision_o3.gateway import admin_index\n"
        "rebuilding.Rebuilder.__init__.__kwdefaults__['batch'] = 2\n"
        "def die(done, total): os.kill(os.getpid(), signal.SIGKILL)\n"
        "admin_index._progress = lambda: die\n"
        "from vision_o3.__main__ import main\n"
        "main(['admin', 'rebuild-index'])\n"
    )
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script], env=dict(os.environ), check=False
        )
        assert done.returncode == -9
    assert main(["admin", "rebuild-index"]) == 0
    with open_gateway(database_url=url) as running:
        assert answers(running) == before
    del home
