from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision_o3.content.cid import CID, DAG_PB, RAW
from vision_o3.errors import MalformedBlockError
from vision_o3.registry import records
from vision_o3.registry.records import Record, decode_record, encode_record
from vision_o3.registry.values import Version
from vision_o3.storage.keys import EXTENSIONS, version_keys

MIB = 1 << 20
LEAF = CID(RAW, bytes(32))
ROOT = CID(DAG_PB, bytes(32))
BORN = datetime(2026, 11, 24, 14, 0, 0, 123, tzinfo=UTC)
KEY = "datasets/d/v3.record.json"

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,127}", fullmatch=True).filter(
    lambda name: name != "cid"
)
numbers = st.integers(1, 2**31 - 1)
texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=40)
labels = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_ .+:/-]{0,63}", fullmatch=True)
owners = st.text(
    st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=128
)
times = st.datetimes(timezones=st.just(UTC))
digests = st.binary(min_size=32, max_size=32)
# Facts of a form that is not known any more: any JSON.
facts = st.dictionaries(
    texts.filter(lambda text: text != "kind"),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
        lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
        max_leaves=6,
    ),
    max_size=4,
).filter(lambda made: "Infinity" not in json.dumps(made))


@st.composite
def some_records(draw: st.DrawFn) -> Record:
    collection = draw(st.sampled_from(sorted(EXTENSIONS)))
    extension = draw(st.sampled_from(sorted(EXTENSIONS[collection])))
    name, number = draw(names), draw(numbers)
    own = version_keys(collection, name, number, extension)
    elsewhere = draw(st.sampled_from(sorted(EXTENSIONS)))
    other = version_keys(
        elsewhere,
        draw(names),
        draw(numbers),
        draw(st.sampled_from(sorted(EXTENSIONS[elsewhere]))),
    )
    keys = draw(st.sampled_from([own, own if other.record == own.record else other]))
    size = draw(st.integers(0, 2**63 - 1))
    codec = RAW if size <= MIB else DAG_PB
    is_archive = collection == "datasets" and draw(st.booleans())
    version = Version(
        collection=collection,
        id=str(draw(st.uuids())),
        name=name,
        version=number,
        cid=CID(codec, draw(digests)),
        file_format=extension,
        file_size=size,
        description=draw(texts),
        tags=tuple(sorted(draw(st.sets(labels, max_size=5)))),
        owner_id=draw(owners),
        publisher=draw(owners),
        created_at=draw(times),
        facts=draw(facts),
        object_key=keys.artifact,
        sidecar_key=None if size <= MIB else keys.sidecar,
        framework=draw(st.just("") | labels) if collection == "models" else None,
        model_type=draw(st.just("") | labels) if collection == "models" else None,
        manifest_cid=CID(RAW, draw(digests)) if is_archive else None,
        manifest_key=own.manifest if is_archive else None,
        index_cid=CID(DAG_PB, draw(digests)) if is_archive else None,
        index_key=own.index if is_archive else None,
    )
    return Record(version, draw(st.uuids()), draw(times))


def encoded(record: Record) -> tuple[bytes, str]:
    version = record.version
    key = version_keys(
        version.collection, version.name, version.version, version.file_format
    ).record
    content = encode_record(
        version, line_id=str(record.line_id), line_created_at=record.line_created_at
    )
    return content, key


@given(some_records())
def test_what_is_written_is_read(record: Record) -> None:
    content, key = encoded(record)
    assert decode_record(content, key) == record
    assert len(content) <= records.MAX_RECORD_SIZE


@given(some_records(), st.data())
def test_a_record_under_any_other_key_is_refused(
    record: Record, data: st.DataObject
) -> None:
    content, key = encoded(record)
    other = data.draw(st.text() | names.map("models/{}/v1.record.json".format))
    if other != key:
        with pytest.raises(MalformedBlockError):
            decode_record(content, other)


@settings(max_examples=300)
@given(some_records(), st.data())
def test_damage_gives_a_record_or_our_error(
    record: Record, data: st.DataObject
) -> None:
    content, key = encoded(record)
    at = data.draw(st.integers(0, len(content) - 1))
    kept = data.draw(st.sampled_from([at, at + 1]))
    damaged = content[:at] + data.draw(st.binary(max_size=3)) + content[kept:]
    try:
        found = decode_record(damaged, key)
    except MalformedBlockError:
        return
    assert encoded(found)[1] == key


