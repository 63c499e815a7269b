from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
import tempfile
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
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    return gzip.compress(file.getvalue())


HDF5 = b"\x89HDF\r\n\x1a\n"


def h5(version: int = 0, *, base: int = 0, extra: int = 0, size: int = 200) -> bytes:
    """A superblock of ``size`` bytes with all, that states ``extra`` more."""
    told = struct.pack("<QQQ", base, 2**64 - 1, base + size + extra)
    if version < 2:
        start = bytes([version, 0, 0, 0, 0, 8, 8, 0]) + bytes(8 if version == 0 else 12)
    else:
        start = bytes([version, 8, 8, 0])
    return (HDF5 + start + told).ljust(size, b"\0")


def zip64(content: bytes) -> bytes:
    """The same ZIP archive, ended as torch.save and archives over 4 GiB are."""
    *_, entries, length, start, _ = struct.unpack("<4s4H2IH", content[-22:])
    end = len(content) - 22
    return (
        content[:end]
        + struct.pack(
            "<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, length, start
        )
        + struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
        + struct.pack(
            "<4s4H2IH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0
        )
    )


def frame(content: bytes) -> bytes:
    """The beginning of an old PyTorch file, as pickled by protocol 4."""
    return b"\x80\x04\x95" + struct.pack("<Q", 13) + content[2:]


