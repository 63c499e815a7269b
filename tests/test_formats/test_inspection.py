from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scripts.real_models import MODELS, real_model
from tests.fakes.model_files import tflite

from vision_o3.errors import FormatError
from vision_o3.formats.inspection import (
    DATASET_FORMATS,
    MODEL_FORMATS,
    format_of_filename,
    inspect,
)

ALL = MODEL_FORMATS + DATASET_FORMATS


def field(number: int, content: bytes | int) -> bytes:
    """One protobuf field of at most 127 bytes."""
    if isinstance(content, int):
        return bytes([number << 3, content])
    return bytes([number << 3 | 2, len(content)]) + content


ONNX = (
    field(1, 8)
    + field(2, b"pytorch")
    + field(3, b"2.1")
    + field(5, 3)
    + field(7, b"a graph")
    + field(8, field(2, 17))
    + field(8, field(1, b"com.acme") + field(2, 1))
)


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return file.getvalue()


def tar_gz() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    return file.getvalue()


HDF5 = b"\x89HDF\r\n\x1a\n"
LEGACY_PT = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e") + b"."
GOOD = {
    "pt": zipped("archive/data.pkl", "archive/data/0"),
    "onnx": ONNX,
    "tflite": tflite(1),
    "h5": HDF5 + b"\x02" + bytes(64),
    "zip": zipped("images/1.jpg"),
    "tar.gz": tar_gz(),
    "json": b' {"images": []}',
    "xml": b'<?xml version="1.0"?><annotation/>',
}


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "file"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("declared", ALL)
def test_each_format_passes_as_itself(tmp_path: Path, declared: str) -> None:
    inspection = inspect(write(tmp_path, GOOD[declared]), declared)
    assert inspection.file_format == declared


@pytest.mark.parametrize("declared", ALL)
@pytest.mark.parametrize("actual", ALL)
def test_no_format_passes_as_another(
    tmp_path: Path, declared: str, actual: str
) -> None:
    if declared == actual or (declared, actual) == ("zip", "pt"):  # a .pt is a zip
        return
    with pytest.raises(FormatError) as caught:
        inspect(write(tmp_path, GOOD[actual]), declared)
    assert caught.value.values["declared"] == declared


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (
            ONNX,
            {
                "ir_version": 8,
                "producer_name": "pytorch",
                "producer_version": "2.1",
                "model_version": 3,
                "opset_import": {"ai.onnx": 17, "com.acme": 1},
            },
        ),
        (field(1, 3) + field(7, b""), {"ir_version": 3, "opset_import": {}}),
    ],
)
def test_onnx_header_tells_facts(
    tmp_path: Path, content: bytes, facts: dict[str, Any]
) -> None:
    assert inspect(write(tmp_path, content), "onnx").facts == facts


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (field(7, b"graph"), "IR version and a graph"),
        (field(1, 8), "IR version and a graph"),
        (ONNX[:-1], "cut short"),
        (ONNX + b"\x08", "cut short"),
        (ONNX + b"\x09\x00", "cut short"),
        (ONNX + field(15, b"x"), "no field 15"),
        (ONNX + b"\x0b", "not a protocol buffer"),
        (b"\x80" * 11, "not a protocol buffer"),
        (ONNX + field(8, field(1, b"x")), "no version"),
        (field(2, b"\xff\xfe") + ONNX, "utf-8"),
        (b"\x12\xe9\x07" + b"x" * 1001 + ONNX, "too long"),
        (field(5, 1) * 10_001 + ONNX, "too many fields"),
    ],
)
def test_malformed_onnx_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        inspect(write(tmp_path, content), "onnx")


def test_fixed_width_fields_are_passed_over(tmp_path: Path) -> None:
    content = ONNX + b"\x2d\x00\x00\x00\x00" + b"\x29" + bytes(8)
    assert inspect(write(tmp_path, content), "onnx").facts["ir_version"] == 8


