"""What changed between two versions, from manifests and facts."""

from __future__ import annotations

from typing import Any, Dict

import pytest

from tests.fakes.fake_gateway import FakeGateway, InMemoryTransport
from tests.test_sdk.conftest import MakeClient
from vision_o3 import errors
from vision_o3.content.dag import cid_of_bytes
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.differences import AnnotationsDifference, compare_annotations

BEFORE = {"same": b"0", "changed": b"1", "old/name": b"2", "gone": b"3"}
AFTER = {"same": b"0", "changed": b"one", "new/name": b"2", "came": b"4"}


def facts(count: int = 0, **classes: int) -> Dict[str, Any]:
    return {
        "kind": "archive",
        "annotations": {
            "format": "coco",
            "images": count,
            "annotations": 2 * count,
            "boxes": 3 * count,
            "classes": classes,
            "class_count": len(classes),
        },
    }


def test_files_and_annotations_are_compared(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    first = gateway.publish_archive("d", BEFORE, facts=facts(1, cat=3, dog=2))
    second = gateway.publish_archive("d", AFTER, facts=facts(2, cat=4, cow=1, dog=2))
    found = client.compare_datasets("d", 1, 2)
    assert (found.before.version, found.after.version) == (1, 2)
    assert found.annotations == AnnotationsDifference(
        (1, 2), (2, 4), (3, 6), {"cat": (3, 4), "cow": (0, 1)}
    )
    cids = {name: str(cid_of_bytes(b)) for name, b in {**BEFORE, **AFTER}.items()}
    assert found.document() == {
        "name": "d",
        "from": {
            "version": 1,
            "cid": first["cid"],
            "manifest_cid": first["manifest_cid"],
        },
        "to": {
            "version": 2,
            "cid": second["cid"],
            "manifest_cid": second["manifest_cid"],
        },
        "files": {
            "added": 1,
            "removed": 1,
            "changed": 1,
            "renamed": 1,
            "unchanged": 1,
            "items": [
                {"change": "added", "path": "came", "cid": cids["came"], "size": 1},
                {"change": "removed", "path": "gone", "cid": cids["gone"], "size": 1},
                {
                    "change": "changed",
                    "path": "changed",
                    "cid": cids["changed"],
                    "size": 3,
                    "old_cid": str(cid_of_bytes(b"1")),
                    "old_size": 1,
                },
                {
                    "change": "renamed",
                    "path": "new/name",
                    "cid": cids["new/name"],
                    "size": 1,
                    "old_path": "old/name",
                },
            ],
            "total": 4,
        },
        "annotations": {
            "images": {"before": 1, "after": 2},
            "annotations": {"before": 2, "after": 4},
            "boxes": {"before": 3, "after": 6},
            "classes": {
                "cat": {"before": 3, "after": 4},
                "cow": {"before": 0, "after": 1},
            },
        },
    }


def test_what_is_no_archive_has_only_annotations(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("d", b"{}", "datasets", format="json", facts=facts(1, cat=1))
    gateway.publish_archive("d", AFTER, facts=facts(2, cat=2))
    found = client.compare_datasets("d", 1, 2)
    assert found.files is None
    assert found.annotations is not None
    assert found.annotations.classes == {"cat": (1, 2)}
    assert found.document()["files"] is None
    assert gateway.count("/manifest") == 0


def test_known_versions_are_compared_offline(
    gateway: FakeGateway, make_client: MakeClient
) -> None:
    gateway.publish_archive("d", BEFORE)
    gateway.publish_archive("d", AFTER)
    online = make_client().compare_datasets("d", 1, 2)
    offline = make_client(transport=InMemoryTransport({}))
    assert offline.compare_datasets("d", 1, 2) == online
    assert offline.compare_datasets("d", 2, 2).files is not None


def test_a_version_that_is_not_there(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish_archive("d", BEFORE)
    with pytest.raises(errors.NotFoundError):
        client.compare_datasets("d", 1, 2)


@pytest.mark.parametrize("other", [{}, {"annotations": None}, {"annotations": [1]}])
def test_nothing_is_said_unless_both_are_annotated(other: Dict[str, Any]) -> None:
    assert compare_annotations(other, facts(1)) is None
    assert compare_annotations(facts(1), other) is None


def test_of_a_cut_list_only_what_is_known_is_said() -> None:
    cut = facts(1, cat=1, dog=2)
    cut["annotations"]["class_count"] = 9
    found = compare_annotations(cut, facts(1, cat=1, dog=3, cow=1))
    assert found is not None
    assert found.classes == {"dog": (2, 3)}
    found = compare_annotations(facts(1, cow=1, dog=1), cut)
    assert found is not None
    assert found.classes == {"cat": (0, 1), "dog": (1, 2)}


@pytest.mark.parametrize("value", [None, "3", -1, 1.5, True, [], {}])
def test_facts_that_are_no_counts_count_as_nothing(value: object) -> None:
    odd = {"annotations": {"images": value, "classes": {"cat": value}}}
    found = compare_annotations(odd, {"annotations": {"classes": value}})
    assert found == AnnotationsDifference((0, 0), (0, 0), (0, 0), {})
