"""The commands of datasets, as a user types them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any, Callable, List, Tuple

import pytest

from tests.fakes.fake_gateway import FakeGateway, archive_of, flip
from tests.test_sdk.conftest import content_of
from vision_o3.content.dag import cid_of_bytes
from vision_o3.sdk import cli

Run = Callable[..., Tuple[int, str, str]]
FILES = {"images/1.jpg": content_of(3000), "labels/1.txt": b"0 0.5 0.5 0.1 0.1\n"}


@pytest.fixture
def run(
    tmp_path: Path,
    served: FakeGateway,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run ``vision-o3 dataset …``; return exit code, output and errors."""
    monkeypatch.setenv("VISION_O3_URL", served.url)
    monkeypatch.setenv("VISION_O3_CACHE", str(tmp_path / "cache"))

    def run_command(*words: str) -> Tuple[int, str, str]:
        code = cli.main(["dataset", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


def test_ls_and_info(run: Run, served: FakeGateway) -> None:
    facts = {"kind": "archive", "annotations": {"classes": {"plate": 12}}}
    served.publish_archive("d", FILES, facts=facts)
    code, out, _ = run("ls")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert rows[0] == ["NAME", "VERSION", "FORMAT", "SIZE", "CID"]
    assert rows[1][:3] == ["d", "1", "zip"]
    _, out, _ = run("info", "d@1")
    assert "manifest_cid:" in out
    assert "    classes: plate 12\n" in out
    assert json.loads(run("info", "d", "--json")[1])["facts"] == facts


def test_ls_filters_by_what_datasets_have(run: Run, served: FakeGateway) -> None:
    assert run("ls", "--annotations", "coco", "--has-class", "cat")[0] == 0
    assert served.seen[-1].query["annotations"] == ["coco"]
    assert served.seen[-1].query["has_class"] == ["cat"]


def test_push_and_pull(run: Run, served: FakeGateway, tmp_path: Path) -> None:
    path = tmp_path / "d.tar.gz"
    path.write_bytes(archive_of(FILES, "tar.gz"))
    words = ("push", str(path), "--name", "d", "--format", "tar.gz", "--tag", "a")
    code, out, _ = run(*words)
    assert code == 0
    assert out.startswith(f"d@1   {cid_of_bytes(path.read_bytes())}")
    assert served.published["datasets"][0].document["tags"] == ["a"]
    _, out, _ = run("pull", "d")
    assert Path(out.strip()).read_bytes() == path.read_bytes()
    _, out, _ = run("pull", str(cid_of_bytes(path.read_bytes())), "--json")
    assert Path(json.loads(out)["path"]).name == "d.tar.gz"


def test_files_lists_path_size_type_and_cid(run: Run, served: FakeGateway) -> None:
    served.publish_archive("d", FILES)
    _, out, _ = run("files", "d")
    assert [line.split() for line in out.splitlines()] == [
        ["PATH", "SIZE", "TYPE", "CID"],
        [
            "images/1.jpg",
            "2.9",
            "KiB",
            "image/jpeg",
            str(cid_of_bytes(content_of(3000))),
        ],
        [
            "labels/1.txt",
            "18",
            "B",
            "text/plain",
            str(cid_of_bytes(FILES["labels/1.txt"])),
        ],
    ]
    _, out, _ = run("files", "d@1", "--json")
    assert json.loads(out)[1] == {
        "path": "labels/1.txt",
        "size": 18,
        "cid": str(cid_of_bytes(FILES["labels/1.txt"])),
        "media_type": "text/plain",
    }


def test_cat_writes_the_bytes_and_nothing_else(
    run: Run, served: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.publish_archive("d", FILES)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written))
    code = run("cat", "d", "images/1.jpg")[0]
    assert code == 0
    assert written.getvalue() == FILES["images/1.jpg"]


def test_cat_says_where_the_file_is_as_json(run: Run, served: FakeGateway) -> None:
    served.publish_archive("d", FILES)
    code, out, _ = run("cat", "d", "images/1.jpg", "--json")
    found = json.loads(out)
    assert (code, found["size"]) == (0, 3000)
    assert Path(found["path"]).read_bytes() == FILES["images/1.jpg"]


def test_extract(run: Run, served: FakeGateway, tmp_path: Path) -> None:
    served.publish_archive("d", FILES)
    out_path = tmp_path / "out"
    code, out, _ = run("extract", "d", "--to", str(out_path))
    assert (code, out) == (0, f"2 files, 2.9 KiB, in {out_path}.\n")
    assert (out_path / "images/1.jpg").read_bytes() == FILES["images/1.jpg"]
    other = tmp_path / "other"
    _, out, _ = run("extract", "d@1", "labels", "*.txt", "--to", str(other), "--json")
    assert json.loads(out)["files"] == [str(other / "labels/1.txt")]
    assert run("extract", "d", "labels", "--to", str(other))[1].startswith(
        "1 file, 18 B"
    )
    (other / "labels/1.txt").write_bytes(b"mine")
    code, _, err = run("extract", "d", "--to", str(other))
    assert code == 6
    assert "[already_exists]" in err
    assert run("extract", "d", "--to", str(other), "--overwrite")[0] == 0
    assert (other / "labels/1.txt").read_bytes() == FILES["labels/1.txt"]


def annotated(images: int, **classes: int) -> Any:
    sums = {"images": images, "annotations": 9, "boxes": sum(classes.values())}
    return {"annotations": {**sums, "classes": classes, "class_count": len(classes)}}


def test_diff_shows_files_classes_and_a_summary(run: Run, served: FakeGateway) -> None:
    before = {"same": b"0", "changed": b"1", "old name": b"2", "gone": b"3"}
    after = {"same": b"0", "changed": b"one", "new": b"2", "came": b"4"}
    served.publish_archive("d", before, facts=annotated(4, cat=1, dog=5000))
    served.publish_archive("d", after, facts=annotated(4, cat=2, dog=9000, cow=1))
    code, out, _ = run("diff", "d", "1", "2")
    assert code == 0
    assert out.splitlines() == [
        "+ came",
        "- gone",
        "~ changed",
        "> old name -> new",
        "boxes: 5,001 -> 9,003 (+4,002)",
        "class dog: 5,000 -> 9,000 (+4,000)",
        "class cat: 1 -> 2 (+1)",
        "class cow: 0 -> 1 (+1)",
        "d 1 → 2: 1 added, 1 removed, 1 changed, 1 renamed, 1 unchanged.",
    ]
    _, out, _ = run("diff", "d", "1", "2", "--json")
    assert json.loads(out)["files"]["renamed"] == 1
    assert run("diff", "d", "2", "2")[1] == (
        "d 2 → 2: 0 added, 0 removed, 0 changed, 0 renamed, 4 unchanged.\n"
    )


def test_diff_of_what_is_no_archive(run: Run, served: FakeGateway) -> None:
    served.publish("d", b"[]", "datasets", format="json")
    served.publish("d", b"{}", "datasets", format="json")
    assert run("diff", "d", "1", "2")[1] == "d 1 → 2: other content.\n"
    assert run("diff", "d", "1", "1")[1] == "d 1 → 1: the same content.\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["extract", "d"], 2),
        (["files", "none"], 5),
        (["files", "d@0"], 3),
        (["cat", "d", "../x"], 3),
        (["cat", "d", "none"], 5),
        (["extract", "d", "none", "--to", "x"], 5),
        (["diff", "d", "1", "9"], 5),
        (["diff", "d", "1", "x"], 3),
        (["--help"], 0),
    ],
)
def test_exit_codes(
    run: Run,
    served: FakeGateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: List[str],
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    served.publish_archive("d", FILES)
    assert run(*words)[0] == code
    assert not (tmp_path / "x").exists()


def test_wrong_bytes_end_with_code_7_and_are_not_written(
    run: Run, served: FakeGateway, tmp_path: Path
) -> None:
    served.publish_archive("d", FILES)
    served.lie("1.jpg", flip(0), times=99)
    code, out, err = run("cat", "d", "images/1.jpg")
    assert (code, out) == (7, "")
    assert "[digest_mismatch]" in err
    assert run("extract", "d", "images", "--to", str(tmp_path / "out"))[0] == 7
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
