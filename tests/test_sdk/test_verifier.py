from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_sdk.conftest import MIB, content_of
from vision_o3.errors import InvalidCIDError
from vision_o3.sdk.verifier import CIDVerifier


def test_empty_file_has_its_known_cid(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    empty = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
    assert CIDVerifier.compute_cid(path) == empty
    assert CIDVerifier.verify_file(str(path), empty)


@pytest.mark.parametrize("size", [1, MIB, MIB + 1])
def test_tells_a_file_from_one_with_a_changed_bit(tmp_path: Path, size: int) -> None:
    path = tmp_path / "m.onnx"
    content = bytearray(content_of(size))
    path.write_bytes(content)
    cid = CIDVerifier.compute_cid(path)
    assert CIDVerifier.verify_file(path, cid)
    content[-1] ^= 128
    path.write_bytes(content)
    assert not CIDVerifier.verify_file(path, cid)


def test_refuses_what_is_no_cid(tmp_path: Path) -> None:
    with pytest.raises(InvalidCIDError):
        CIDVerifier.verify_file(tmp_path / "x", "Qm")


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        CIDVerifier.compute_cid(tmp_path / "x")
