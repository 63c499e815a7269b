from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision_o3.errors import InvalidNameError, InvalidVersionError
from vision_o3.formats.inspection import DATASET_FORMATS, MODEL_FORMATS
from vision_o3.storage.keys import (
    EXTENSIONS,
    ParsedKey,
    VersionKeys,
    is_key,
    line_prefix,
    parse_key,
    version_keys,
    version_prefix,
    withdrawal_key,
    withdrawal_prefix,
)


def test_keys_are_those_of_the_layout() -> None:
    assert version_keys("datasets", "coco-subset", 2, "tar.gz") == VersionKeys(
        artifact="datasets/coco-subset/v2.tar.gz",
        sidecar="datasets/coco-subset/v2.dag.car",
        manifest="datasets/coco-subset/v2.manifest.json",
        index="datasets/coco-subset/v2.members.idx",
        record="datasets/coco-subset/v2.record.json",
    )


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("models", "../x", 1, "pt"), InvalidNameError),
        (("models", "a/b", 1, "pt"), InvalidNameError),
        (("models", "a", 0, "pt"), InvalidVersionError),
        (("users", "a", 1, "pt"), ValueError),
        (("models", "a", 1, "../pt"), ValueError),
        (("models", "a", 1, ""), ValueError),
        (("models", "a", 1, "zip"), ValueError),
        (("datasets", "a", 1, "pt"), ValueError),
        (("datasets", "a", 1, "record.json"), ValueError),
    ],
)
def test_keys_are_made_of_valid_parts_only(
    arguments: tuple[str, str, int, str], error: type[Exception]
) -> None:
    with pytest.raises(error):
        version_keys(*arguments)


def test_every_known_format_has_an_extension() -> None:
    assert {
        "models": set(MODEL_FORMATS),
        "datasets": set(DATASET_FORMATS),
    } == EXTENSIONS


def test_no_line_or_version_begins_like_another() -> None:
    assert line_prefix("models", "a") == "models/a/"
    assert version_prefix("models", "a", 1) == "models/a/v1."
    with pytest.raises(InvalidNameError):
        line_prefix("models", "cid")


@given(
    st.sampled_from(
        [(name, each) for name, known in EXTENSIONS.items() for each in sorted(known)]
    ),
    st.from_regex(r"[a-z0-9][a-z0-9._-]{0,127}", fullmatch=True).filter("cid".__ne__),
    st.integers(1, 2**31 - 1),
)
def test_key_tells_its_version(kind: tuple[str, str], name: str, version: int) -> None:
    collection, extension = kind
    keys = version_keys(collection, name, version, extension)
    prefix = version_prefix(collection, name, version)
    for key in (keys.artifact, keys.sidecar, keys.manifest, keys.record):
        assert is_key(key)
        assert parse_key(key) == ParsedKey(collection, name, version)
        assert key.startswith(prefix)
    assert len({keys.artifact, keys.sidecar, keys.manifest, keys.record}) == 4


@given(st.text(max_size=60) | st.from_regex(r"[a-z]+/[^/]*/v[0-9]+\.[a-z.]+"))
def test_any_text_is_a_key_of_ours_or_not(text: str) -> None:
    parsed = parse_key(text)
    if parsed is not None:
        assert is_key(text)
        prefix = version_prefix(parsed.collection, parsed.name, parsed.version)
        assert text.startswith(prefix)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "x",
        "models/a/b/v1.pt",
        "models/a/1.pt",
        "a/b/v1",
        "users/a/v1.pt",
        "models/../v1.pt",
        "models/A/v1.pt",
        "models/cid/v1.pt",
        "models/a/v0.pt",
        "models/a/v01.pt",
        "models/a/v2147483648.pt",
        "models/a/v1.zip",
        "models/a/v1.exe",
        "models/a/v1.pt\n",
        "models/a/v1.pt.tmp",
        "models/a/v1.withdrawal-0.json",
        "models/a/v1.withdrawal-01.json",
        "models/a/v1.withdrawal-1000000000.json",
        "models/a/v1.withdrawal-.json",
        "models/a/v1.withdrawal-1",
        "models/a/v1.withdrawal.json",
    ],
)
def test_foreign_keys_are_not_ours(key: str) -> None:
    assert parse_key(key) is None


@given(st.integers(1, 10**9 - 1), st.integers(1, 2**31 - 1))
def test_key_tells_which_withdrawal_of_its_version(number: int, version: int) -> None:
    key = withdrawal_key("models", "a-1", version, number)
    assert is_key(key)
    assert parse_key(key) == ParsedKey("models", "a-1", version, number)
    assert key.startswith(withdrawal_prefix("models", "a-1", version))
    assert key.startswith(version_prefix("models", "a-1", version))


@pytest.mark.parametrize("number", [-1, 0, 10**9])
def test_what_is_not_the_number_of_a_withdrawal_has_no_key(number: int) -> None:
    with pytest.raises(ValueError, match="not the number of a withdrawal"):
        withdrawal_key("models", "a", 1, number)
