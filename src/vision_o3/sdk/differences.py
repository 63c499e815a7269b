"""What changed from one version of a dataset to another, found on the device.

As the gateway finds it (``GET /datasets/{name}/diff``), and in the same words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Optional, Tuple

from vision_o3.content.manifest import Difference, FileEntry
from vision_o3.sdk.versions import DatasetInfo

Counts = Tuple[int, int]
"""Before and after."""


@dataclass(frozen=True)
class AnnotationsDifference:
    """How the sums of recognised annotations changed, each before and after.

    Attributes:
        images: Images that the annotations speak of.
        annotations: All annotations.
        boxes: Those of them that are boxes.
        classes: Boxes by class (images, where folders are classes), sorted by name;
            only of classes whose count changed and is known of both versions.
    """

    images: Counts
    annotations: Counts
    boxes: Counts
    classes: Mapping[str, Counts] = field(hash=False)

    def document(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        return {
            "images": _both(self.images),
            "annotations": _both(self.annotations),
            "boxes": _both(self.boxes),
            "classes": {name: _both(counts) for name, counts in self.classes.items()},
        }


@dataclass(frozen=True)
class DatasetDifference:
    """What changed from one version of a dataset to another.

    Attributes:
        before: The one version.
        after: The other version.
        files: From the verified manifests; ``None`` unless both are archives.
        annotations: From what the gateway read of the versions when they were
            published; ``None`` unless it understood the annotations of both.
    """

    before: DatasetInfo
    after: DatasetInfo
    files: Optional[Difference]
    annotations: Optional[AnnotationsDifference]

    def document(self) -> Dict[str, Any]:
        """Return it as JSON values, under the names that the gateway uses."""
        return {
            "name": self.after.name,
            "from": _version(self.before),
            "to": _version(self.after),
            "files": self.files and _files(self.files),
            "annotations": self.annotations and self.annotations.document(),
        }


def compare_annotations(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> Optional[AnnotationsDifference]:
    """Return how annotations changed, by the facts of two versions.

    Facts come from the gateway: what is not of their shape counts as not said.
    """
    old, new = before.get("annotations"), after.get("annotations")
    if not isinstance(old, dict) or not isinstance(new, dict):
        return None
    old_classes, new_classes = _classes(old), _classes(new)
    names = {*old_classes, *new_classes}
    for side, classes in ((old, old_classes), (new, new_classes)):
        if len(classes) < _count(side, "class_count"):
            names &= set(classes)  # of the others the count is not known
    both = {
        name: (old_classes.get(name, 0), new_classes.get(name, 0))
        for name in sorted(names)
    }
    return AnnotationsDifference(
        images=(_count(old, "images"), _count(new, "images")),
        annotations=(_count(old, "annotations"), _count(new, "annotations")),
        boxes=(_count(old, "boxes"), _count(new, "boxes")),
        classes={name: counts for name, counts in both.items() if len({*counts}) > 1},
    )


def file_document(entry: FileEntry) -> Dict[str, Any]:
    """Return a file of an archive as JSON values, under the manifest's names."""
    return {**entry._asdict(), "cid": str(entry.cid)}


def _classes(annotations: Mapping[str, Any]) -> Dict[str, int]:
    listed = annotations.get("classes")
    if not isinstance(listed, dict):
        return {}
    return {name: _count(listed, name) for name in listed}


def _count(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    return value if type(value) is int and value > 0 else 0


def _both(counts: Counts) -> Dict[str, int]:
    return {"before": counts[0], "after": counts[1]}


def _version(info: DatasetInfo) -> Dict[str, Any]:
    names = ("version", "cid", "manifest_cid")
    return {name: getattr(info, name) for name in names}


def _files(files: Difference) -> Dict[str, Any]:
    items = [
        *(_change("added", entry) for entry in files.added),
        *(_change("removed", entry) for entry in files.removed),
        *(
            _change("changed", new, old_cid=str(old.cid), old_size=old.size)
            for old, new in files.changed
        ),
        *(_change("renamed", new, old_path=old.path) for old, new in files.renamed),
    ]
    counts = {
        name: len(getattr(files, name))
        for name in ("added", "removed", "changed", "renamed")
    }
    return {
        **counts,
        "unchanged": files.unchanged,
        "items": items,
        "total": len(items),
    }


def _change(change: str, entry: FileEntry, **before: Any) -> Dict[str, Any]:
    return {
        "change": change,
        "path": entry.path,
        "cid": str(entry.cid),
        "size": entry.size,
        **before,
    }
