"""The scripts, by the shells themselves where they are installed."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path
from typing import List

import pytest

from vision_o3.sdk import cli
from vision_o3.sdk.completion import SHELLS, script, walk

BASH, FISH = shutil.which("bash"), shutil.which("fish")
NETWORK = ["--connections", "--deadline", "--mirror", "--offline"]


def parser() -> argparse.ArgumentParser:
    return cli.build_parser()[0]


def completed_by_bash(script_path: Path, *words: str) -> List[str]:
    """Return what bash offers for the last of the words."""
    lines = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _vision_o3\n'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [str(BASH), "-c", lines, "bash", str(script_path), "vision-o3", *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=script_path.parent,
    )
    assert done.stderr == ""
    return sorted(filter(None, done.stdout.split("\n")))


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["da"], ["dataset"]),
        (["dataset", "p"], ["pull", "push"]),
        (["dataset", "pull", "--o"], ["--offline", "--output"]),
        (["pull", "text-detector", "--m"], ["--mirror"]),
        (["pull", "--mirror", ""], []),
        (["pull", "tex"], []),
        (["ls", "--tag", "dataset", "--j"], ["--json"]),
        (["completion", ""], ["--help", "--json", "-h", *sorted(SHELLS)]),
        (["pull", "-o", "a f"], ["a file.onnx"]),
        (["push", "a f"], ["a file.onnx"]),
        (["push", "--name", "a f"], []),
        (
            ["dataset", "diff", "--"],
            ["--allow-blocked", "--help", "--json", *NETWORK],
        ),
        (["dep"], ["deprecate"]),
        (["dataset", "un"], ["unblock"]),
        (["block", "text-detector", "1", "--r"], ["--reason"]),
    ],
)
def test_bash_completes(tmp_path: Path, words: List[str], expected: List[str]) -> None:
    path = tmp_path / "completion"
    path.write_text(script(parser(), "bash"), encoding="utf-8")
    (tmp_path / "a file.onnx").touch()
    assert completed_by_bash(path, *words) == sorted(expected)


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_are_right_by_the_shell(shell: str, tmp_path: Path) -> None:
    text = script(parser(), shell)
    if shutil.which(shell) is not None:
        path = tmp_path / "completion"
        path.write_text(text, encoding="utf-8")
        subprocess.run([shell, "-n", str(path)], check=True)
    for command in walk(parser()):
        for names in (each.names for each in command.options):
            for name in names:
                assert name.lstrip("-") in text
        for name, _ in command.commands:
            assert name in text


@pytest.mark.skipif(FISH is None, reason="fish is not installed")
def test_fish_completes(tmp_path: Path) -> None:
    path = tmp_path / "completion.fish"
    path.write_text(script(parser(), "fish"), encoding="utf-8")
    done = subprocess.run(
        [str(FISH), "-c", f"source {path}; complete -C 'vision-o3 dataset pu'"],
        capture_output=True,
        text=True,
        check=True,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == [
        "pull",
        "push",
    ]


def test_quotes_in_a_help_do_not_end_the_word() -> None:
    odd = argparse.ArgumentParser("odd")
    odd.add_argument("--it", choices=["a", "b"], help="it's 100 %% \\ odd")
    assert "it'\\''s 100 % \\ odd" in script(odd, "zsh")
    assert "it\\'s 100 % \\\\ odd" in script(odd, "fish")
