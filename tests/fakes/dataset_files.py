"""Small annotations and images, in the forms that data sets have."""

from __future__ import annotations

import json
import struct
from typing import Any

VOC_OBJECT = (
    "<object><name>{name}</name><pose>Left</pose><part><name>head</name><bndbox>"
    "<xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    "<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax>"
    "<ymax>{box[3]}</ymax></bndbox></object>"
)


def coco(
    images: int,
    boxes: list[tuple[int, list[float] | None]],
    names: dict[int, str],
    **more: Any,
) -> dict[str, Any]:
    """A COCO document, with one annotation for each category number and box."""
    return {
        "info": {"year": 2026, "version": "1.0"},
        "licenses": [{"id": 1, "name": "CC0"}],
        "images": [
            {"id": number, "file_name": f"{number:012}.jpg", "width": 9, "height": 9}
            for number in range(images)
        ],
        "annotations": [
            {
                "segmentation": [[1.5, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]],
                "id": number,
                "image_id": number % max(images, 1),
                "category_id": category,
                "iscrowd": 0,
                **({} if box is None else {"bbox": box}),
            }
            for number, (category, box) in enumerate(boxes)
        ],
        "categories": [
            {"supercategory": "thing", "id": number, "name": name}
            for number, name in names.items()
        ],
        **more,
    }


def coco_bytes(*args: Any, **more: Any) -> bytes:
    return json.dumps(coco(*args, **more)).encode()


def voc(*names: str, filename: str = "a.jpg") -> bytes:
    """A Pascal VOC document, with one object for each name."""
    objects = "".join(
        VOC_OBJECT.format(name=name, box=(number, 1, number + 5.5, 9))
        for number, name in enumerate(names)
    )
    return (
        f"<annotation><folder>f</folder><filename>{filename}</filename><size>"
        f"<width>9</width><height>9</height><depth>3</depth></size>{objects}"
        "</annotation>"
    ).encode()


def png(width: int, height: int) -> bytes:
    header = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + header + bytes(4)


def jpeg(width: int, height: int, *, marker: int = 0xC0, before: bytes = b"") -> bytes:
    """A JPEG up to its frame, with quantisation tables, and more segments before."""
    tables = b"\xff\xdb\0\x43" + bytes(65)
    frame = b"\xff" + bytes([marker]) + struct.pack(">HBHHB", 11, 8, height, width, 1)
    start = b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(9)
    return start + before + tables + b"\xff" + frame + bytes(3)


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + bytes(3)


def bmp(width: int, height: int, *, header: int = 40) -> bytes:
    sizes = "<HH4x" if header == 12 else "<ii"
    return (
        b"BM" + bytes(12) + struct.pack("<I", header)
        + struct.pack(sizes, width, height) + bytes(8)
    )  # fmt: skip


def webp(kind: str, width: int, height: int) -> bytes:
    if kind == "VP8X":
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        body = bytes(4) + size
    elif kind == "VP8L":
        bits = (width - 1) | (height - 1) << 14
        body = b"\x2f" + struct.pack("<I", bits) + bytes(8)
    else:
        body = bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", width, height)
    return (
        b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBP" + kind.ljust(4).encode()
        + struct.pack("<I", len(body)) + body
    )  # fmt: skip
