from __future__ import annotations

import gzip
import io
import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.real_models import MODELS
from tests.fakes import archive_files, dataset_files, hdf5_files, model_files, pt_files
from tests.fakes.real_files import real
from vision_o3.content.manifest import Manifest
from vision_o3.errors import FormatError, LimitExceededError, UnsafeContentError
from vision_o3.formats.inspection import (
    ARCHIVES,
    DATASET_FORMATS,
    MODEL_FORMATS,
    Inspection,
    Outputs,
    format_of_filename,
    inspect,
)
from vision_o3.formats.limits import Limits
from vision_o3.schemas.facts import NEW_FACTS

ALL = MODEL_FORMATS + DATASET_FORMATS
GOOD = {
    "pt": pt_files.torch_zip(),
    "onnx": model_files.onnx(),
    "tflite": model_files.tflite(),
    "h5": hdf5_files.keras_weights(),
    "zip": archive_files.zip_file("images/1.jpg"),
    "tar.gz": archive_files.tar_gz(archive_files.tar_member(b"a.txt", b"abc")),
    "json": dataset_files.coco_bytes(2, [(1, None)], {1: "cat"}),
    "xml": dataset_files.voc("cat"),
}
WHAT = {
    "pt": "a PyTorch file",
    "onnx": "an ONNX model",
    "tflite": "a TFLite model",
    "h5": "an HDF5 file",
    "zip": "a ZIP archive",
    "tar.gz": "gzip-compressed",
    "json": "JSON or the like",
    "xml": "XML or the like",
}


def looked_into(
    directory: Path, content: bytes, declared: str, **limits: Any
) -> tuple[Inspection, bytes]:
    """Inspect a file of this content; return the manifest, too."""
    path = directory / "file"
    path.write_bytes(content)
    manifest = io.BytesIO()
    found = inspect(path, declared, Limits(**limits), Outputs(manifest, io.BytesIO()))
    return found, manifest.getvalue()


@pytest.mark.parametrize("declared", ALL)
def test_each_format_passes_as_itself(tmp_path: Path, declared: str) -> None:
    inspection, manifest = looked_into(tmp_path, GOOD[declared], declared)
    assert inspection.file_format == declared
    assert inspection.listed == (declared in ARCHIVES)
    NEW_FACTS.validate_python(json.loads(json.dumps(inspection.facts)))
    if inspection.listed:
        assert len(Manifest(manifest).files) == 1
    else:
        assert not manifest


@pytest.mark.parametrize("declared", ALL)
@pytest.mark.parametrize("actual", ALL)
def test_no_format_passes_as_another(
    tmp_path: Path, declared: str, actual: str
) -> None:
    if declared == actual or (declared, actual) == ("zip", "pt"):  # a .pt is a zip
        return
    with pytest.raises(FormatError, match=f"it is {WHAT[actual]}") as caught:
        looked_into(tmp_path, GOOD[actual], declared)
    assert caught.value.values == {"declared": declared, "detected": WHAT[actual]}


