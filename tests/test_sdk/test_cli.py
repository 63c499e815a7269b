from __future__ import annotations

import json
import re
import stat
import time
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple, Type

import pytest

from tests.fakes.fake_gateway import FakeGateway, flip
from tests.test_sdk.conftest import MIB, Run, content_of
from vision_o3 import errors
from vision_o3.content.dag import cid_of_bytes
from vision_o3.sdk import cli
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.completion import walk
from vision_o3.sdk.environment import open_client

CONTENT = content_of(3 * MIB + 7)
REPOSITORY = Path(__file__).parent.parent.parent


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
    assert code == 3
    assert "There is no folder" in err
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


def documented_exit_codes() -> Dict[int, Tuple[str, Set[str]]]:
    """Return of each code what it says, and the classes that have it."""
    text = (REPOSITORY / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (\d+) \| (.+?) \| (.+?) \|$", text.split("## Exit codes")[1], re.MULTILINE
    )
    return {
        int(code): (meaning, set(re.findall(r"`(\w+)`", classes)))
        for code, meaning, classes in rows
    }


@pytest.mark.parametrize(
    "cls", list(errors._tree(errors.VisionO3Error)), ids=lambda cls: cls.__name__
)
def test_every_error_ends_with_the_code_that_is_documented(
    run: Run, monkeypatch: pytest.MonkeyPatch, cls: Type[errors.VisionO3Error]
) -> None:
    def fail(*_: Any) -> None:
        raise cls("It failed.")

    monkeypatch.setattr("vision_o3.sdk.client.VisionO3Client.list_models", fail)
    code, out, err = run("ls")
    assert (out, err) == ("", f"vision-o3: It failed. [{cls.code}]\n")
    families = {base.__name__ for base in cls.__mro__}
    listed = documented_exit_codes().items()
    assert {code} == ({n for n, (_, classes) in listed if classes & families} or {1})


def test_exit_codes_are_told_by_help_and_document(run: Run) -> None:
    told = {code: meaning for code, (meaning, _) in documented_exit_codes().items()}
    assert told == cli.MEANINGS
    _, out, _ = run("--help")
    for code, meaning in told.items():
        assert f"  {code:<5}{meaning}\n" in out


def test_every_command_can_be_asked_for_json() -> None:
    parser, _ = cli.build_parser()
    commands = [each for each in walk(parser) if not each.commands]
    assert len(commands) > 15
    for command in commands:
        assert any("--json" in each.names for each in command.options), command.words


def test_options_of_the_network_are_of_every_command_that_uses_it() -> None:
    parser, _ = cli.build_parser()
    with_options = {"--offline", "--mirror", "--connections", "--deadline"}
    for command in walk(parser):
        if command.words in ("ls", "info", "pull", "push") or (
            command.words.startswith("dataset ")
        ):
            names = {name for each in command.options for name in each.names}
            assert with_options <= names, command.words


@pytest.mark.parametrize("how", ["option", "variable"])
def test_offline_answers_from_the_cache_alone(
    run: Run, served: FakeGateway, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    served.publish("m", b"abc")
    assert run("pull", "m@1")[0] == 0
    before = len(served.seen)
    words = ["--offline"] if how == "option" else []
    if how == "variable":
        monkeypatch.setenv("VISION_O3_OFFLINE", "1")
    code, out, _ = run("pull", "m@1", *words)
    assert (code, Path(out.strip()).read_bytes()) == (0, b"abc")
    code, _, err = run("ls", *words)
    assert code == 9
    assert "[offline]" in err
    assert len(served.seen) == before


def test_offline_that_says_neither_is_an_error(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISION_O3_OFFLINE", "perhaps")
    code, _, err = run("ls")
    assert code == 2
    assert "VISION_O3_OFFLINE is 'perhaps'. Set it to 1 or 0" in err


@pytest.mark.parametrize(
    ("words", "variable", "expected"),
    [
        ([], "", []),
        ([], "http://a.test, http://b.test", ["http://a.test", "http://b.test"]),
        (["--mirror", "http://c.test"], "http://a.test", ["http://c.test"]),
    ],
)
def test_mirrors_and_bounds_reach_the_client(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    words: List[str],
    variable: str,
    expected: List[str],
) -> None:
    given: Dict[str, Any] = {}

    def make(**options: Any) -> VisionO3Client:
        given.update(options)
        return VisionO3Client(**options)

    monkeypatch.setattr("vision_o3.sdk.environment.VisionO3Client", make)
    monkeypatch.setenv("VISION_O3_MIRRORS", variable)
    assert run("ls", *words, "--connections", "2", "--deadline", "9.5")[0] == 0
    assert list(given["mirrors"]) == expected
    assert (given["connections"], given["deadline"]) == (2, 9.5)


@pytest.mark.parametrize("named", [True, False])
def test_secrets_go_only_to_the_gateway_that_the_environment_names(
    run: Run, served: FakeGateway, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    del run  # what it sets is enough
    monkeypatch.setenv("VISION_O3_TOKEN", "canary")
    if not named:
        monkeypatch.setenv("VISION_O3_URL", "http://other.test")
    with open_client(gateway_url=f"{served.url}/") as client:
        client.list_models()
    assert served.seen[0].headers.get("authorization") == (
        "Bearer canary" if named else None
    )


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
