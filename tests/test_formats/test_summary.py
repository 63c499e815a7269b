from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.dataset_files import coco_bytes, gif, jpeg, png, voc
from vision_o3.formats.limits import Limits
from vision_o3.formats.media_types import media_type_of
from vision_o3.formats.summary import Summary
from vision_o3.schemas.facts import NEW_FACTS

JPEG = jpeg(640, 480)
BOX: list[float] = [1, 2, 3, 4]


def summed(files: Mapping[str, bytes], limits: Limits | None = None) -> dict[str, Any]:
    """The facts of files, as an archive's reader has them summed up."""
    summary = Summary(limits or Limits())
    for path, content in files.items():
        parser = summary.parser(path, len(content))
        if parser is not None:
            for start in range(0, len(content), 1000):
                parser.feed(content[start : start + 1000])
            parser.finish()
        head = content[: summary.wanted(path, len(content))]
        summary.add(path, len(content), media_type_of(path), head, parser)
    facts = summary.facts()
    NEW_FACTS.validate_python(
        {
            "kind": "archive",
            "container": "zip",
            "files": len(files),
            "unpacked_bytes": sum(map(len, files.values())),
            **facts,
        }
    )
    return facts


def summed_any_way(files: dict[str, bytes]) -> dict[str, Any]:
    """The facts, which are the same in another order and under a folder."""
    facts = summed(files)
    paths = list(files)
    random.Random(7).shuffle(paths)
    assert summed({path: files[path] for path in paths}) == facts
    assert summed({f"My set/{path}": content for path, content in files.items()}) == (
        facts
    )
    return facts


def test_media_types_and_sizes_are_counted() -> None:
    facts = summed_any_way(
        {
            "a.jpg": JPEG,
            "b.JPG": jpeg(100, 900),
            "c.png": png(640, 480),
            "d.gif": gif(10, 20),
            "e.jpg": b"not an image",
            "f.svg": b"<svg/>",
            "g.txt": b"text",
            "__MACOSX/._a.jpg": b"\0\5\x16\7",
            "._b.JPG": b"\0\5\x16\7",
        }
    )
    assert facts == {
        "media_types": {
            "image/gif": {"files": 1, "bytes": len(gif(1, 1))},
            "image/jpeg": {"files": 5, "bytes": 2 * len(JPEG) + 12 + 4 + 4},
            "image/png": {"files": 1, "bytes": len(png(1, 1))},
            "image/svg+xml": {"files": 1, "bytes": 6},
            "text/plain": {"files": 1, "bytes": 4},
        },
        "splits": {},
        "images": {
            "count": 4,
            "unreadable": 2,
            "min_width": 10,
            "max_width": 640,
            "min_height": 20,
            "max_height": 900,
            "sizes": {"640x480": 2, "10x20": 1, "100x900": 1},
        },
        "annotations": None,
    }


def test_nothing_is_found_in_nothing() -> None:
    assert summed({}) == {
        "media_types": {}, "splits": {}, "images": None, "annotations": None,
    }  # fmt: skip


def test_images_that_no_header_tells_of_are_counted() -> None:
    images = summed({"a.jpg": b"", "b.tiff": b"II*\0"})["images"]
    assert (images["count"], images["unreadable"]) == (0, 2)
    assert (images["min_width"], images["max_height"], images["sizes"]) == (0, 0, {})


def test_sizes_beyond_the_bound_are_counted() -> None:
    summary = Summary(Limits())
    sizes = [(width, height) for width in range(1, 122) for height in range(1, 122)]
    for width, height in [*sizes, (9_999, 1), (1, 8_888)]:
        summary.add("a.png", 99, "image/png", png(width, height), None)
    images = summary.facts()["images"]
    assert images["count"] == len(sizes) + 2
    assert (images["max_width"], images["max_height"]) == (9_999, 8_888)
    assert len(images["sizes"]) == 20


