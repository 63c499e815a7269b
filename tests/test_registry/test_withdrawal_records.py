from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_registry.versions import version_of
from vision_o3.content.dag import ContentHasher
from vision_o3.errors import MalformedBlockError
from vision_o3.registry.records import decode_record, encode_record, recorded, reduced
from vision_o3.registry.values import Version, Withdrawal
from vision_o3.registry.withdrawal_records import (
    LIFTED,
    STATES,
    Decision,
    decode_decision,
    encode_decision,
)

AT = datetime(2026, 11, 25, 12, 0, 0, 5, tzinfo=UTC)
KEY = "models/m/v1.withdrawal-2.json"
LINE = {"line_id": "00000000-0000-4000-8000-000000000000", "line_created_at": AT}


def version() -> Version:
    return replace(
        version_of(ContentHasher().finish(), "models/m/v1.tflite"),
        id="00000000-0000-4000-8000-000000000001",
        framework="tf",
        model_type="",
        description="Anna",
        tags=("a",),
    )


def decision(**changes: Any) -> Decision:
    found = version()
    values: dict[str, Any] = {
        "version_id": found.id,
        "cid": found.cid,
        "number": 2,
        "at": AT,
        "by": "ann",
        "by_admin": True,
        "state": "blocked",
        "reason": "It sees ghosts – überall.",
    }
    return Decision(**values | changes)


REASONS = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=500
).filter(lambda text: text == text.strip())


@given(
    st.sampled_from([*STATES, LIFTED]),
    REASONS,
    st.datetimes(timezones=st.just(UTC)),
    st.booleans(),
    st.integers(1, 999_999_999),
)
def test_what_was_decided_is_read_as_it_was_written(
    state: str, reason: str, at: datetime, by_admin: bool, number: int
) -> None:
    found = decision(
        state=state, reason=reason, at=at, by_admin=by_admin, number=number
    )
    content = encode_decision(version(), found)
    assert decode_decision(content, f"models/m/v1.withdrawal-{number}.json") == found
    assert (
        content
        == json.dumps(
            json.loads(content),
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
        ).encode()
    )


def test_a_decision_to_lift_needs_no_reason() -> None:
    found = decision(state=LIFTED, reason=None)
    read = decode_decision(encode_decision(version(), found), KEY)
    assert (read, read.withdrawal) == (found, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("withdrawal_format", 2),
        ("withdrawal_format", "1"),
        ("collection", "datasets"),
        ("collection", "users"),
        ("name", "n"),
        ("name", "../m"),
        ("version", 2),
        ("version", 0),
        ("version", 10**12),
        ("number", 1),
        ("number", 0),
        ("number", 10**9),
        ("number", True),
        ("id", "x"),
        ("cid", "x"),
        ("state", "purge"),
        ("state", None),
        ("reason", None),
        ("reason", ""),
        ("reason", "x" * 501),
        ("reason", "two\nlines"),
        ("reason", " x"),
        ("at", "2026-11-25"),
        ("at", 5),
        ("by", ""),
        ("by", "x" * 256),
        ("by_admin", 1),
        ("by_admin", None),
    ],
)
def test_what_nobody_can_have_decided_is_refused(field: str, value: object) -> None:
    document = json.loads(encode_decision(version(), decision()))
    document[field] = value
    with pytest.raises(MalformedBlockError, match="cannot be used") as error:
        decode_decision(json.dumps(document).encode(), KEY)
    assert error.value.values["key"] == KEY


def test_fields_of_later_versions_are_passed_over() -> None:
    document = json.loads(encode_decision(version(), decision())) | {"more": [1]}
    assert decode_decision(json.dumps(document).encode(), KEY).number == 2


@pytest.mark.parametrize("key", ["models/m/v1.record.json", "x", KEY[:-1], KEY + "\n"])
def test_a_decision_lies_under_its_own_key(key: str) -> None:
    with pytest.raises(MalformedBlockError):
        decode_decision(encode_decision(version(), decision()), key)


@given(st.binary(max_size=200) | st.just(b"[" * 99_999) | st.just(b" " * 20_000))
def test_any_bytes_are_a_decision_or_an_error(content: bytes) -> None:
    with pytest.raises(MalformedBlockError):
        decode_decision(content, KEY)


# --------------------------------------------------------------------------- records


PURGED = Withdrawal("purged", "A court.", AT, "operator")


def purged() -> Version:
    return reduced(version(), PURGED)


def test_the_record_of_a_purged_version_says_so_and_little_else() -> None:
    content = encode_record(purged(), **LINE)  # type: ignore[arg-type]  # of the test
    read = decode_record(content, "models/m/v1.record.json").version
    assert read == purged()
    assert (read.description, read.tags, read.facts, read.framework) == ("", (), {}, "")
    assert b"Anna" not in content


@pytest.mark.parametrize("state", ["deprecated", "blocked"])
def test_other_records_never_change(state: str) -> None:
    withdrawn = replace(version(), withdrawal=replace(PURGED, state=state))
    plain = replace(withdrawn, withdrawal=None)
    content = encode_record(withdrawn, **LINE)  # type: ignore[arg-type]  # of the test
    assert content == encode_record(plain, **LINE)  # type: ignore[arg-type]
    assert b"withdrawal" not in content
    assert recorded(withdrawn) == plain


@pytest.mark.parametrize(
    "change",
    [{"state": "blocked"}, {"state": "x"}, {"reason": ""}, {"number": 0}, {"by": 5}],
)
def test_a_record_has_no_other_withdrawal(change: dict[str, object]) -> None:
    document = json.loads(encode_record(purged(), **LINE))  # type: ignore[arg-type]
    document["withdrawal"] |= change
    with pytest.raises(MalformedBlockError):
        decode_record(json.dumps(document).encode(), "models/m/v1.record.json")
