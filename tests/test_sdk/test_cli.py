from __future__ import annotations

import io
import json
import os
import stat
import time
from pathlib import Path
from typing import Any, Callable, List, Tuple

import pytest

from tests.fakes.fake_gateway import FakeGateway, flip
from tests.test_sdk.conftest import MIB, content_of
from vision_o3 import errors
from vision_o3.content.dag import cid_of_bytes
from vision_o3.sdk import cli
from vision_o3.sdk.progress import ProgressLine, in_units

Run = Callable[..., Tuple[int, str, str]]
CONTENT = content_of(3 * MIB + 7)


@pytest.fixture
def run(
    tmp_path: Path,
    served: FakeGateway,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run a command against the gateway; return exit code, output and errors."""
    for name in list(os.environ):
        if name.startswith("VISION_O3"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("VISION_O3_URL", served.url)
    monkeypatch.setenv("VISION_O3_CACHE", str(tmp_path / "cache"))

    def run_command(*words: str) -> Tuple[int, str, str]:
        code = cli.main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


def test_ls_shows_a_row_a_model(run: Run, served: FakeGateway) -> None:
    served.publish("detector", CONTENT, tags=["ocr"])
    served.publish("other", b"x", framework="")
    code, out, _ = run("ls")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert rows[0] == ["NAME", "VERSION", "FRAMEWORK", "TYPE", "FORMAT", "SIZE", "CID"]
    assert rows[1][:6] == ["detector", "1", "onnx", "detection", "onnx", "3.0"]
    assert rows[2][2] == "-"


def test_ls_filters(run: Run, served: FakeGateway) -> None:
    served.publish("a", b"a", tags=["x", "y"])
    served.publish("b", b"b", tags=["x"])
    _, out, _ = run("ls", "--tag", "x", "--tag", "y", "--json")
    assert [model["name"] for model in json.loads(out)] == ["a"]


def test_info_shows_what_there_is(run: Run, served: FakeGateway) -> None:
    served.publish("m", b"abc", tags=["x", "y"], facts={"ir_version": 8})
    _, out, _ = run("info", "m")
    assert "tags:         x, y" in out
    assert "facts:\n  ir_version: 8\n" in out
    assert "description" not in out
    _, out, _ = run("info", "m@1", "--json")
    assert json.loads(out)["version"] == 1


@pytest.mark.parametrize("by", ["name", "version", "cid"])
def test_pull_prints_the_path_of_verified_bytes(
    run: Run, served: FakeGateway, by: str
) -> None:
    cid = served.publish("m", CONTENT)["cid"]
    code, out, err = run("pull", {"name": "m", "version": "m@1", "cid": cid}[by])
    assert (code, err) == (0, "")
    assert Path(out.strip()).read_bytes() == CONTENT
    assert Path(out.strip()).name == "m.onnx"


def test_pull_to_a_place(run: Run, served: FakeGateway, tmp_path: Path) -> None:
    served.publish("m", b"abc")
    (tmp_path / "out").mkdir()
    _, out, _ = run("pull", "m", "-o", str(tmp_path / "out"))
    assert out.strip() == str(tmp_path / "out" / "m.onnx")
    (tmp_path / "mine").write_bytes(b"old")
    _, out, _ = run("pull", "m", "-o", str(tmp_path / "mine"), "--json")
    assert json.loads(out)["path"] == str(tmp_path / "mine")
    assert (tmp_path / "mine").read_bytes() == b"abc"
    code, _, err = run("pull", "m", "-o", str(tmp_path / "none" / "x"))
    assert code == 1
    assert "No such file" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "mine", "out"]


def test_push_publishes(run: Run, served: FakeGateway, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(CONTENT)
    code, out, _ = run("push", str(path), "--name", "m", "--tag", "a", "--tag", "b")
    assert code == 0
    assert out.startswith(f"m@1   {cid_of_bytes(CONTENT)}")
    assert served.published["models"][0].content == CONTENT
    _, out, _ = run("push", str(path), "--name", "m")
    assert "had this content already" in out


def test_verify_tells_right_from_wrong(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    cid = str(cid_of_bytes(CONTENT))
    assert run("verify", str(path), cid)[0] == 0
    path.write_bytes(CONTENT[:-1])
    code, out, _ = run("verify", str(path), cid)
    assert code == 7
    assert "NOT what" in out
    assert run("verify", str(path), "Qm")[0] == 3
    assert run("verify", str(tmp_path / "none"), cid)[0] != 0


def test_cache_is_shown_and_cleared(run: Run, served: FakeGateway) -> None:
    served.publish("m", b"abc")
    _, path, _ = run("pull", "m")
    assert run("cache", "size")[1].strip() == "3"
    assert path.strip() in run("cache", "ls")[1]
    assert json.loads(run("cache", "ls", "--json")[1])[0]["size"] == 3
    assert path.startswith(run("cache", "path")[1].strip())
    assert "Removed 3 B" in run("cache", "clear")[1]
    assert run("cache", "size")[1].strip() == "0"


def test_login_keeps_the_token_and_not_the_secret(
    run: Run, served: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.users["ann"] = "canary-secret"
    monkeypatch.setenv("VISION_O3_CLIENT_ID", "ann")
    monkeypatch.setenv("VISION_O3_CLIENT_SECRET", "canary-secret")
    code, out, _ = run("login", served.url)
    assert code == 0
    assert "as ann until" in out
    kept = tmp_path / "cache" / "login.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert "canary-secret" not in kept.read_text() + out
    for name in ("VISION_O3_URL", "VISION_O3_CLIENT_ID", "VISION_O3_CLIENT_SECRET"):
        monkeypatch.delenv(name)
    assert run("ls")[0] == 0


def test_login_asks(
    run: Run, served: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.users["ann"] = "s"
    monkeypatch.setattr("builtins.input", lambda _: "ann")
    monkeypatch.setattr("getpass.getpass", lambda _: "s")
    assert run("login", served.url)[0] == 0
    monkeypatch.setattr("getpass.getpass", lambda _: "wrong")
    code, _, err = run("login", served.url)
    assert code == 4
    assert "[unauthenticated]" in err


def test_ended_sign_in_says_what_to_do(
    run: Run, served: FakeGateway, tmp_path: Path
) -> None:
    login = {"url": served.url, "token": "t", "ends_at": time.time() - 1}
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "login.json").write_text(json.dumps(login))
    code, _, err = run("ls")
    assert code == 4
    assert f"vision-o3 login {served.url}" in err


def test_half_set_credentials_are_an_error(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISION_O3_CLIENT_ID", "ann")
    code, _, err = run("ls")
    assert code == 2
    assert "Set both" in err


def test_no_gateway_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISION_O3_URL")
    code, _, err = run("ls")
    assert code == 2
    assert "vision-o3 login URL" in err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["info", "none"], 5),
        (["info", "UPPER"], 3),
        (["info", "m@0"], 3),
        (["info", "m@x"], 3),
        (["push", "no-such-file", "--name", "m"], 3),
        ([], 2),
        (["nonsense"], 2),
        (["--help"], 0),
        (["--version"], 0),
    ],
)
def test_exit_codes(run: Run, words: List[str], code: int) -> None:
    assert run(*words)[0] == code


def test_wrong_bytes_end_with_code_7(run: Run, served: FakeGateway) -> None:
    served.publish("m", CONTENT)
    served.lie("/download", flip(0), times=99)
    code, out, err = run("pull", "m")
    assert (code, out) == (7, "")
    assert "[digest_mismatch]" in err


def test_every_family_of_errors_has_an_exit_code() -> None:
    given = {cli.exit_code(cls("")) for cls in errors._tree(errors.VisionO3Error)}
    assert given == {1, 2, 3, 4, 5, 6, 7, 8, 9}


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (OSError(28, "No space left on device", "/x"), 1, "/x: No space left"),
        (OSError("odd"), 1, "odd"),
    ],
)
def test_what_else_may_happen(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    said: str,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("vision_o3.sdk.client.VisionO3Client.list_models", fail)
    found, _, err = run("ls")
    assert found == code
    assert said in err


def test_progress_is_one_line_that_goes_away() -> None:
    stream, now = io.StringIO(), [0.0]
    line = ProgressLine(stream, clock=lambda: now[0])
    for done in (MIB, 2 * MIB, 3 * MIB, 4 * MIB):
        line(done, 4 * MIB)
        now[0] += 0.05 if done == MIB else 1.0
    drawn = stream.getvalue()
    assert " 25 %  1.0 MiB of 4.0 MiB" in drawn
    assert " 50 %" not in drawn, "not redrawn within a tenth of a second"
    assert "s left" in drawn
    assert drawn.endswith("\r\x1b[K")
    assert "\n" not in drawn


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 40, "3072.0 GiB"),
    ],
)
def test_sizes_are_written_for_people(size: int, text: str) -> None:
    assert in_units(size) == text