@given(st.binary(max_size=200))
def test_any_bytes_give_our_error(content: bytes) -> None:
    with pytest.raises(MalformedBlockError, match="Restore this object"):
        decode_record(content, KEY)


def document(**changes: Any) -> dict[str, Any]:
    """A valid record of a dataset, as JSON, with fields changed."""
    keys = version_keys("datasets", "d", 3, "zip")
    version = Version(
        collection="datasets",
        id=str(uuid4()),
        name="d",
        version=3,
        cid=ROOT,
        file_format="zip",
        file_size=2 * MIB,
        description="Nürnberg\n",
        tags=("a", "b"),
        owner_id="ann",
        publisher="bob",
        created_at=BORN,
        facts={"kind": "json", "root": "array", "items": 1},
        object_key=keys.artifact,
        sidecar_key=keys.sidecar,
        manifest_cid=LEAF,
        manifest_key=keys.manifest,
        index_cid=LEAF,
        index_key=keys.index,
    )
    content = encode_record(version, line_id=str(uuid4()), line_created_at=BORN)
    made: dict[str, Any] = json.loads(content)
    made["line"] |= changes.pop("line", {})
    return made | changes


def decode(made: object, key: str = KEY) -> Record:
    return decode_record(json.dumps(made).encode(), key)


def test_what_a_newer_version_adds_is_passed_over() -> None:
    made = document(signature={"by": "ann"}, line={"homepage": "x"})
    assert decode(made).version.publisher == "bob"


def test_a_record_from_before_listings_is_read() -> None:
    made = document()
    for field in ("manifest_key", "index_cid", "index_key"):
        del made[field]
    made["manifest_cid"] = None
    assert decode(made).version.index_key is None


def test_content_may_lie_where_it_was_stored_first() -> None:
    keys = version_keys("models", "m", 9, "pt")
    made = document(object_key=keys.artifact, sidecar_key=keys.sidecar)
    assert decode(made).version.object_key == "models/m/v9.pt"


def test_another_format_is_said_clearly() -> None:
    with pytest.raises(MalformedBlockError, match=r"format 2, and .* reads f"):
        decode(document(record_format=2))


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda made: made.pop(name)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "no format": ({"record_format": None}, "record_format is not a whole number"),
    "a format that is no number": ({"record_format": True}, "record_format is not"),
    "another collection": ({"collection": "users"}, "not one of ours"),
    "the other collection": ({"collection": "models"}, "framework is not a text"),
    "a line that is no object": ({"line": []}, "line is not an object"),
    "a name": ({"line": {"name": "../x"}}, "characters that are not allowed"),
    "another name": ({"line": {"name": "e"}}, "describes datasets/e/v3"),
    "a line's id": ({"line": {"id": "1"}}, "line.id is not a UUID"),
    "an id in another form": ({"id": uuid4().hex}, "id is not a UUID"),
    "an owner": ({"line": {"owner_id": ""}}, "line.owner_id is not of 1 to"),
    "a long publisher": ({"publisher": "x" * 256}, "publisher is not of 1 to"),
    "another number": ({"version": 4}, "describes datasets/d/v4"),
    "number 0": ({"version": 0}, "whole number from 1"),
    "a number that is too large": ({"version": 2**31}, "not a version number"),
    "a number as text": ({"version": "3"}, "version is not a whole number"),
    "a CID": ({"cid": "Qm"}, "CIDv0"),
    "a CID of a small file": ({"cid": str(LEAF)}, "no file of its size"),
    "a format": ({"file_format": "exe"}, "not an extension"),
    "a very long format": ({"file_format": "x" * 99}, "file_format is not of 1 to"),
    "a negative size": ({"file_size": -1}, "file_size is not a whole number"),
    "a fraction": ({"file_size": 2.0 * MIB}, "file_size is not a whole number"),
    "a huge size": ({"file_size": 2**63}, "file_size is not a whole number"),
    "no description": ({"description": None}, "description is not a text"),
    "a long description": ({"description": "x" * 10_001}, "at most 10000"),
    "NUL": ({"description": "\0"}, "a text with a character"),
    "a lone surrogate": ({"publisher": "\ud800"}, "a text with a character"),
    "tags as text": ({"tags": "a"}, "tags is not a list"),
    "a tag": ({"tags": ["?"]}, "not an acceptable tag"),
    "a tag twice": ({"tags": ["a", "a"]}, "repeated"),
    "unsorted tags": ({"tags": ["b", "a"]}, "not sorted"),
    "facts as list": ({"facts": []}, "facts is not an object"),
    "facts of no known form": (
        {"facts": {"kind": "json", "secret": "x"}},
        "not of a known form",
    ),
    "NUL in facts": (
        {"facts": {"a": ["x", {"b\0": 1}]}},
        "a text with a character",
    ),
    "a time": ({"created_at": "yesterday"}, "created_at is not a time in UTC"),
    "a time without zone": ({"created_at": "2026-11-24T14:00:00"}, "not a time in"),
    "a time elsewhere": ({"created_at": "2026-11-24T14:00:00+01:00"}, "not a time"),
    "a date": ({"line": {"created_at": "2026-11-24"}}, "line.created_at is not"),
    "a foreign object": ({"object_key": "datasets/d/v3.exe"}, "no version has"),
    "a way out": ({"object_key": "../../etc/passwd"}, "no version has"),
    "no object": ({"object_key": None}, "object_key is not a text"),
    "a record as object": ({"object_key": KEY}, "not that of an artifact"),
    "another's record as object": (
        {"object_key": "datasets/e/v3.record.json"},
        "not that of an artifact",
    ),
    "another extension": ({"object_key": "datasets/d/v3.json"}, "not that of an arti"),
    "no sidecar": ({"sidecar_key": None}, "sidecar_key does not fit"),
    "another's sidecar": ({"sidecar_key": "datasets/d/v2.dag.car"}, "does not fit"),
    "half a listing": ({"index_cid": None}, "not wholly"),
    "another manifest": ({"manifest_key": "datasets/d/v3.zip"}, "that of a manifest"),
    "another index": ({"index_key": "datasets/d/v3.zip"}, "that of a member index"),
}