@pytest.mark.parametrize(
    ("declared", "content", "facts"),
    [
        ("pt", LEGACY_PT, {"container": "legacy"}),
        ("pt", zipped("m/code/x.py"), {"container": "zip"}),
        ("h5", bytes(512) + HDF5 + b"\0" + bytes(9), {"superblock_version": 0}),
        ("zip", zipped(), {}),
        ("json", b"\xef\xbb\xbf[1]", {}),
        ("json", b"[" + "é".encode() * 3000, {}),
        ("xml", b"<annotation>\n", {}),
    ],
)  # fmt: skip
def test_other_good_forms_pass(
    tmp_path: Path, declared: str, content: bytes, facts: dict[str, Any]
) -> None:
    assert inspect(write(tmp_path, content), declared).facts == facts


@pytest.mark.parametrize(
    ("declared", "content", "said"),
    [
        ("pt", b"", "it is empty"),
        ("pt", zipped("other/file.txt"), "first member"),
        ("pt", b"\x80\x04cos\nsystem\n", "a Python pickle"),
        ("onnx", b"\x89PNG\r\n\x1a\n", "a PNG image"),
        ("onnx", b"<!DOCTYPE html><html>", "an HTML page"),
        ("onnx", b"<a/>", "XML or the like"),
        ("onnx", b"{}", "JSON or the like"),
        ("onnx", b"Not found\n", "text"),
        ("onnx", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("onnx", b"\x00\x01\x02\x03", "of a kind not known"),
        ("onnx", b"a\xff\xfe\xfd\xfc\xfb\xfa", "of a kind not known"),
        ("tflite", ONNX, "an ONNX model"),
        ("tflite", struct.pack("<I4s", 9999, b"TFL3") + bytes(99), "outside the file"),
        ("tflite", b"\x08\0\0\0TFL3", "outside the file"),
        ("h5", bytes(5000), "signature"),
        ("zip", GOOD["zip"][:-22], "cut short"),
        ("json", b"\xff\xfe", "not UTF-8"),
        ("json", b"\xff" * 5000, "not UTF-8"),
        ("json", b'"text"', "begins with"),
        ("xml", b"<!doctype html>", "an HTML page"),
        ("xml", b"<html>", "it is HTML"),
        ("xml", b"text", "begins with"),
        ("tar.gz", b"\x1f\x8b\x09", "gzip"),
        ("exe", b"MZ", "not a known format"),
    ],
)  # fmt: skip
def test_what_a_wrong_file_is_gets_said(
    tmp_path: Path, declared: str, content: bytes, said: str
) -> None:
    with pytest.raises(FormatError, match=said):
        inspect(write(tmp_path, content), declared)


@given(st.sampled_from(ALL), st.binary(max_size=600))
@example("onnx", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
def test_any_bytes_are_inspected_or_refused(declared: str, content: bytes) -> None:
    import tempfile  # noqa: PLC0415 - function-scoped fixtures do not mix with given

    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            inspection = inspect(Path(file.name), declared)
        except FormatError:
            return
        assert inspection.file_format == declared


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


def real(kind: str) -> Path:
    try:
        return real_model(kind)
    except OSError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"A package with a real model cannot be had: {error}")


@pytest.mark.integration
@pytest.mark.parametrize("kind", sorted(MODELS))
def test_real_models_pass_and_their_truncations_do_not(
    tmp_path: Path, kind: str
) -> None:
    path = real(kind)
    declared = format_of_filename(path.name)
    assert declared is not None
    inspection = inspect(path, declared)
    if declared == "onnx":
        assert inspection.facts["ir_version"] >= 3
        assert inspection.facts["opset_import"]["ai.onnx"] >= 7
        content = path.read_bytes()
        for size in (1, 100, len(content) // 2, len(content) - 1):
            with pytest.raises(FormatError):
                inspect(write(tmp_path, content[:size]), declared)
    with pytest.raises(FormatError):
        inspect(write(tmp_path, gzip.compress(path.read_bytes())), declared)