YOLO = {
    "images/train/a.jpg": JPEG,
    "images/train/b.jpg": JPEG,
    "images/val/c.jpg": JPEG,
    "labels/train/a.txt": b"0 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1\n",
    "labels/train/b.txt": b"",
    "labels/val/c.txt": b"1 0.1 0.1 0.2 0.1 0.2 0.2 0.3 0.3\n",
    "data.yaml": b"names: {0: cat, 1: dog, 2: zebra}\nnc: 3\n",
    "README.txt": b"A data set of cats.",
}
YOLO_FACTS = {
    "format": "yolo",
    "images": 3,
    "annotations": 3,
    "boxes": 3,
    "classes": {"dog": 2, "cat": 1, "zebra": 0},
    "class_count": 3,
}


@pytest.mark.parametrize(
    "files",
    [
        YOLO,
        {
            re.sub("(images|labels)/(train|val)", r"\2/\1", path): content
            for path, content in YOLO.items()
        },
        {**YOLO, "labels/classes.txt": b"wrong\n", "x/y/z.yaml": b"names: [wrong]"},
        {**YOLO, "a.yaml": b"*broken", "labels/train/notes.txt": b"not a label"},
        {
            **{path: YOLO[path] for path in YOLO if not path.endswith("yaml")},
            "classes.txt": b"cat\ndog\nzebra\n",
        },
        {
            **{path.replace("labels/", "images/"): YOLO[path] for path in YOLO},
            "obj.names": b"cat\ndog\nzebra\n",
        },
    ],
    ids=["standard", "by split", "more names", "with broken", "classes.txt", "darknet"],
)  # fmt: skip
def test_yolo_is_recognised(files: dict[str, bytes]) -> None:
    facts = summed_any_way(files)
    assert facts["annotations"] == YOLO_FACTS
    assert facts["splits"]["train"]["images"] == 2
    assert facts["splits"]["val"]["images"] == 1


def test_yolo_without_names_has_numbers() -> None:
    files = {path: YOLO[path] for path in YOLO if not path.endswith("yaml")}
    annotations = summed_any_way(files)["annotations"]
    assert annotations["classes"] == {"1": 2, "0": 1}


@pytest.mark.parametrize(
    "files",
    [
        {"images/a.jpg": JPEG, "images/a.txt": b"0 0.5 0.5 0.1 0.1"},
        {"labels/a.txt": b"", "labels/b.txt": b""},
        {"labels/a.txt": b"0 0.5 0.5 0.1 0.1", "labels/b.txt": b"Car 0.00 0 -1.57"},
        {"labels/a.txt": b"0 0.5 0.5 0.1 0.1\n" * 70_000},
        {"data.yaml": b"names: [cat, dog]", "classes.txt": b"cat\ndog\n"},
        {"a.json": b"[1]", "b.json": b"", "c.json": coco_bytes(1, [], {})[:-1]},
        {"a.json": b'{"images": [', "b.json": b"[" * 1000, "c.json": b"\xff" * 99},
        {"a.xml": b"<a/>", "b.xml": b"<!DOCTYPE a>" + voc("a"), "c.xml": b""},
    ],
)
def test_what_is_not_understood_is_left_out(files: dict[str, bytes]) -> None:
    assert summed_any_way(files)["annotations"] is None


def test_files_of_coco_add_up() -> None:
    train = coco_bytes(5, [(1, BOX), (2, BOX), (2, BOX)], {1: "cat", 2: "dog"})
    val = coco_bytes(2, [(9, BOX)], {9: "dog", 1: "cat"})
    files = {
        "annotations/instances_train2017.json": train,
        "annotations/instances_val2017.json": val,
        "annotations/person_keypoints_train2017.json": coco_bytes(
            5, [(1, BOX)] * 9, {1: "person"}
        ),
        "annotations/captions_train2017.json": b'{"images": [], "annotations": []}',
        **{f"train2017/{number:012}.jpg": JPEG for number in range(5)},
        **{f"val2017/{number:012}.jpg": JPEG for number in range(2)},
    }
    facts = summed_any_way(files)
    assert facts["annotations"] == {
        "format": "coco",
        "images": 7,
        "annotations": 4,
        "boxes": 4,
        "classes": {"dog": 3, "cat": 1},
        "class_count": 2,
    }
    assert facts["splits"] == {
        "train": {"files": 5, "images": 5}, "val": {"files": 2, "images": 2},
    }  # fmt: skip
    others = {path: files[path] for path in files if "instances" not in path}
    assert summed_any_way(others)["annotations"]["boxes"] == 9


