from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.dataset_files import bmp, gif, jpeg, png, webp
from vision_o3.formats.images import HEAD, image_size
from vision_o3.formats.media_types import UNKNOWN, media_type_of

EXIF = b"\xff\xe1\xff\xff" + bytes(65_533)
GOOD = {
    "jpeg": jpeg(640, 480),
    "jpeg progressive": jpeg(640, 480, marker=0xC2),
    "jpeg lossless": jpeg(640, 480, marker=0xC3),
    "jpeg with metadata": jpeg(640, 480, before=EXIF),
    "jpeg with fill bytes": jpeg(640, 480, before=b"\xff" * 7),
    "jpeg with bare markers": jpeg(640, 480, before=b"\xff\x01\xff\xd0"),
    "jpeg with a huffman table": jpeg(640, 480, before=b"\xff\xc4\0\x04ab"),
    "png": png(640, 480),
    "gif": gif(640, 480),
    "gif 87": gif(640, 480).replace(b"89a", b"87a"),
    "bmp": bmp(640, 480),
    "bmp from the top": bmp(640, -480),
    "bmp of OS/2": bmp(640, 480, header=12),
    "bmp version 5": bmp(640, 480, header=124),
    "webp": webp("VP8", 640, 480),
    "webp lossless": webp("VP8L", 640, 480),
    "webp extended": webp("VP8X", 640, 480),
}


@pytest.mark.parametrize("name", GOOD)
def test_sizes_are_read_from_headers(name: str) -> None:
    assert image_size(GOOD[name]) == (640, 480)
    assert image_size(GOOD[name] + bytes(100)) == (640, 480)


@pytest.mark.parametrize("name", GOOD)
def test_a_header_cut_short_tells_no_size(name: str) -> None:
    content = GOOD[name]
    answers = [image_size(content[:size]) for size in range(min(len(content), 400))]
    assert set(answers) <= {None, (640, 480)}
    assert answers == sorted(answers, key=lambda answer: answer is not None)
    assert answers[:20] == [None] * 20 or name.startswith("gif")


def test_a_lot_of_metadata_is_passed_over() -> None:
    content = jpeg(9, 8, before=EXIF + b"\xff\xe2\xc0\0" + bytes(0xC000 - 2))
    assert len(content) < HEAD
    assert image_size(content[:HEAD]) == (9, 8)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xff\xd8",
        b"text, and more of it than any header takes",
        jpeg(0, 480),
        jpeg(640, 0),
        jpeg(640, 480, before=b"\xff\xd9"),
        jpeg(640, 480, before=b"\xff\xda\0\x02"),
        jpeg(640, 480, before=b"\xff\0"),
        jpeg(640, 480, before=b"x"),
        b"\xff\xd8" + b"\xff" * 5000,
        png(0, 480),
        png(640, 480).replace(b"IHDR", b"CgBI"),
        gif(640, 0),
        gif(640, 480).replace(b"89a", b"88a"),
        bmp(-640, 480),
        bmp(640, 480, header=15),
        bmp(640, 480, header=125),
        bmp(0, 480, header=12),
        webp("VP8 ", 640, 480).replace(b"\x9d\x01\x2a", b"\x9d\x01\x2b"),
        webp("VP8L", 640, 480).replace(b"\x2f", b"\x2e"),
        webp("ALPH", 640, 480),
        webp("VP8", 640, 480).replace(b"WEBP", b"WAVE"),
    ],
)
def test_what_tells_no_size_is_none(head: bytes) -> None:
    assert image_size(head) is None


@given(st.sampled_from(sorted(GOOD)), st.integers(0, 60), st.binary(max_size=30))
def test_any_bytes_have_a_size_or_none(name: str, at: int, more: bytes) -> None:
    for head in (GOOD[name][:at] + more, more):
        size = image_size(head)
        assert size is None or min(size) > 0


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.jpg", "image/jpeg"),
        ("train/a.b/c.JPEG", "image/jpeg"),
        ("a.png", "image/png"),
        ("annotations/instances.json", "application/json"),
        ("a.xml", "application/xml"),
        ("data.yml", "application/yaml"),
        ("labels/a.txt", "text/plain"),
        ("a.csv", "text/csv"),
        ("a.npz", "application/x-numpy"),
        ("a.mp4", "video/mp4"),
        ("a.tar.gz", "application/gzip"),
        ("a.parquet", "application/vnd.apache.parquet"),
        ("a.tfrecord", "application/x-tfrecord"),
        ("a.b/c", UNKNOWN),
        ("README", UNKNOWN),
        ("a.", UNKNOWN),
        ("a.unheard-of", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_media_types_are_by_extension(path: str, expected: str) -> None:
    assert media_type_of(path) == expected
    assert re.fullmatch(r"[a-z0-9.+-]+/[a-z0-9.+-]+", media_type_of(path))
