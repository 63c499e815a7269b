"""Documents tell the truth: tables in them are held to the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vision_o3 import errors
from vision_o3.gateway.problems import status_of

REPOSITORY = Path(__file__).parent.parent
DOCUMENTS = sorted(
    [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")],
    key=lambda path: path.name,
)


def test_every_error_has_its_row() -> None:
    text = (REPOSITORY / "docs" / "errors.md").read_text()
    rows = re.findall(
        r"^\| `(\w+)` \| `(\w+)` \| (\d+) \| (yes|no) \| (.+) \|$", text, re.MULTILINE
    )
    expected = {
        (
            cls.code,
            cls.__name__,
            str(status_of(cls)),
            "yes" if cls.retryable else "no",
            (cls.__doc__ or "").splitlines()[0],
        )
        for cls in errors._tree(errors.VisionO3Error)
    }
    assert set(rows) == expected


def test_codes_are_never_shared() -> None:
    codes = [cls.code for cls in errors._tree(errors.VisionO3Error)]
    assert len(codes) == len(set(codes))


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = set(re.findall(r"(\w+Error)\b", errors.__doc__ or ""))
    assert drawn == {cls.__name__ for cls in errors._tree(errors.VisionO3Error)}


@pytest.mark.parametrize("code", ["not_found", "digest_mismatch", "too_large"])
def test_code_gives_the_class_back(code: str) -> None:
    found = errors.from_code(code)
    assert found is not None
    assert found.code == code


def test_unknown_code_gives_nothing() -> None:
    assert errors.from_code("no_such_code") is None


def test_values_become_attributes() -> None:
    error = errors.LimitExceededError("Too long.", limit=3)
    assert error.values == {"limit": 3}
    assert error.limit == 3  # type: ignore[attr-defined] # set from the keyword


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_every_decision_is_indexed() -> None:
    index = (REPOSITORY / "docs" / "adr" / "README.md").read_text()
    for decision in (REPOSITORY / "docs" / "adr").glob("0*.md"):
        assert decision.name in index