@pytest.mark.parametrize("declared", ALL)
def test_truncated_file_is_refused(tmp_path: Path, declared: str) -> None:
    content = GOOD[declared]
    if declared == "tflite":
        content = content[:48]  # what follows is nobody's
    for size in {0, 1, 7, len(content) // 2, len(content) - 1}:
        with pytest.raises(FormatError):
            looked_into(tmp_path, content[:size], declared)


@pytest.mark.parametrize(
    ("declared", "content", "said"),
    [
        ("pt", b"", "it is empty"),
        ("pt", b"\x80\x04cos\nsystem\n", "a Python pickle"),
        ("pt", GOOD["pt"][:-1], "is a PyTorch file, but not a good one"),
        ("zip", GOOD["zip"][:-1], "is a ZIP archive, but not a good one"),
        ("pt", GOOD["zip"], "a ZIP archive"),
        ("pt", archive_files.zip_file("metadata.json"), "a Keras 3 file"),
        ("zip", b"PK\5\6", "an empty ZIP archive, but not a good one"),
        ("onnx", b"\x89PNG\r\n\x1a\n", "a PNG image"),
        ("onnx", b"<!DOCTYPE html><html>", "an HTML page"),
        ("onnx", b"<a/>", "XML or the like"),
        ("onnx", b"{}", "JSON or the like"),
        ("onnx", b"Not found\n", "text"),
        ("onnx", "é".encode(), "it is text"),
        ("onnx", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("onnx", b"\x00\x01\x02\x03", "of a kind not known"),
        ("onnx", b"a\xff\xfe\xfd\xfc\xfb\xfa", "of a kind not known"),
        ("onnx", b"\xff", "of a kind not known"),
        ("onnx", b"\x20\0\0\0\0\0\0\0" + b'{"a": 1}' + bytes(99), "a safetensors file"),
        ("tflite", struct.pack("<I4s", 9999, b"TFL3") + bytes(99), "not a good one"),
        ("h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file, but not a good one"),
        ("pt", b"GGUF\3\0\0\0", "a GGUF model"),
        ("zip", b"RIFF\x24\0\0\0WEBPVP8 ", "a WebP image"),
        (
            "tar.gz",
            gzip.compress(b"x" * 999, mtime=0),
            "is gzip-compressed, but not a good one",
        ),
        ("json", b"\xff\xfe", "declared as .json, but it is"),
        ("json", b"[1", "is JSON or the like, but not a good one"),
        ("xml", b"<html>", "an HTML page"),
        ("xml", b"text", "it is text"),
        ("exe", b"MZ", "not a known format"),
    ],
)
def test_what_a_wrong_file_is_gets_said(
    tmp_path: Path, declared: str, content: bytes, said: str
) -> None:
    with pytest.raises(FormatError, match=said):
        looked_into(tmp_path, content, declared)


UNSAFE = pt_files.torch_zip(
    pt_files.listed(*(pt_files.called(f"os.{name}") for name in "abcdefg"))
)


def test_unsafe_model_is_refused_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(UnsafeContentError, match=r"os\.a, .* and 2 more") as caught:
        looked_into(tmp_path, UNSAFE, "pt")
    assert len(caught.value.values["findings"]) == 7


def test_unsafe_model_is_marked_where_it_is_allowed(tmp_path: Path) -> None:
    inspection, _ = looked_into(tmp_path, UNSAFE, "pt", allow_unsafe=True)
    assert inspection.facts["safety"]["verdict"] == "unsafe"


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good file with a few bytes changed, then cut or made longer."""
    content = bytearray(draw(st.sampled_from([GOOD[each] for each in ALL])))
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.sampled_from([len(content), draw(st.integers(0, len(content)))]))
    return bytes(content[:cut]) + draw(st.binary(max_size=30))


@given(
    # HDF5's library may crash on damaged files: they are for a process of its own.
    st.sampled_from([each for each in ALL if each != "h5"]),
    st.binary(max_size=600) | damaged(),
)
def test_any_bytes_are_inspected_or_refused(
    tmp_path_factory: pytest.TempPathFactory, declared: str, content: bytes
) -> None:
    directory = tmp_path_factory.getbasetemp()
    try:
        inspection, _ = looked_into(directory, content, declared)
    except (FormatError, UnsafeContentError, LimitExceededError):
        return
    assert inspection.file_format == declared
    NEW_FACTS.validate_python(json.loads(json.dumps(inspection.facts, allow_nan=False)))


@pytest.mark.parametrize(
    ("filename", "found"),
    [
        ("m.onnx", "onnx"),
        ("M.ONNX", "onnx"),
        ("m.v2.tflite", "tflite"),
        ("m.pth", "pt"),
        ("m.hdf5", "h5"),
        ("d.tar.gz", "tar.gz"),
        ("d.tgz", "tar.gz"),
        ("d.v1.tar.gz", "tar.gz"),
        ("m", None),
        ("m.exe", None),
        ("onnx", None),
        ("m.gz", None),
        ("", None),
    ],
)
def test_extension_names_the_format(filename: str, found: str | None) -> None:
    assert format_of_filename(filename) == found


@pytest.mark.integration
@pytest.mark.parametrize("kind", sorted(MODELS))
def test_real_models_pass_and_their_truncations_do_not(
    tmp_path: Path, kind: str
) -> None:
    path = real(kind)
    content = path.read_bytes()
    declared = format_of_filename(path.name)
    assert declared is not None
    inspection, _ = looked_into(tmp_path, content, declared)
    NEW_FACTS.validate_python(inspection.facts)
    places = {0, 1, 7, len(content) // 2, len(content) - 1}
    places |= {random.Random(kind).randrange(len(content)) for _ in range(10)}
    for size in places:
        with pytest.raises(FormatError):
            looked_into(tmp_path, content[:size], declared)
    with pytest.raises(FormatError):
        looked_into(tmp_path, random.Random(1).randbytes(10_000), declared)