@pytest.mark.parametrize(("changes", "said"), CHANGES.values(), ids=CHANGES)
def test_wrong_fields_are_told(changes: dict[str, Any], said: str) -> None:
    made = document(**changes) if isinstance(changes.get("line"), dict) else document()
    if not isinstance(changes.get("line"), dict):
        made |= changes
    with pytest.raises(MalformedBlockError, match=said) as caught:
        decode(made)
    assert caught.value.values == {"key": KEY}
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("field", sorted(set(document())))
def test_absent_fields_are_told(field: str) -> None:
    made = document()
    del made[field]
    if field in {"framework", "model_type"}:
        assert decode(made).version.framework is None
        return
    with pytest.raises(MalformedBlockError):
        decode(made)


CONTENTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not JSON"),
    "a list": (b"[]", "not a JSON object"),
    "Latin-1": (b'{"a": "\xe4"}', "UTF-8"),
    "a BOM": (b"\xef\xbb\xbf{}", "not JSON"),
    "NaN": (b'{"a": NaN}', "not finite"),
    "infinity by size": (b'{"a": 1e999}', "not finite"),
    "a name twice": (b'{"a": 1, "a": 1}', "occurs twice"),
    "many digits": (b'{"a": ' + b"9" * 5000 + b"}", "cannot be used"),
    "depth": (b"[" * 200_000 + b"]" * 200_000, "nested too deeply"),
    "size": (b" " * (records.MAX_RECORD_SIZE + 1), "more than 8388608 bytes"),
}


@pytest.mark.parametrize(("content", "said"), CONTENTS.values(), ids=CONTENTS)
def test_wrong_contents_are_told(content: bytes, said: str) -> None:
    with pytest.raises(MalformedBlockError, match=said):
        decode_record(content, KEY)


def test_what_a_model_says_of_itself_is_checked() -> None:
    made = document(
        collection="models",
        framework="on\nnx",
        model_type="",
        file_format="pt",
        manifest_cid=None,
        manifest_key=None,
        index_cid=None,
        index_key=None,
        facts={},
        object_key="models/d/v3.pt",
        sidecar_key="models/d/v3.dag.car",
    )
    key = "models/d/v3.record.json"
    with pytest.raises(MalformedBlockError, match="not an acceptable framework"):
        decode(made, key)
    record = decode(made | {"framework": ""}, key)
    assert (record.version.framework, record.version.model_type) == ("", "")
    assert record.line_created_at - BORN == timedelta(0)
    assert isinstance(record.line_id, UUID)
    with pytest.raises(MalformedBlockError, match="not wholly"):
        decode(made | {"framework": "", "manifest_cid": str(LEAF)}, key)
