from __future__ import annotations

import base64
import copy
import hashlib
import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.strategies.content import cids
from vision_o3.content.cid import CID, DAG_PB, RAW
from vision_o3.errors import InvalidCIDError

EMPTY = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
"""The CID of the empty file, as every IPFS tool prints it."""
DIGEST = hashlib.sha256(b"").digest()


def text_of(raw: bytes) -> str:
    return "b" + base64.b32encode(raw).decode().rstrip("=").lower()


def test_the_empty_block_has_its_known_name() -> None:
    cid = CID.of_block(RAW, b"")
    assert str(cid) == EMPTY
    assert cid == CID.parse(EMPTY)
    assert cid.is_raw
    assert not CID.of_block(DAG_PB, b"").is_raw
    assert repr(cid) == f"CID.parse('{EMPTY}')"


@given(cids)
def test_text_and_binary_forms_round_trip(cid: CID) -> None:
    assert CID.parse(str(cid)) == cid
    assert CID.from_bytes(bytes(cid)) == cid
    assert pickle.loads(pickle.dumps(cid)) == cid  # noqa: S301 - our own bytes
    assert copy.deepcopy(cid) == cid
    assert len({cid, CID.parse(str(cid))}) == 1


def test_cids_differ_by_codec_and_digest_and_from_their_text() -> None:
    raw = CID(RAW, DIGEST)
    others = [CID(DAG_PB, DIGEST), CID(RAW, bytes(32)), EMPTY]
    assert raw not in others


def test_a_cid_cannot_be_changed() -> None:
    cid = CID.parse(EMPTY)
    with pytest.raises(AttributeError):
        cid.codec = DAG_PB  # type: ignore[misc] # what is tested
    with pytest.raises((AttributeError, TypeError)):
        cid.note = ""  # type: ignore[attr-defined] # what is tested


@pytest.mark.parametrize(
    ("codec", "digest"), [(0x71, DIGEST), (RAW, b""), (RAW, DIGEST + b"\x00")]
)
def test_no_cid_is_made_of_other_codecs_and_lengths(codec: int, digest: bytes) -> None:
    with pytest.raises(InvalidCIDError, match="Accepted is CIDv1"):
        CID(codec, digest)


SHA512 = b"\x01\x55\x13\x40" + bytes(64)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "does not start with 'b'"),
        ("QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH", "CIDv0.*version 1"),
        ("zdj7WbTaiJT1fgatdet9Ei9iDB5hdCxkbVyhyh8YTUnXMiwYi", "start with 'b'"),
        (EMPTY.upper(), "upper-case"),
        ("b" + EMPTY[1:].upper(), "upper-case"),
        (EMPTY[1:], "start with 'b'|digest"),
        (EMPTY + "\n", "not base32"),
        (" " + EMPTY, "start with 'b'"),
        (EMPTY + "=", "not base32"),
        ("bafkrei0", "not base32"),
        ("bafkre\u0131hd", "not base32"),
        ("b" * 129, "129 characters"),
        ("b" + "a" * 10**6, "1000001 characters"),
        ("ba", "no base32 text has 2 characters"),
        ("b", "not base32"),
        (EMPTY[:-1], "no base32 text|digest has|unused bits"),
        (EMPTY + "a", "no base32 text|digest has"),
        (EMPTY[:-1] + "v", "unused bits"),
        (text_of(b"\x02\x55\x12\x20" + DIGEST), "version is 0x2"),
        (text_of(b"\x12\x20" + DIGEST), "version is 0x12"),
        (text_of(b"\x01\x71\x12\x20" + DIGEST), "codec is 0x71, not 0x55 or 0x70"),
        (text_of(SHA512), "hash function is 0x13, not 0x12"),
        (text_of(b"\x01\x55\x12\x1f" + DIGEST[:31]), "digest length is 0x1f"),
        (text_of(b"\x01\x55\x12\x20" + DIGEST[:31]), "31 bytes, not 32"),
        (text_of(b"\x01\x55\x12\x20" + DIGEST + b"\x00"), "33 bytes, not 32"),
        (text_of(b"\x81\x00\x55\x12\x20" + DIGEST), "version, a varint is longer"),
        (text_of(b"\x01\xd5\x00\x12\x20" + DIGEST), "codec, a varint is longer"),
        (text_of(b"\x01\x55"), "hash function, a varint is cut short"),
    ],
)
def test_refuses_other_texts_and_says_why(text: str, fault: str) -> None:
    with pytest.raises(InvalidCIDError, match=fault) as caught:
        CID.parse(text)
    assert "Accepted is CIDv1" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_refuses_other_bytes_and_says_why() -> None:
    with pytest.raises(InvalidCIDError, match="hash function is 0x13"):
        CID.from_bytes(SHA512)


@given(st.text() | st.from_regex(r"b[a-z2-7]{58}", fullmatch=True))
@example("\x00")
def test_any_text_is_a_cid_or_an_error(text: str) -> None:
    try:
        cid = CID.parse(text)
    except InvalidCIDError:
        return
    assert str(cid) == text


@given(
    st.binary(max_size=80)
    | st.binary(min_size=32, max_size=32).map(b"\x01\x55\x12\x20".__add__)
)
def test_any_bytes_are_a_cid_or_an_error(raw: bytes) -> None:
    try:
        cid = CID.from_bytes(raw)
    except InvalidCIDError:
        return
    assert bytes(cid) == raw


@given(cids, st.data())
def test_a_changed_character_never_names_the_same(
    cid: CID, data: st.DataObject
) -> None:
    text = str(cid)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(exclude_characters=text[at]))
    try:
        changed = CID.parse(text[:at] + other + text[at + 1 :])
    except InvalidCIDError:
        return
    assert changed != cid
