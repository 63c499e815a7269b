from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision_o3.errors import InvalidNameError, InvalidVersionError
from vision_o3.naming import parse_name, parse_version


@pytest.mark.parametrize(
    "name", ["a", "0", "yolov11-nano", "a.b_c-d", "cid2", "x" * 128]
)
def test_good_names_are_accepted(name: str) -> None:
    assert parse_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "cid",
        "A",
        "-a",
        ".a",
        "..",
        "a/b",
        "a\0",
        "a\n",
        "ä",
        "x" * 129,
        "a b",
        "_a",
    ],
)
def test_bad_names_are_refused_with_advice(name: str) -> None:
    with pytest.raises(InvalidNameError, match="Use 1 to 128 characters"):
        parse_name(name)


@given(st.text(max_size=200))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        name = parse_name(text)
    except InvalidNameError:
        return
    assert name == text
    assert "/" not in name
    assert not name.startswith(".")


@pytest.mark.parametrize(
    ("value", "number"), [(1, 1), ("2147483647", 2**31 - 1), ("007", 7)]
)
def test_version_numbers_are_read(value: int | str, number: int) -> None:
    assert parse_version(value) == number


@pytest.mark.parametrize(
    "value", [0, -1, 999999999999, "", "1.0", "latest", "²", "+1", 2**31]
)
def test_other_version_numbers_are_refused(value: int | str) -> None:
    with pytest.raises(InvalidVersionError, match="whole numbers from 1"):
        parse_version(value)
