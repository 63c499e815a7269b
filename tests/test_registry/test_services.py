from __future__ import annotations

import json

import pytest

from tests.fakes.model_files import tflite
from tests.test_registry.conftest import Registry
from vision_o3.content.dag import cid_of_bytes
from vision_o3.db.queries import LineFilters
from vision_o3.errors import (
    FormatError,
    InvalidNameError,
    InvalidVersionError,
    NotFoundError,
)
from vision_o3.registry.resolving import MetadataCache
from vision_o3.registry.services import ModelService
from vision_o3.registry.values import Published


def test_unknown_names_versions_and_cids_are_not_found(registry: Registry) -> None:
    registry.publish(tflite(1))
    models = registry.models
    with pytest.raises(NotFoundError, match="Nothing is published as 'other'"):
        models.latest("other")
    with pytest.raises(NotFoundError, match="Nothing is published as 'other'"):
        models.version("other", 1)
    with pytest.raises(NotFoundError, match=r"no version 2\. Its latest is 1"):
        models.version("m", 2)
    with pytest.raises(NotFoundError, match="Nothing is published"):
        models.history("other", page=1, page_size=10)
    with pytest.raises(NotFoundError, match="No version in models has the CID"):
        models.by_cid(cid_of_bytes(b"other"))


def test_bad_names_and_numbers_never_reach_the_index(registry: Registry) -> None:
    models = registry.models
    for name in ("../x", "A", "a\0"):
        with pytest.raises(InvalidNameError):
            models.latest(name)
        with pytest.raises(InvalidNameError):
            models.version(name, 1)
        with pytest.raises(InvalidNameError):
            models.history(name, page=1, page_size=1)
    with pytest.raises(InvalidVersionError):
        models.version("m", 0)


def test_lists_show_the_current_version_of_each_line(registry: Registry) -> None:
    registry.publish(tflite(1), name="a", framework="onnx", tags=("x", "y"))
    registry.publish(tflite(2), name="b", framework="tflite", tags=("x",))
    registry.publish(tflite(3), name="b", framework="onnx")
    page = registry.models.list(
        LineFilters(framework="onnx"), sort="name", page=1, page_size=1
    )
    assert (page.total, page.page, page.page_size) == (2, 1, 1)
    assert [(v.name, v.version) for v in page.items] == [("a", 1)]
    second = registry.models.list(
        LineFilters(framework="onnx"), sort="name", page=2, page_size=1
    )
    assert [(v.name, v.version) for v in second.items] == [("b", 2)]
    tagged = registry.models.list(
        LineFilters(tags=("x",)), sort="name", page=1, page_size=9
    )
    assert [v.name for v in tagged.items] == ["a"]


def test_record_in_the_store_holds_all_that_is_answered(registry: Registry) -> None:
    version = registry.publish(
        tflite(1), description="Ünïcode", tags=("a",), framework="tflite"
    ).version
    raw = registry.store.get("models/m/v1.record.json", max_size=10_000)
    record = json.loads(raw)
    assert record["record_format"] == 1
    assert record["line"]["name"] == "m"
    for field in (
        "id",
        "version",
        "file_format",
        "file_size",
        "description",
        "framework",
        "model_type",
        "facts",
        "object_key",
        "sidecar_key",
        "publisher",
        "collection",
    ):
        assert record[field] == getattr(version, field)
    assert record["cid"] == str(version.cid)
    assert record["tags"] == ["a"]
    assert record["created_at"] == version.created_at.isoformat()
    canonical = json.dumps(
        record, ensure_ascii=False, sort_keys=True, separators=(",", ":")
    )
    assert raw == canonical.encode()


def test_local_store_signs_no_urls(registry: Registry) -> None:
    version = registry.publish(tflite(1)).version
    assert registry.models.presigned_url(version, ttl_s=60) is None


def test_datasets_are_a_collection_of_their_own(registry: Registry) -> None:
    registry.publish(tflite(1))
    with pytest.raises(NotFoundError, match="in datasets"):
        registry.datasets.latest("m")


def with_cache(registry: Registry) -> ModelService:
    """Return the service of a gateway that is told of changes, and hears of none."""
    cache = MetadataCache(3600)
    cache.reset(True)
    return ModelService(
        registry.database,
        registry.store,
        registry.inspector,
        registry.timing,
        cache=cache,
    )


def test_publisher_sees_what_is_published_also_with_a_cache(registry: Registry) -> None:
    models = with_cache(registry)

    def publish(content: bytes) -> Published:
        return registry.publish_to(models, content, "m", "m.tflite")

    first = publish(tflite(1)).version
    assert models.latest("m") == models.by_cid(first.cid) == first
    second = publish(tflite(2)).version
    assert models.kept("m") is None
    assert models.latest("m") == models.kept("m") == second
    # Another gateway, of whose version nobody told, is found out by publishing.
    third = registry.publish(tflite(3)).version
    assert models.latest("m") == second
    answered = publish(tflite(3))
    assert (answered.version, answered.created) == (third, False)
    assert models.latest("m") == third


def test_whoever_fails_to_publish_looks_again(registry: Registry) -> None:
    models = with_cache(registry)
    registry.publish(tflite(1))
    assert models.latest("m").version == 1
    registry.publish(tflite(2))
    with pytest.raises(FormatError):
        registry.publish_to(models, b"no model", "m", "m.tflite")
    assert models.latest("m").version == 2
