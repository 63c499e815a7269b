from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.fakes.model_files import tflite
from tests.test_gateway.running import SECRET
from vision_o3.__main__ import main
from vision_o3.gateway import arguments as gateway_arguments
from vision_o3.settings import Settings, variable_of

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory that the environment's settings point to."""
    for field in Settings.model_fields:
        monkeypatch.delenv(variable_of(field), raising=False)
    monkeypatch.setenv("VISION_O3_DATABASE_URL", f"sqlite:///{tmp_path}/registry.db")
    monkeypatch.setenv("VISION_O3_STORE", str(tmp_path / "objects"))
    monkeypatch.setenv("VISION_O3_JWT_SECRET", SECRET)
    return tmp_path


def test_users_are_added_listed_and_disabled(home: Path, capsys: Capture) -> None:
    assert main(["admin", "migrate"]) == 0
    assert main(["admin", "migrate"]) == 0
    assert main(["user", "list"]) == 0
    assert "no users yet" in capsys.readouterr().out
    assert main(["user", "add", "ann", "--scope", "model:read"]) == 0
    secret = capsys.readouterr().out.splitlines()[-1]
    assert len(secret) >= 43
    words = ["user", "add", "bob", "--scope", "model:read", "--scope", "model:write"]
    assert main([*words, "--json"]) == 0
    added = json.loads(capsys.readouterr().out)
    assert added["scopes"] == ["model:read", "model:write"]
    assert main(["user", "disable", "ann"]) == 0
    capsys.readouterr()
    assert main(["user", "list", "--json"]) == 0
    assert [
        (user["user"], user["scopes"], user["disabled"])
        for user in json.loads(capsys.readouterr().out)
    ] == [
        ("ann", ["model:read"], True),
        ("bob", ["model:read", "model:write"], False),
    ]
    assert main(["user", "list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].endswith("disabled")
    assert listed[1].startswith("bob   model:read model:write   since 20")
    for path in home.iterdir():
        assert path.is_dir() or secret.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["user", "add", "a b", "--scope", "model:read"], 3, "cannot be a user's name"),
        (["user", "add", "ann", "--scope", "all"], 3, "There are: model:read"),
        *(
            (
                ["user", "add-secret", "bob", "--label", "x", "--expires-days", days],
                3,
                f"cannot last for {days} days",
            )
            for days in ("nan", "inf", "1e+300")
        ),
        (["user", "add", "bob", "--scope", "admin"], 6, "[already_exists]"),
        (["user", "disable", "ann"], 5, "There is no user 'ann'"),
    ],
)
def test_mistakes_are_one_line_and_a_code(
    home: Path, capsys: Capture, words: list[str], code: int, said: str
) -> None:
    del home
    main(["admin", "migrate"])
    main(["user", "add", "bob", "--scope", "admin"])
    capsys.readouterr()
    assert main(words) == code
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.count("\n") == 1
    assert not output.out


@pytest.mark.parametrize(
    "words", [["serve"], ["user", "list"], ["admin", "sweep"], ["admin", "migrate"]]
)
def test_missing_key_is_told_by_every_command(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.delenv("VISION_O3_JWT_SECRET")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "secrets.token_urlsafe(48)" in error
    assert error.count("\n") == 1
    assert not list(home.iterdir())


@pytest.mark.parametrize("words", [["serve"], ["user", "list"], ["admin", "sweep"]])
def test_missing_tables_are_told(home: Path, capsys: Capture, words: list[str]) -> None:
    del home
    assert main(words) == 2
    assert "vision-o3 admin migrate" in capsys.readouterr().err


def test_store_that_cannot_be_used_is_told_before_anything_starts(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    del home
    monkeypatch.setenv("VISION_O3_STORE", "s3://bucket")
    for words in (["serve", "--migrate"], ["admin", "sweep"]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "AWS_ACCESS_KEY_ID" in error
        assert error.count("\n") == 1


def test_sweep_removes_what_nothing_names(home: Path, capsys: Capture) -> None:
    main(["admin", "migrate"])
    stray = home / "objects/models/m/v1.tflite"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(tflite())
    (home / "spool").mkdir()
    (home / "spool/dead.upload").touch()
    (home / "spool/partial/x").mkdir(parents=True)
    os.utime(home / "spool/partial/x", (0, 0))
    capsys.readouterr()
    assert main(["admin", "sweep"]) == 0
    assert "1 spool files, 1 expired uploads, 0 objects" in capsys.readouterr().out
    assert stray.exists()
    time.sleep(0.01)  # the grace ends before now, by the store's clock
    assert main(["admin", "sweep", "--grace-hours", "0"]) == 0
    assert "0 spool files, 0 expired uploads, 1 objects" in capsys.readouterr().out
    assert not stray.exists()


def test_absent_libraries_are_told(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_arguments, "_GATEWAY", "absent_library")
    assert main(["user", "list"]) == 2
    error = capsys.readouterr().err
    assert "absent_library is not installed" in error
    assert "pip install 'vision-o3[gateway]'" in error


def test_edge_commands_load_no_library_of_the_gateway() -> None:
    script = (
        "import sys; from vision_o3.__main__ import main\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'fastapi', 'pydantic', 'sqlalchemy', 'obstore', 'botocore', 'argon2', "
        "'structlog'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.integration
@pytest.mark.parametrize("workers", ["1", "2"])
def test_served_gateway_answers_and_stops_when_told(home: Path, workers: str) -> None:
    command = [sys.executable, "-m", "vision_o3"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "serve", "--migrate", "--port", port, "--workers", workers],
            stdout=log,
            stderr=log,
            env=dict(os.environ),
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                url = f"http://127.0.0.1:{port}/health/ready"
                with urllib.request.urlopen(url, timeout=5) as answer:
                    assert answer.status == 200
                    assert answer.headers["Server"] is None
                break
            except OSError:
                assert process.poll() is None, (home / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
    assert code in {0, -signal.SIGTERM}
    lines = [json.loads(line) for line in (home / "log").read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert events[0] == "gateway.starting"
    assert "request.answered" in events
    assert not [line for line in lines if line["level"] in {"error", "warning"}]
