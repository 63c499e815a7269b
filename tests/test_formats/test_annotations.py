from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vision_o3.formats.annotations import (
    MOST_CLASSES,
    Tally,
    listed_images,
    names_in_lines,
    names_in_yaml,
    yolo_boxes,
)


@pytest.mark.parametrize(
    ("content", "boxes"),
    [
        (b"", {}),
        (b"\n \r\n", {}),
        (b"0 0.5 0.5 0.25 1\n", {0: 1}),
        (b"0 0.5 0.5 0.25 1", {0: 1}),
        (b"0 .5 0. 1.0 1.000\r\n12 0 0 1 1\r\n\r\n0 0 0 0 0\r\n", {0: 2, 12: 1}),
        (b"  3\t5.0e-01 1e0 0.0e+00 2.5E-02  \n", {3: 1}),
        (b"1 0.1 0.1 0.2 0.1 0.2 0.2\n1 0 0 1 0 1 1 0 1\n", {1: 2}),
        (b"0 0.5 0.5 0.1 0.1 0.3 0.4 2.0 0.0 0.0 0.0\n", {0: 1}),
        (b"0 0.5 0.5 0.1 0.1\n" * 5000, {0: 5000}),
    ],
)
def test_yolo_labels_are_counted(content: bytes, boxes: dict[int, int]) -> None:
    assert yolo_boxes(content) == boxes


@pytest.mark.parametrize(
    "content",
    [
        b"a photo of a cat",
        b"cat 0.5 0.5 0.1 0.1",
        b"0 0.5 0.5 0.1",
        b"0",
        b"1.5 0.5 0.5 0.1 0.1",
        b"0 320 240 64 64",
        b"0 0.5 0.5 0.1 1.5",
        b"0 -0.5 0.5 0.1 0.1",
        b"0 0.5 0.5 0.1 nan",
        b"0 0.5 0.5 0.1 0.1 x",
        b"0,0.5,0.5,0.1,0.1",
        b"999999 0.5 0.5 0.1 0.1",
        b"0 0.5 0.5 0.1 0.1\nend",
        b"0 0.5 0.5 0.1 0.1\n" * 50_000 + b"x",
        b"0 " * 500_000 + b"x",
        b" " * 1_000_000 + b"x",
        b"\r" * 1_000_000 + b"x",
        b"\xff\0",
    ],
    ids=lambda content: repr(content[:30]),
)
def test_other_text_is_not_yolo(content: bytes) -> None:
    assert yolo_boxes(content) is None


@pytest.mark.parametrize(
    "content",
    [
        "names: [cat, dog]\nnc: 2\n",
        "# data\npath: ../x\ntrain: images/train\nnames:\n  0: cat\n  1: dog\nnc: 2\n",
        "names:\n- cat\n- dog\n",
        '{"names": {"0": "cat", "1": "dog"}}',
        "\ufeffnames: ['cat', \"dog\"]\n---\nnames: [other]\n",
        "kpt: [[1, 2], {names: [a]}]\nflip: {names: {0: b}}\nnames: [cat, dog]",
        "%YAML 1.1\n---\n!!map\nnames: !!python/tuple [cat, dog]",
    ],
)
def test_names_are_read_from_yaml(content: str) -> None:
    assert names_in_yaml(content.encode()) == {0: "cat", 1: "dog"}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "names",
        "names:",
        "names: cat",
        "names: []",
        "names: [[cat]]",
        "names: {0: [cat]}",
        "names: {zero: cat}",
        "names: *a",
        "a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]",
        "a: &a 1\nb: *a\nnames: [cat]",
        "- names\n- [cat]",
        "other: names\nmore: [cat]",
        "[names]: [cat]",
        "names: [cat",
        "\0",
        "a: " + "[" * 9 + "]" * 9 + "\nnames: [cat]",
        "[" * 60_000,
        "{" * 60_000,
        "- " * 30_000,
        "? " * 30_000,
    ],
    ids=lambda content: repr(content[:30]),
)
def test_other_yaml_has_no_names(content: str) -> None:
    assert names_in_yaml(content.encode()) is None


@given(
    st.lists(
        st.text(
            st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]),
            max_size=9,
        ),
        min_size=1,
    )
)
def test_names_that_yaml_writes_are_read(names: list[str]) -> None:
    content = yaml.safe_dump({"nc": len(names), "names": names}, allow_unicode=True)
    assert names_in_yaml(content.encode()) == dict(enumerate(names))


def test_names_are_read_from_lines() -> None:
    assert names_in_lines(b"cat\r\n hot dog \n\nzebra\n\n") == {
        0: "cat", 1: "hot dog", 2: "", 3: "zebra",
    }  # fmt: skip
    assert names_in_lines(b"") is None
    assert names_in_lines("\ufeffkäse\n".encode()) == {0: "käse"}
    assert len(names_in_lines(b"a\n" * 20_000) or ()) == MOST_CLASSES
    assert names_in_lines(b"a" * 9000) == {0: "a" * 800}


def test_listed_images_are_lines() -> None:
    assert listed_images(b"") == 0
    assert listed_images(b"2007_000032\r\n2007_000039 1\n\n") == 2


@given(st.binary(max_size=60))
def test_any_bytes_are_understood_or_not(content: bytes) -> None:
    yolo_boxes(content)
    names_in_lines(content)
    names_in_yaml(content)
    names_in_yaml(b"names: " + content)


def test_tallies_add_up_and_take_names() -> None:
    first, second = Tally(), Tally()
    for tally, name in ((first, "0"), (second, "0"), (second, "5")):
        tally.images += 1
        tally.annotations += 2
        tally.boxes += 2
        tally.count_class(name, 2)
    first.add(second)
    assert first.renamed({0: "cat", 1: "dog"}).facts("yolo") == {
        "format": "yolo",
        "images": 3,
        "annotations": 6,
        "boxes": 6,
        "classes": {"cat": 4, "5": 2, "dog": 0},
        "class_count": 3,
    }