LEGACY_PT = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e") + b"."
GOOD = {
    "pt": zipped("archive/data.pkl", "archive/data/0"),
    "onnx": ONNX,
    "tflite": tflite(1),
    "h5": h5(),
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
        (field(1, 2) + field(7, b"x"), {"ir_version": 2, "opset_import": {}}),
        (
            field(1, 2) + b"\x28" + b"\xff" * 9 + b"\x01" + field(7, b"x"),
            {"ir_version": 2, "model_version": -1, "opset_import": {}},
        ),
        (
            ONNX + field(4, b"a\0b"),
            {
                "ir_version": 8,
                "producer_name": "pytorch",
                "producer_version": "2.1",
                "domain": "ab",
                "model_version": 3,
                "opset_import": {"ai.onnx": 17, "com.acme": 1},
            },
        ),
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
        (ONNX + b"\x09" + bytes(8), "not a protocol buffer"),
        (ONNX + b"\x2d" + bytes(4), "not a protocol buffer"),
        (ONNX + field(15, b"x"), "no such field 15"),
        (ONNX + field(7, 1), "no such field 7"),
        (ONNX + field(1, b"x"), "no such field 1"),
        (field(1, 8) + field(7, b"") + field(8, field(2, 17)), "and a graph"),
        (field(1, 8) + field(7, b"x"), "names 0"),
        (b"\x08\xe9\x07" + ONNX[2:], "IR version"),
        (
            ONNX
            + b"".join(field(8, field(1, b"%d" % i) + field(2, 1)) for i in range(99)),
            "names 101",
        ),
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


@pytest.mark.parametrize(
    ("declared", "content", "facts"),
    [
        ("pt", GOOD["pt"], {"container": "zip", "torchscript": False}),
        ("pt", LEGACY_PT, {"container": "legacy"}),
        ("pt", frame(LEGACY_PT), {"container": "legacy"}),
        ("pt", zip64(GOOD["pt"]), {"container": "zip", "torchscript": False}),
        ("pt", zipped("m/extra/config.txt", "m/data.pkl", "m/code/m.py"),
         {"container": "zip", "torchscript": True}),
        ("pt", zipped("m/constants.pkl"), {"container": "zip", "torchscript": True}),
        *(("h5", h5(version), {"superblock_version": version}) for version in range(4)),
        ("h5", bytes(512) + h5(), {"superblock_version": 0}),
        ("h5", bytes(2048) + h5(2, base=2048), {"superblock_version": 2}),
        ("h5", h5() + b"more", {"superblock_version": 0}),
        ("zip", zipped(), {}),
        ("zip", zip64(GOOD["zip"]), {}),
        ("zip", GOOD["zip"][:-2] + b"\x09\0a comment", {}),
        ("tar.gz", gzip.compress(bytes(1024)), {}),
        ("tar.gz", b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 9000 + b"\0"
         + GOOD["tar.gz"][10:], {}),
        ("json", b"\xef\xbb\xbf[1]", {}),
        ("json", b"[" + "é".encode() * 3000, {}),
        ("xml", b"<annotation>\n", {}),
        ("xml", b"\xef\xbb\xbf\r\n<!-- by hand --><a/>", {}),
        ("xml", b"<!DOCTYPE annotation><annotation/>", {}),
        ("xml", '<?xml version="1.0" encoding="latin1"?><é/>'.encode("latin-1"), {}),
        ("xml", '<?xml version="1.0" encoding="UTF-16"?><é/>'.encode("utf-16"), {}),
        ("xml", "<é/>".encode(), {}),
    ],
)  # fmt: skip
def test_other_good_forms_pass(
    tmp_path: Path, declared: str, content: bytes, facts: dict[str, Any]
) -> None:
    assert inspect(write(tmp_path, content), declared).facts == facts


# The end record says that the zip64 one starts at the file's last byte.
ZIP_LYING_ON_ITS_END = (
    GOOD["zip"][:-22]
    + struct.pack("<4sIQI", b"PK\6\7", 0, len(GOOD["zip"]) + 19, 1)
    + GOOD["zip"][-22:]
)
# The last entry reaches beyond the directory.
ZIP_WITH_A_LONG_COMMENT = (
    GOOD["pt"][:-22].replace(
        GOOD["pt"][(_at := GOOD["pt"].rindex(b"PK\1\2")) : _at + 34],
        GOOD["pt"][_at : _at + 32] + b"\xff\xff",
    )
    + GOOD["pt"][-22:]
)


@pytest.mark.parametrize(
    ("declared", "content", "said"),
    [
        ("pt", b"", "it is empty"),
        ("pt", zipped("other/file.txt"), "a ZIP archive: it has no member data.pkl"),
        ("pt", zipped("data.pkl"), "no member data.pkl"),
        ("pt", GOOD["pt"][:-1], "cut short"),
        ("pt", LEGACY_PT[:-2], "a PyTorch file of the older form"),
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
        ("h5", h5(extra=1), "is an HDF5 file, but not a good one: it ends before"),
        ("h5", h5(2, base=512, extra=1), "ends before"),
        ("h5", bytes(512) + h5(extra=513), "is an HDF5 file, but not a good one"),
        ("h5", h5(4), "version 4 does not exist"),
        ("h5", HDF5 + bytes(100), "damaged"),
        ("h5", h5()[:13], "cut short"),
        ("h5", h5()[:40], "ends before"),
        ("zip", GOOD["zip"][:-22], "is a ZIP archive, but not a good one: its end"),
        ("zip", GOOD["zip"][:-1], "cut short"),
        ("zip", GOOD["zip"] + b"x", "end record is not at the end"),
        ("zip", GOOD["zip"].replace(b"PK\1\2", b"PK\1\3"), "directory is damaged"),
        ("zip", GOOD["zip"][:-6] + b"\xff\xff\0\0\0\0", "outside the file"),
        ("zip", zip64(GOOD["zip"]).replace(b"PK\6\6", b"PK\6\5"), "zip64 end record"),
        ("zip", zip64(GOOD["zip"])[:-34] + b"\xff" * 8 + zip64(GOOD["zip"])[-26:],
         "outside the file"),
        ("zip", ZIP_LYING_ON_ITS_END, "cut short"),
        ("pt", ZIP_WITH_A_LONG_COMMENT, "directory is damaged"),
        ("json", b"\xff\xfe", "not UTF-8"),
        ("json", b"\xff" * 5000, "not UTF-8"),
        ("json", b'"text"', "begins with"),
        ("json", b'{"a\0b"}', "not text"),
        ("json", b"[" + bytes(9), "not text"),
        ("onnx", b"\xff", "of a kind not known"),
        ("onnx", "é".encode(), "it is text"),
        ("onnx", b"\x20\0\0\0\0\0\0\0" + b'{"a": 1}' + bytes(99), "a safetensors file"),
        ("pt", b"GGUF\3\0\0\0", "a GGUF model"),
        ("zip", b"RIFF\x24\0\0\0WEBPVP8 ", "a WebP image"),
        ("xml", b"<!doctype html>", "an HTML page"),
        ("xml", b"<html>", "it is HTML"),
        ("xml", b"text", "begins with"),
        ("xml", b"<1/>", "begins with"),
        ("xml", b"\xff\xfe\0\0", "not text"),
        ("tar.gz", b"\x1f\x8b\x09", "gzip"),
        ("tar.gz", gzip.compress(b""), "not a tar archive"),
        ("tar.gz", gzip.compress(b"x" * 999), "is gzip-compressed: what it holds"),
        ("tar.gz", gzip.compress(b"7" * 999), "not a tar archive"),
        ("tar.gz", GOOD["tar.gz"][:30], "not a tar archive"),
        ("tar.gz", b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (1 << 19), "not a tar"),
        ("exe", b"MZ", "not a known format"),
    ],
)  # fmt: skip
def test_what_a_wrong_file_is_gets_said(
    tmp_path: Path, declared: str, content: bytes, said: str
) -> None:
    with pytest.raises(FormatError, match=said):
        inspect(write(tmp_path, content), declared)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good file with a few bytes changed, then cut or made longer."""
    content = bytearray(draw(st.sampled_from(sorted(GOOD.values()))))
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.integers(0, len(content)))
    return bytes(content[:cut]) + draw(st.binary(max_size=30))


@given(st.sampled_from(ALL), st.binary(max_size=600) | damaged())
@example("onnx", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
def test_any_bytes_are_inspected_or_refused(declared: str, content: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            inspection = inspect(Path(file.name), declared)
        except FormatError as error:
            refused = error
        else:
            assert inspection.file_format == declared
            json.dumps(inspection.facts, allow_nan=False)
            return
    assert refused.values["declared"] == declared
    assert isinstance(refused.values["detected"], str)


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
    sizes = [0, 1, 7, len(content) // 2, len(content) - 1]
    if declared == "tflite" or inspection.facts.get("container") == "legacy":
        sizes = sizes[:3]  # their headers do not tell how long they are
    for size in sizes:
        with pytest.raises(FormatError):
            inspect(write(tmp_path, content[:size]), declared)
    with pytest.raises(FormatError):
        inspect(write(tmp_path, gzip.compress(path.read_bytes())), declared)
