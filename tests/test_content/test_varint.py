from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision_o3.content import varint


@pytest.mark.parametrize(
    ("number", "encoded"),
    [
        (0, b"\x00"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (300, b"\xac\x02"),
        (2**63 - 1, b"\xff" * 8 + b"\x7f"),
    ],
)
def test_known_numbers(number: int, encoded: bytes) -> None:
    assert varint.encode(number) == encoded
    assert varint.decode(encoded, 0) == (number, len(encoded))


@given(st.integers(0, 2**63 - 1), st.binary(max_size=4), st.binary(max_size=4))
def test_numbers_round_trip_in_the_midst_of_bytes(
    number: int, before: bytes, after: bytes
) -> None:
    encoded = varint.encode(number)
    raw = before + encoded + after
    assert varint.decode(raw, len(before)) == (number, len(before) + len(encoded))


@pytest.mark.parametrize(
    "encoded", [b"", b"\x80", b"\x80\x00", b"\x81\x80\x00", b"\xff" * 9 + b"\x01"]
)
def test_refuses_cut_long_and_large_encodings(encoded: bytes) -> None:
    with pytest.raises(ValueError, match="varint"):
        varint.decode(encoded, 0)


@given(st.binary(max_size=12))
def test_any_bytes_give_the_one_encoding_or_an_error(raw: bytes) -> None:
    try:
        number, end = varint.decode(raw, 0)
    except ValueError:
        return
    assert varint.encode(number) == raw[:end]
