from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision_o3.errors import InvalidNameError, InvalidVersionError
from vision_o3.storage.keys import (
    ParsedKey,
    VersionKeys,
    parse_key,
    version_keys,
    version_prefix,
)


def test_keys_are_those_of_the_layout() -> None:
    assert version_keys("datasets", "coco-subset", 2, "tar.gz") == VersionKeys(
        artifact="datasets/coco-subset/v2.tar.gz",
        sidecar="datasets/coco-subset/v2.dag.car",
        manifest="datasets/coco-subset/v2.manifest.json",
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
    ],
)
def test_keys_are_made_of_valid_parts_only(
    arguments: tuple[str, str, int, str], error: type[Exception]
) -> None:
    with pytest.raises(error):
        version_keys(*arguments)


@given(
    st.sampled_from(["models", "datasets"]),
    st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True).filter("cid".__ne__),
    st.integers(1, 2**31 - 1),
    st.sampled_from(["pt", "onnx", "tar.gz", "json"]),
)
def test_key_tells_its_version(
    collection: str, name: str, version: int, extension: str
) -> None:
    keys = version_keys(collection, name, version, extension)
    prefix = version_prefix(collection, name, version)
    for key in (keys.artifact, keys.sidecar, keys.manifest, keys.record):
        assert parse_key(key) == ParsedKey(collection, name, version)
        assert key.startswith(prefix)
    assert len({keys.artifact, keys.sidecar, keys.manifest, keys.record}) == 4


@pytest.mark.parametrize(
    "key", ["", "x", "models/a/b/v1.pt", "models/a/1.pt", "a/b/v1"]
)
def test_foreign_keys_are_not_ours(key: str) -> None:
    assert parse_key(key) is None