def test_json_beyond_the_limit_is_not_parsed() -> None:
    content = coco_bytes(5, [(1, BOX)], {1: "cat"})
    limits = Limits(json_bytes=len(content) - 1)
    assert summed({"a.json": content}, limits)["annotations"] is None
    assert Summary(limits).parser("a.json", len(content)) is None
    assert Summary(limits).parser("a.txt", 9) is None


VOC = {
    "VOCdevkit/VOC2012/Annotations/a.xml": voc("dog", "cat"),
    "VOCdevkit/VOC2012/Annotations/b.xml": voc("dog"),
    "VOCdevkit/VOC2012/Annotations/c.xml": voc(),
    "VOCdevkit/VOC2012/JPEGImages/a.jpg": JPEG,
    "VOCdevkit/VOC2012/JPEGImages/b.jpg": JPEG,
    "VOCdevkit/VOC2012/SegmentationClass/a.png": png(640, 480),
    "VOCdevkit/VOC2012/ImageSets/Main/train.txt": b"a\nb\n",
    "VOCdevkit/VOC2012/ImageSets/Main/val.txt": b"c\n",
    "VOCdevkit/VOC2012/ImageSets/Main/dog_train.txt": b"a  1\nb  1\n",
    "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt": b"a\n",
}


def test_voc_is_recognised_with_its_lists() -> None:
    facts = summed_any_way(VOC)
    assert facts["annotations"] == {
        "format": "voc",
        "images": 3,
        "annotations": 3,
        "boxes": 3,
        "classes": {"dog": 2, "cat": 1},
        "class_count": 2,
    }
    assert facts["splits"] == {
        "train": {"files": 2, "images": 2}, "val": {"files": 1, "images": 1},
    }  # fmt: skip


def test_annotations_of_most_images_count() -> None:
    few = {"instances.json": coco_bytes(2, [(1, BOX)], {1: "cat"})}
    as_many = {"instances.json": coco_bytes(3, [(1, BOX)], {1: "cat"})}
    assert summed_any_way({**VOC, **few})["annotations"]["format"] == "voc"
    assert summed_any_way({**YOLO, **few})["annotations"]["format"] == "yolo"
    assert summed_any_way({**VOC, **YOLO})["annotations"]["format"] == "voc"
    assert summed_any_way({**VOC, **YOLO, **as_many})["annotations"]["format"] == (
        "coco"
    )


def images_in(*folders: str) -> dict[str, bytes]:
    return {
        f"{folder}{'/' if folder else ''}{number}.jpg": JPEG
        for folder in folders
        for number in range(2)
    }


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        (images_in("cat", "dog"), {"cat": 2, "dog": 2}),
        (images_in("a/b/cat", "a/b/dog"), {"cat": 2, "dog": 2}),
        (images_in("train/cat", "train/dog"), {"cat": 2, "dog": 2}),
        (images_in("train/cat", "train/dog", "val/cat"), {"cat": 4, "dog": 2}),
        (images_in("train/cat", "validation/dog", "test"), {"cat": 2, "dog": 2}),
        ({**images_in("cat", "dog"), "logo.png": JPEG, "a.csv": b""},
         {"cat": 2, "dog": 2}),
        ({**images_in("cat", "dog"), "x/y/z.txt": b"0"}, {"cat": 2, "dog": 2}),
    ],
)  # fmt: skip
def test_folders_by_class_are_recognised(
    files: dict[str, bytes], classes: dict[str, int]
) -> None:
    count = sum(classes.values())
    assert summed_any_way(files)["annotations"] == {
        "format": "imagefolder",
        "images": count,
        "annotations": count,
        "boxes": 0,
        "classes": classes,
        "class_count": 2,
    }


