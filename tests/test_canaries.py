"""That what looks for leaked secrets finds them: each test here leaks one."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from tests.canaries import CANARIES, Canaries

VALUE = "canary-that-a-test-plants"
TOKEN = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJlLW9mLWl0LWFsbA"
USERS = "vo3_ab12cd_R4nd0mR4nd0mR4nd0mR4nd0m"

FAILURE = ValueError(VALUE)


def leaks() -> list[str]:
    """Return what was found, so that the hook finds it no more."""
    return CANARIES.check()


@pytest.fixture(autouse=True)
def planted() -> str:
    return CANARIES.add(VALUE, "the planted secret")


def test_log_line_of_a_library_is_seen() -> None:
    logging.getLogger("some.library").debug("about %s", VALUE)
    assert leaks() == [
        "the planted secret was seen in a log line of some.library",
    ]


def test_traceback_is_seen() -> None:
    error = ValueError(VALUE)
    logging.getLogger("some.library").error("failed", exc_info=error)
    assert len(leaks()) == 1


def test_log_line_of_ours_is_seen() -> None:
    structlog = pytest.importorskip("structlog")
    log = structlog.get_logger("ours")
    log.debug("x", deep={"a": [VALUE]})
    assert len(leaks()) == 1
    for name, words in (("info", {"key": VALUE}), ("error", {"exc_info": FAILURE})):
        CANARIES.add(VALUE, "the planted secret")
        getattr(log.bind(bound=1), name)("x", **words)
        assert len(leaks()) == 1
    CANARIES.add(VALUE, "the planted secret")
    log.bind(key=VALUE).info("x")
    assert len(leaks()) == 1
    with structlog.testing.capture_logs():
        CANARIES.add(VALUE, "the planted secret")
        log.debug("x", value=VALUE)
    assert len(leaks()) == 1


@pytest.mark.parametrize("secret", [TOKEN, USERS])
def test_what_looks_like_a_secret_is_seen_though_nobody_named_it(secret: str) -> None:
    CANARIES.see("an answer", f'{{"detail": "{secret}"}}')
    assert len(leaks()) == 1


def test_presigned_url_is_seen() -> None:
    CANARIES.see("an answer", f"http://h/k?X-Amz-Signature={'0a' * 32}&x=1")
    assert leaks() == ["a presigned URL was seen in an answer"]


def test_what_is_no_secret_is_not_taken_for_one() -> None:
    CANARIES.see("an answer", "vo3_ab12cd_[hidden] eyJhbGciOiJFZERTQSJ9 key.eyes.eye")
    assert leaks() == []


def test_much_is_searched_on_the_way_and_nothing_forgotten() -> None:
    canaries = Canaries()
    canaries.add(VALUE, "it", always=True)
    canaries.see("early", VALUE)
    for _ in range(20):
        canaries.see("later", "x" * (1 << 20))
    assert len(canaries._seen) < 20
    assert canaries.check() == ["it was seen in early"]
    assert canaries.check() == []
    canaries.see("again", VALUE)
    assert canaries.check() == ["it was seen in again"]


def test_canary_that_could_be_there_by_chance_is_refused() -> None:
    with pytest.raises(ValueError, match="too short"):
        CANARIES.add("short", "it")


LEAKING = """
import logging
from tests.canaries import CANARIES

def test_it():
    CANARIES.add("canary-of-the-inner-test", "the inner secret")
    logging.getLogger("x").debug("canary-of-the-inner-test")
"""


def test_test_that_leaks_fails(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "test_leaking.py").write_text(LEAKING)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-c", str(root / "pyproject.toml"), "--rootdir", str(tmp_path)]
    ended = subprocess.run(
        [*command, str(tmp_path)],
        cwd=str(root),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "the inner secret was seen in a log line of x" in ended.stdout
