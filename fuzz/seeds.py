"""What the fuzzer starts from: small good files of each format, and real ones.

Real models are larger, and each input made of one takes longer: small files are in the
list several times for each.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile

from scripts.real_models import real_model
from tests.fakes import (
    archive_files,
    dataset_files,
    hdf5_files,
    onnx_files,
    pt_files,
    tflite_files,
)

LARGEST = 1 << 20
"""Bytes of a real model that is still worth its time."""
REAL = {"pt": "pt", "onnx": "onnx-cls", "tflite": "tflite", "h5": "h5"}
SMALL_FOR_EACH_REAL = 30
COCO = dataset_files.coco_bytes(
    2, [(1, [0, 0, 5, 5.5]), (2, None)], {1: "cat", 2: "dog"}
)


def seeds_of(declared: str) -> list[bytes]:
    """Return good files of a format, some more than once."""
    small = {
        "pt": _pt,
        "onnx": _onnx,
        "tflite": _tflite,
        "h5": _h5,
        "zip": _zip,
        "tar.gz": _tar_gz,
        "json": _json,
        "xml": _xml,
    }[declared]()
    if declared not in REAL:
        return small
    try:
        content = real_model(REAL[declared]).read_bytes()
    except OSError:  # its package cannot be had: the small ones must do
        return small
    if len(content) > LARGEST:
        return small
    return small * (SMALL_FOR_EACH_REAL // len(small) + 1) + [content]


def _pt() -> list[bytes]:
    memoized = pt_files.table(a=b"]q\0", b=b"h\0", c=b"\x8f(K\1K\2\x90")
    numbers = pt_files.listed(b"G" + bytes(8), b"I01\n", b"L9L\n", b"N", b"K\1\x85")
    return [
        pt_files.torch_zip(),
        pt_files.torch_zip(memoized),
        pt_files.torchscript(code=b"class Net(Module):\n  w : Tensor\n"),
        pt_files.legacy(),
        pt_files.torch_zip(
            pt_files.table(
                state_dict=pt_files.table(w=pt_files.tensor(), v=pt_files.tensor()),
                epoch=pt_files.whole(9),
                names=pt_files.listed(pt_files.text("cat"), pt_files.text("dog")),
            )
        ),
        pt_files.torch_zip(members={"extra/a.pkl": pt_files.pickled(b"N")}),
        archive_files.zip64_end(pt_files.torch_zip()),
        *map(_unsummed, (memoized, pt_files.table(w=pt_files.tensor(), d=numbers))),
    ]


def _unsummed(value: bytes) -> bytes:
    """A file without CRCs, as ``torch.save`` can write it: changes reach the pickle."""
    members = {"data.pkl": pt_files.pickled(value), "data/0": bytes(24)}
    return archive_files.zip_file(
        *(
            archive_files.Entry(f"m/{path}", held, local={"crc": 0}, central={"crc": 0})
            for path, held in members.items()
        )
    )


def _onnx() -> list[bytes]:
    tensor, field, message = onnx_files.tensor, onnx_files.field, onnx_files.message
    initializer = onnx_files.initializer((2,), 1, (9, bytes(8)))
    shape = message((1, message((1, 1))), (1, message((2, b"batch"))))
    value = onnx_files.value((1, message((1, 1), (2, shape))))
    attribute = message((1, b"value"), (5, tensor((2,), 1, (9, bytes(8)))), (20, 4))
    node = message((1, b"x"), (2, b"y"), (3, b"n"), (4, b"Constant"), (5, attribute))
    function = message((1, b"f"), (7, node), (9, onnx_files.OPSET), (10, b"local"))
    indices = tensor((2,), 7, (9, bytes(8) + b"\1" + bytes(7)))
    sparse = message((1, tensor((2,), 1, (9, bytes(8)))), (2, indices), (3, 4))
    graph = onnx_files.GRAPH + initializer + field(1, node)
    graph += field(11, value) + field(12, value) + field(15, sparse)
    return [
        onnx_files.model(),
        onnx_files.model(graph),
        onnx_files.model(graph, (25, function), (14, onnx_files.ENTRY), (2, b"fuzz")),
        onnx_files.model(onnx_files.nested_graphs(5) + initializer),
        onnx_files.model(
            field(11, message((1, b"x"), (2, onnx_files.nested_types(5))))
        ),
    ]


def _tflite() -> list[bytes]:
    files = tflite_files
    quantized = files.tensor("w", (2,), 9, 1, f4=files.quantization())
    graph = files.graph(
        [files.tensor("x", (1, 2)), quantized],
        [files.operator(0, (0, 1)), files.operator(1)],
        inputs=(0,),
        outputs=(0,),
    )
    codes = [files.code(3), files.code(32, "FlexRelu"), files.code(150)]
    model = files.model(graph, codes=codes, buffers=(b"", b"\1\2"))
    labels = files.with_metadata(files.metadata([files.file_of("labels.txt")]))
    return [
        files.model(),
        model,
        files.with_metadata(files.metadata()),
        files.appended(labels, {"labels.txt": b"cat\ndog\n"}),
        files.appended(model, {"labels.txt": b"cat\n"}, zipfile.ZIP_STORED),
    ]


def _h5() -> list[bytes]:
    return [
        hdf5_files.keras_model(hdf5_files.SEQUENTIAL),
        hdf5_files.keras_model(hdf5_files.FUNCTIONAL, hdf5_files.TRAINING),
        hdf5_files.keras_weights(),
        hdf5_files.keras_3_weights(),
        hdf5_files.hdf5(
            lambda file: file.create_dataset("a/b", data=[1.0]), libver="v110"
        ),
        hdf5_files.hdf5(
            lambda file: file.create_dataset("a", (9, 9), "f4", chunks=(3, 3)),
            userblock_size=512,
        ),
    ]


def _files() -> dict[str, dict[str, bytes]]:
    """The files of data sets, by the layout that they have."""
    image = dataset_files.png(4, 3)
    return {
        "coco": {
            "images/1.png": image,
            "annotations/instances_train.json": COCO,
        },
        "voc": {
            "VOC/JPEGImages/a.jpg": dataset_files.jpeg(4, 3),
            "VOC/Annotations/a.xml": dataset_files.voc("cat", "dog"),
        },
        "yolo": {
            "images/train/1.png": image,
            "labels/train/1.txt": b"0 0.5 0.5 0.1 0.2\n1 0.1 0.1 0.2 0.2\n",
            "data.yaml": b"names: [cat, dog]\n",
        },
        "imagefolder": {
            "train/cat/1.gif": dataset_files.gif(4, 3),
            "train/dog/ü.bmp": dataset_files.bmp(4, 3),
            "val/dog/2.webp": dataset_files.webp("VP8X", 4, 3),
        },
    }


def _zip() -> list[bytes]:
    found = [
        archive_files.zip_file(
            *(
                archive_files.Entry(path, content, method)
                for path, content in files.items()
            )
        )
        for files in _files().values()
        for method in (archive_files.STORED, archive_files.DEFLATED)
    ]
    wide = io.BytesIO()
    with (
        zipfile.ZipFile(wide, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.txt", "w", force_zip64=True) as member,
    ):
        member.write(b"content")
    return [
        *found,
        archive_files.zip64_end(found[0]),
        archive_files.zip_file(),
        archive_files.zip_file("a", comment=b"a comment"),
        wide.getvalue(),
    ]


def _tar(files: dict[str, bytes], form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            member.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _tar_gz() -> list[bytes]:
    """Stored rather than compressed, mostly: changes then reach the tar archive."""
    tars = [
        _tar(files, form)
        for files in _files().values()
        for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    ]
    long = {"folder/" * 20 + "b" * 120: b"content"}
    tars += [_tar(long, form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    stored = [gzip.compress(content, 0, mtime=0) for content in tars]
    packed = [gzip.compress(content, mtime=0) for content in tars[:4]]
    halves = gzip.compress(tars[0][:512], mtime=0) + gzip.compress(tars[0][512:])
    return [*stored, *packed, halves]


def _json() -> list[bytes]:
    return [
        COCO,
        json.dumps(json.loads(COCO), indent=1).encode(),
        b"\xef\xbb\xbf" + COCO,
        b'{"a": [1, -2.5e+3, true, false, null, "\\u00e9\\n", {"b": {}}], "c": 0}',
        b"[" + b"[" * 20 + b"1" + b"]" * 20 + b"]",
        b"[" + b'{"id": 1, "bbox": [0, 0, 1, 1]},' * 50 + b"{}]",
    ]


def _xml() -> list[bytes]:
    one = dataset_files.voc("cat", "dog")
    return [
        one,
        b"<annotations>" + one + one + b"</annotations>",
        b'<?xml version="1.0" encoding="latin-1"?><a b="\xe9"><!-- c --><c/></a>',
        '<?xml version="1.0" encoding="UTF-16"?><a>ü</a>'.encode("utf-16"),
        b"<a><![CDATA[<x>]]>&lt;&#65;</a>",
        b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
    ]