@pytest.mark.parametrize(
    "files",
    [
        images_in("cat"),
        images_in(""),
        images_in("", "cat"),
        images_in("images/train", "images/val"),
        images_in("train/images", "val/images"),
        images_in("train/images", "train/masks"),
        images_in("images", "masks"),
        images_in("cat/big", "cat/small", "dog/big"),
        images_in("train", "test"),
        {**images_in("cat", "dog"), **{f"{n}.jpg": JPEG for n in range(5)}},
    ],
)
def test_other_folders_are_no_classes(files: dict[str, bytes]) -> None:
    assert summed_any_way(files)["annotations"] is None


def test_splits_are_folders_of_the_first_three_levels() -> None:
    files = {
        "a/b/training/x.jpg": JPEG,
        "a/b/Test_2019/x.txt": b"",
        "a/b/c/val/x.jpg": JPEG,
        "a/trainer/x.jpg": JPEG,
        "validation.jpg": JPEG,
    }
    assert summed(files)["splits"] == {
        "test": {"files": 1, "images": 0}, "train": {"files": 1, "images": 1},
    }  # fmt: skip


def test_folders_beyond_the_bound_are_counted() -> None:
    summary = Summary(Limits())
    for number in range(20_100):
        split = "train" if number % 2 else "val"
        summary.add(f"{split}/c{number}/a.jpg", 9, "image/jpeg", JPEG, None)
        summary.add(f"__MACOSX/{split}/c{number}/a.jpg", 9, "image/jpeg", b"", None)
    facts = summary.facts()
    half = {"files": 10_050, "images": 10_050}
    assert facts["splits"] == {"train": half, "val": half}
    assert facts["media_types"]["image/jpeg"]["files"] == 40_200
    assert facts["images"]["count"] == 20_100
    assert facts["annotations"] is None


@pytest.mark.parametrize(
    ("path", "size", "wanted"),
    [
        ("a.jpg", 10, 10),
        ("a.JPEG", 1 << 30, 128 << 10),
        ("labels/a.txt", 1 << 20, 1 << 20),
        ("labels/a.txt", (1 << 20) + 1, 0),
        ("a.xml", 1 << 20, 1 << 20),
        ("data.yaml", 64 << 10, 64 << 10),
        ("data.yml", (64 << 10) + 1, 0),
        ("obj.names", 5, 5),
        ("a.json", 5, 0),
        ("a.mp4", 5, 0),
        ("README", 5, 0),
    ],
)
def test_only_what_is_looked_at_is_wanted(path: str, size: int, wanted: int) -> None:
    assert Summary(Limits()).wanted(path, size) == wanted


FOLDERS = ["train", "val", "images", "labels", "cat", "dog", "ImageSets"]
FILES = ["a.jpg", "b.txt", "c.xml", "d.json", "data.yaml", "obj.names", "train.txt"]
CONTENTS = [JPEG, voc("a"), coco_bytes(1, [(1, BOX)], {1: "a"}), b"a\nb\n"]
TEXTS = [b"0 0.5 0.5 0.1 0.1\n", b"names: [a, b]"]


@given(
    st.dictionaries(
        st.lists(st.sampled_from(FOLDERS + FILES), min_size=1, max_size=4).map(
            "/".join
        ),
        st.sampled_from(CONTENTS + TEXTS) | st.binary(max_size=40),
        max_size=8,
    )
)
def test_any_files_are_summed_up(files: dict[str, bytes]) -> None:
    facts = summed(files)
    json.dumps(facts, allow_nan=False)
    assert sum(total["files"] for total in facts["media_types"].values()) == len(files)
