"""What an archive's files sum up to: media types, splits, images, annotations.

Layouts are recognised by what their files hold, wherever they lie, but for folders of
images by class, which nothing but their names tells. If there are annotations of
several formats, those that speak of the most images count; of as many, in the order
COCO, Pascal VOC, YOLO. Folders by class count only if there are no others.

A file inside an archive that is broken or unknown is not refused: it is not understood,
and counted all the same.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from vision_o3.errors import VisionO3Error
from vision_o3.formats import annotations as small
from vision_o3.formats import images, json_documents, xml_documents

if TYPE_CHECKING:
    from vision_o3.formats.limits import Limits

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_YEAR = re.compile(r"_?20[0-9]{2}$")
"""As in COCO's ``train2017``."""
_SPLIT_LEVELS = 3
_MOST_FOLDERS = 20_000
_MOST_SIZES = 10_000
"""Distinct sizes of images that are told apart."""
_SHOWN_SIZES = 20
_MOST_YAML = 100
_LEAST_CLASSES = 2
_NOT_CLASSES = frozenset(
    {"images", "image", "imgs", "img", "jpegimages", "rgb", "depth"}
    | {"annotations", "annotation", "labels", "label", "gt", "groundtruth"}
    | {"masks", "mask", "segmentationclass", "segmentationobject"}
)
"""Folders of images by what they are, not by what they show."""
_NAMES_FILES = {"obj.names": 1, "classes.names": 1, "classes.txt": 2, "labels.txt": 2}
"""Files with the names of classes; the lowest number is believed, YAML before all."""
_SPLIT_LISTS = {"train.txt": "train", "val.txt": "val", "test.txt": "test"}


class Parser:
    """A JSON file of an archive, pushed through in chunks. Never raises.

    Attributes:
        tally: What it annotates, after ``finish``, if it is COCO.
    """

    __slots__ = ("_reader", "tally")

    def __init__(self, limits: Limits) -> None:
        self._reader: json_documents.CocoReader | None = json_documents.CocoReader(
            limits
        )
        self.tally: small.Tally | None = None

    def feed(self, chunk: bytes) -> None:
        """Take the file's next bytes."""
        if self._reader is not None:
            try:
                self._reader.feed(chunk)
            except (ValueError, VisionO3Error):
                self._reader = None

    def finish(self) -> None:
        """Take note of the file's end."""
        if self._reader is not None:
            try:
                self._reader.finish()
                self.tally = self._reader.coco()
            except (ValueError, VisionO3Error):
                pass
            self._reader = None


class _Folder:
    """What is known of one folder of an archive."""

    __slots__ = ("files", "images", "is_junk", "labels", "parts", "split")

    def __init__(self, path: str) -> None:
        self.parts = tuple(path.split("/")) if path else ()
        self.split = _split_of(self.parts)
        # What macOS adds beside each file.
        self.is_junk = "__MACOSX" in self.parts
        self.labels = any(part.lower() == "labels" for part in self.parts)
        self.files = 0
        self.images = 0


class Summary:
    """Sums up an archive's files, each given once, in any order.

    Memory is bounded, whatever the archive holds: beyond 20,000 folders or 10,000 sizes
    of images, the rest is counted but not told apart.

    ``wanted`` and ``parser`` keep nothing: they may be called from other threads.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._media_types: dict[str, list[int]] = {}
        self._folders: dict[str, _Folder] = {}
        self._spilled: dict[tuple[str | None, bool, bool], _Folder] = {}
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._uncounted_sizes = 0
        self._unreadable = 0
        self._bounds: list[int] = []
        self._coco: dict[bool, small.Tally] = {}
        self._voc = small.Tally()
        self._yolo = {True: small.Tally(), False: small.Tally()}
        self._not_yolo = Counter[bool]()
        self._names: tuple[tuple[int, int, str], dict[int, str]] | None = None
        self._yaml_files = 0
        self._listed: dict[str, int] = {}

    def wanted(self, path: str, size: int) -> int:
        """Return how many of a file's first bytes ``add`` is to be given."""
        extension = path[path.rfind(".") + 1 :].lower()
        if extension in _IMAGES:
            return min(size, images.HEAD)
        longest = _SMALL_FILES.get(extension, 0)
        return size if size <= longest else 0

    def parser(self, path: str, size: int) -> Parser | None:
        """Return what all of a file's bytes are to be given to, if anything."""
        if not path.lower().endswith(".json") or size > self._limits.json_bytes:
            return None
        return Parser(self._limits)

    def add(
        self, path: str, size: int, media_type: str, head: bytes, parser: Parser | None
    ) -> None:
        """Count a file.

        Args:
            path: As in the manifest.
            size: Bytes.
            media_type: By its extension.
            head: Its first bytes, as many as were ``wanted``.
            parser: What ``parser`` returned for it, finished.
        """
        total = self._media_types.setdefault(media_type, [0, 0])
        total[0] += 1
        total[1] += size
        cut = path.rfind("/")
        folder = self._folders.get(path[: max(cut, 0)]) or self._folder(
            path[: max(cut, 0)]
        )
        if folder.is_junk or path.startswith("._", cut + 1):
            return
        folder.files += 1
        if media_type.startswith("image/"):
            folder.images += 1
            self._add_image(head)
        elif parser is not None:
            self._add_coco(path, parser)
        elif head or not size:
            self._add_small(path, folder, head)

    def facts(self) -> dict[str, Any]:
        """Return the facts of an archive that its files sum up to."""
        return {
            "media_types": {
                media_type: {"files": files, "bytes": size}
                for media_type, (files, size) in sorted(self._media_types.items())
            },
            "splits": self._split_facts(),
            "images": self._image_facts(),
            "annotations": self._annotation_facts(),
        }

    def _folder(self, path: str) -> _Folder:
        """Return a folder seen for the first time, or one for all beyond the bound."""
        folder = _Folder(path)
        if len(self._folders) < _MOST_FOLDERS:
            self._folders[path] = folder
            return folder
        return self._spilled.setdefault(
            (folder.split, folder.labels, folder.is_junk), folder
        )

    def _add_image(self, head: bytes) -> None:
        size = images.image_size(head)
        if size is None:
            self._unreadable += 1
        elif size in self._sizes or len(self._sizes) < _MOST_SIZES:
            self._sizes[size] += 1
        else:
            self._uncounted_sizes += 1
            self._bounds = _widened(self._bounds, size)

    def _add_coco(self, path: str, parser: Parser) -> None:
        if parser.tally is not None:
            is_instances = _name(path).startswith("instances")
            self._coco.setdefault(is_instances, small.Tally()).add(parser.tally)

    def _add_small(self, path: str, folder: _Folder, content: bytes) -> None:
        name = _name(path).lower()
        if name.endswith(".xml"):
            tally = xml_documents.voc(content, self._limits)
            if tally is not None:
                self._voc.add(tally)
        elif name.endswith((".yaml", ".yml")):
            if self._yaml_files < _MOST_YAML:
                self._yaml_files += 1
                self._add_names(0, path, small.names_in_yaml(content))
        elif name in _NAMES_FILES:
            self._add_names(_NAMES_FILES[name], path, small.names_in_lines(content))
        elif name in _SPLIT_LISTS and "ImageSets" in folder.parts:
            split = _SPLIT_LISTS[name]
            listed = small.listed_images(content)
            self._listed[split] = max(listed, self._listed.get(split, 0))
        elif name.endswith(".txt"):
            self._add_yolo(folder, content)

    def _add_names(self, rank: int, path: str, names: dict[int, str] | None) -> None:
        """Keep the names to be believed: by kind of file, then the outermost."""
        key = (rank, path.count("/"), path)
        if names is not None and (self._names is None or key < self._names[0]):
            self._names = (key, names)

    def _add_yolo(self, folder: _Folder, content: bytes) -> None:
        boxes = small.yolo_boxes(content)
        if boxes is None:
            self._not_yolo[folder.labels] += 1
            return
        tally = self._yolo[folder.labels]
        tally.images += 1
        for number, count in boxes.items():
            tally.annotations += count
            tally.boxes += count
            tally.count_class(str(number), count)

    def _split_facts(self) -> dict[str, Any]:
        splits: dict[str, dict[str, int]] = {}
        for folder in (*self._folders.values(), *self._spilled.values()):
            if folder.split is not None and folder.files:
                total = splits.setdefault(folder.split, {"files": 0, "images": 0})
                total["files"] += folder.files
                total["images"] += folder.images
        if not splits:
            return {
                split: {"files": count, "images": count}
                for split, count in sorted(self._listed.items())
            }
        return dict(sorted(splits.items()))

    def _image_facts(self) -> dict[str, Any] | None:
        count = self._sizes.total() + self._uncounted_sizes
        if not count and not self._unreadable:
            return None
        bounds = self._bounds
        for size in self._sizes:
            bounds = _widened(bounds, size)
        min_width, max_width, min_height, max_height = bounds or [0] * 4
        ranked = sorted(self._sizes.items(), key=lambda item: (-item[1], item[0]))
        return {
            "count": count,
            "unreadable": self._unreadable,
            "min_width": min_width,
            "max_width": max_width,
            "min_height": min_height,
            "max_height": max_height,
            "sizes": {
                f"{width}x{height}": number
                for (width, height), number in ranked[:_SHOWN_SIZES]
            },
        }

    def _annotation_facts(self) -> dict[str, Any] | None:
        # "instances" and "person_keypoints" of COCO speak of the same images.
        coco = self._coco.get(True) or self._coco.get(False) or small.Tally()
        found = [("coco", coco), ("voc", self._voc), ("yolo", self._yolo_tally())]
        name, best = max(found, key=lambda item: item[1].images)
        if best.images:
            return best.facts(name)
        classes = self._image_classes()
        return None if classes is None else classes.facts("imagefolder")

    def _yolo_tally(self) -> small.Tally:
        """Return what YOLO's labels sum up to; empty if the files are not that.

        Labels lie in folders named ``labels``; beside the images (as Darknet has them)
        they are believed only with a file of names.
        """
        for in_labels in (True, False):
            tally = self._yolo[in_labels]
            believed = in_labels or self._names is not None
            if believed and tally.boxes and tally.images > self._not_yolo[in_labels]:
                return tally.renamed(self._names[1] if self._names else {})
        return small.Tally()

    def _image_classes(self) -> small.Tally | None:
        """Return images by class, if they lie in one folder for each class.

        ``<class>/*`` or ``<split>/<class>/*``, maybe all under one folder. Images
        beside the classes' folders are not counted, if they are fewer.
        """
        folders = [folder for folder in self._folders.values() if folder.images]
        if self._spilled or len(folders) < _LEAST_CLASSES:
            return None
        base = _common([folder.parts for folder in folders])
        tally, beside = small.Tally(), 0
        for folder in folders:
            parts = folder.parts[base:]
            if parts and _split_of(parts[:1]) is not None:
                parts = parts[1:]
            if not parts:
                beside += folder.images
            elif len(parts) > 1 or parts[0].lower() in _NOT_CLASSES:
                return None
            else:
                tally.images += folder.images
                tally.count_class(parts[0], folder.images)
        tally.annotations = tally.images
        if len(tally.classes) < _LEAST_CLASSES or beside > tally.images:
            return None
        return tally


def _split_of(parts: tuple[str, ...]) -> str | None:
    for part in parts[:_SPLIT_LEVELS]:
        split = _SPLITS.get(_YEAR.sub("", part.lower()))
        if split is not None:
            return split
    return None


def _common(paths: list[tuple[str, ...]]) -> int:
    """Return how many first parts all the paths share."""
    first, last = min(paths), max(paths)
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return shared


def _widened(bounds: list[int], size: tuple[int, int]) -> list[int]:
    width, height = size
    if not bounds:
        return [width, width, height, height]
    return [
        min(bounds[0], width),
        max(bounds[1], width),
        min(bounds[2], height),
        max(bounds[3], height),
    ]


def _name(path: str) -> str:
    return path[path.rfind("/") + 1 :]


_IMAGES = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "apng", "gif", "bmp", "dib", "webp"}
)
_SMALL_FILES = {
    "txt": small.LONGEST_LABEL_FILE,
    "xml": small.LONGEST_LABEL_FILE,
    "yaml": small.LONGEST_NAMES_FILE,
    "yml": small.LONGEST_NAMES_FILE,
    "names": small.LONGEST_NAMES_FILE,
}
