"""Hostile uploads, through the whole gateway: each is refused, and leaves nothing.

Beside them what looks as odd and is right: that must pass.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
import signal
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped] # it has no types
import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from tests.fakes import onnx_files, tflite_files
from tests.fakes.archive_files import Entry, pax, tar_gz, zip64_end, zip_file
from tests.fakes.hdf5_files import hdf5, keras_model, model
from tests.fakes.hostile_files import (
    CRASHED,
    MISMATCH,
    TOO_LARGE,
    Case,
    Content,
    tar_member,
    torch_legacy,
    torch_zip,
)
from tests.fakes.pt_files import legacy, pickled, torchscript
from tests.test_gateway.hostile_datasets import (
    FILES,
    json_cases,
    tar_cases,
    xml_cases,
    zip_cases,
)
from tests.test_gateway.hostile_models import (
    HDF5,
    LAMBDA,
    ONNX,
    SEVEN_ZIP,
    SYSTEM,
    TFLITE,
    hanging,
    hdf5_cases,
    onnx_cases,
    pickle_cases,
    pt_cases,
    tflite_cases,
)
from tests.test_gateway.running import MIB, SECRET, Running, problem
from vision_o3.db.models import Base
from vision_o3.formats.inspection import (
    DATASET_FORMATS,
    MODEL_FORMATS,
    format_of_filename,
)
from vision_o3.gateway.main import create_app
from vision_o3.settings import Settings


@contextmanager
def opened(directory: Path, empty_database: Path, **changes: Any) -> Iterator[Running]:
    """A gateway for many tests: what one leaves behind, the next one finds."""
    shutil.copy(empty_database, directory / "registry.db")
    settings = Settings(
        database_url=f"sqlite:///{directory}/registry.db",
        store=str(directory / "objects"),
        jwt_secret=SECRET,
        min_free_bytes=0,
        **changes,
    )
    app = create_app(settings)
    with start_blocking_portal() as portal, ExitStack() as stack:
        stack.enter_context(
            portal.wrap_async_context_manager(app.router.lifespan_context(app))
        )
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://gateway"
        )
        stack.enter_context(portal.wrap_async_context_manager(client))
        running = Running(app, settings, portal, client)
        running.token()  # makes the user, before anybody looks at the tables
        yield running


LOWERED = {
    "max_archive_files": 50,
    "max_unpacked_bytes": 32 * MIB,
    "max_path_bytes": 100,
    "max_path_depth": 8,
    "max_json_bytes": MIB,
    "max_json_depth": 16,
    "max_xml_bytes": MIB,
    "max_xml_depth": 16,
    "inspect_timeout_s": 4.0,
}


@pytest.fixture(scope="module")
def strict(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> Iterator[Running]:
    with opened(tmp_path_factory.mktemp("strict"), empty_database) as running:
        yield running


@pytest.fixture(scope="module")
def lowered(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("lowered")
    with opened(directory, empty_database, **LOWERED) as running:
        yield running


@pytest.fixture(scope="module")
def trusting(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("trusting")
    with opened(directory, empty_database, allow_unsafe_content=True) as running:
        yield running


def upload(
    running: Running, extension: str, content: Content, name: str = "m"
) -> httpx.Response:
    made_now = content if isinstance(content, bytes) else content()
    filename = f"f.{extension}"
    collection = (
        "models" if format_of_filename(filename) in MODEL_FORMATS else "datasets"
    )
    return running.publish(made_now, filename, collection, name=name)


def assert_refused(running: Running, case: Case) -> None:
    extension, content, expected, said = case
    before = kept(running)
    answer = upload(running, extension, content)
    assert problem(answer) == expected, answer.json()["detail"]
    assert said in answer.json()["detail"]
    # What no reader has an answer to is refused, too: no case may rest on that unsaid.
    assert (CRASHED in answer.json()["detail"]) == (said == CRASHED)
    assert kept(running) == before
    assert not list(running.settings.spool_directory.iterdir())


def kept(running: Running) -> tuple[list[Any], list[Any]]:
    """All that is in the store and in the database."""
    with running.gateway.database.read() as session:
        tables = Base.metadata.sorted_tables
        rows = [session.execute(table.select()).all() for table in tables]
    return list(running.gateway.store.list()), rows


# Good files, to be spoilt.

COCO = {
    "images": [{"id": 1, "file_name": "1.jpg"}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
}
VOC = (
    b"<annotation><filename>1.jpg</filename><object><name>cat</name><bndbox>"
    b"<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    b"</annotation>"
)
TAR = tar_gz(*(tar_member(str(file.name), file.content) for file in FILES))
GOOD: dict[str, tuple[str, bytes]] = {
    "zip-based PyTorch": ("pt", torch_zip()),
    "legacy PyTorch": ("pt", legacy()),
    "TorchScript": ("pt", torchscript()),
    "ONNX": ("onnx", ONNX),
    "TFLite": ("tflite", TFLITE),
    "HDF5": ("h5", HDF5),
    "ZIP": ("zip", zip_file(*FILES)),
    "tar.gz": ("tar.gz", TAR),
    "JSON": ("json", json.dumps(COCO).encode()),
    "XML": ("xml", VOC),
}
EXTENSIONS = MODEL_FORMATS + DATASET_FORMATS


def places(size: int) -> list[int]:
    """Where a file is cut: at its ends, and at four places between them."""
    return sorted({0, 1, size - 1, *(size * part // 5 for part in range(1, 5))})


@pytest.mark.parametrize("kind", GOOD)
def test_file_cut_short_anywhere_is_refused(strict: Running, kind: str) -> None:
    extension, content = GOOD[kind]
    for size in places(len(content)):
        case = (extension, content[:size], MISMATCH, f"declared as .{extension}")
        assert_refused(strict, case)


@pytest.mark.parametrize("kind", GOOD)
def test_file_under_every_other_extension_is_refused(
    strict: Running, kind: str
) -> None:
    actual, content = GOOD[kind]
    for extension in EXTENSIONS:
        # A PyTorch file is a ZIP archive of files, as good as any.
        if extension == actual or (extension == "zip" and content[:2] == b"PK"):
            continue
        case = (extension, content, MISMATCH, f"declared as .{extension}")
        assert_refused(strict, case)


MAGIC = {
    "zip-based PyTorch": ("pt", b"PK\3\4"),
    "legacy PyTorch": ("pt", legacy()[:14]),
    "ONNX": ("onnx", b"\x08\x08\x12\x07pytorch"),
    "TFLite": ("tflite", b"\x1c\0\0\0TFL3"),
    "HDF5": ("h5", HDF5[:48]),
    "ZIP": ("zip", b"PK\3\4"),
    "gzip": ("tar.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\3"),
    "tar": ("tar.gz", b""),
    "JSON": ("json", b"{"),
    "XML": ("xml", b"<"),
}


@pytest.mark.parametrize("kind", MAGIC)
def test_random_bytes_with_the_right_magic_are_refused(
    strict: Running, kind: str
) -> None:
    extension, magic = MAGIC[kind]
    for seed, size in enumerate((9, 100, 5000)):
        content = magic + random.Random(seed).randbytes(size)
        if kind == "tar":
            content = gzip.compress(content)
        assert_refused(strict, (extension, content, MISMATCH, ""))


HOSTILE = {
    kind: case
    for cases in (
        *(pickle_cases(), pt_cases(), onnx_cases(), tflite_cases(), hdf5_cases()),
        *(zip_cases(), tar_cases(), json_cases(), xml_cases()),
    )
    for kind, case in cases.items()
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_file_is_refused_and_leaves_nothing(strict: Running, kind: str) -> None:
    assert_refused(strict, HOSTILE[kind])


OVER_LIMITS: dict[str, Case] = {
    "files of a zip": (
        "zip", zip_file(*map(str, range(51))), TOO_LARGE, "ARCHIVE_FILES",
    ),
    "files of a tar": (
        "tar.gz", tar_gz(*(tar_member(str(n)) for n in range(51))), TOO_LARGE,
        "ARCHIVE_FILES",
    ),
    "bytes of a zip": (
        "zip", zip_file(*(Entry(str(n), bytes(8 * MIB), 8) for n in range(5))),
        TOO_LARGE, "",
    ),
    "bytes of a tar": (
        "tar.gz", tar_gz(*(tar_member(str(n), bytes(8 * MIB)) for n in range(5))),
        TOO_LARGE, "",
    ),
    "a path of a zip": ("zip", zip_file(Entry("x" * 101)), TOO_LARGE, "PATH_BYTES"),
    "a path of a tar": (
        "tar.gz", tar_gz(pax(("path", "x" * 101)), tar_member("a")), TOO_LARGE,
        "PATH_BYTES",
    ),
    "parts of a path": ("zip", zip_file("a/" * 8 + "b"), TOO_LARGE, "PATH_DEPTH"),
    "bytes of JSON": ("json", b"[" + b" " * MIB + b"]", TOO_LARGE, "JSON_BYTES"),
    "a number in JSON": ("json", b"[" + b"1" * MIB + b"]", TOO_LARGE, "JSON_BYTES"),
    "depth of JSON": ("json", b"[" * 17 + b"]" * 17, TOO_LARGE, "JSON_DEPTH"),
    "bytes of XML": ("xml", b"<a>" + b" " * MIB + b"</a>", TOO_LARGE, "XML_BYTES"),
    "time": ("h5", hanging(), TOO_LARGE, "INSPECT_TIMEOUT_S"),
    "depth of XML": ("xml", b"<a>" * 17 + b"</a>" * 17, TOO_LARGE, "XML_DEPTH"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OVER_LIMITS)
def test_file_over_a_limit_is_told_the_setting(lowered: Running, kind: str) -> None:
    assert_refused(lowered, OVER_LIMITS[kind])


# What looks odd, and is right.


def extended(content: bytes, **options: Any) -> bytes:
    """The same files, as ``tarfile`` writes them in a format."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", **options) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for path in ("a/" * 30 + "x" * 200, "größer/" * 5 + "ü" * 60, "short"):
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def streamed(content: bytes) -> bytes:
    """A ZIP archive written where nothing can be gone back to."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: object) -> int:
            raise io.UnsupportedOperation

        def tell(self) -> int:
            raise io.UnsupportedOperation

    file = Pipe()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", content)
        archive.writestr("ü.txt", content)
    return file.getvalue()


def hard_link_cycle(file: Any) -> None:
    inner = file.create_group("a/b")
    inner["back"] = file["a"]
    file["soft"] = h5py.SoftLink("/soft")
    file["a/w"] = [1.0]


def wide_zip() -> bytes:
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w") as archive,
        archive.open("a.txt", "w", force_zip64=True) as member,
    ):
        member.write(b"content")
    return file.getvalue()


ODD: dict[str, tuple[str, bytes]] = {
    **{f"{kind} itself": case for kind, case in GOOD.items()},
    "PyTorch as .pth": ("pth", torch_zip()),
    "PyTorch as a ZIP archive": ("zip", torch_zip()),
    "PyTorch in a zip64 archive": ("pt", zip64_end(torch_zip())),
    "PyTorch with lists 100,000 deep": (
        "pt", torch_zip(pickled(b"]" * 10**5 + b"a" * (10**5 - 1))),
    ),
    "PyTorch with a value that doubles 100,000 times": (
        "pt", torch_zip(pickled(b"]" + b"2\x86" * 10**5)),
    ),
    "ONNX with fields of the future": (
        "onnx", onnx_files.model(onnx_files.GRAPH + onnx_files.field(99, b"new")),
    ),
    "TFLite with an archive behind it": (
        "tflite", tflite_files.appended(TFLITE, {"labels.txt": b"cat\ndog\n"}),
    ),
    "HDF5 with a block of the user's": (
        "h5", hdf5(hard_link_cycle, userblock_size=1024),
    ),
    "HDF5 of the newest form": ("hdf5", hdf5(hard_link_cycle, libver="latest")),
    "HDF5 with links in circles": ("h5", hdf5(hard_link_cycle)),
    "HDF5 without anything": ("h5", hdf5(lambda file: file.flush())),
    "an empty ZIP archive": ("zip", zip_file()),
    "a ZIP archive with a comment": ("zip", zip_file(*FILES, comment=b"by hand")),
    "a ZIP archive with folders": (
        "zip", zip_file(Entry("a/", b"", mode=0o040755), Entry("a/b", b"")),
    ),
    "a ZIP archive with descriptors": ("zip", streamed(b"content" * 99)),
    "a ZIP archive with zip64 sizes": ("zip", wide_zip()),
    "a ZIP archive with a zip64 end": ("zip", zip64_end(zip_file(*FILES))),
    "a ZIP archive with UTF-8 names": ("zip", zip_file(Entry("größer/猫.jpg"))),
    "a ZIP archive with a hidden file": ("zip", zip_file(Entry("..a"), Entry(".b"))),
    "an empty tar.gz archive": ("tar.gz", tar_gz()),
    "tar as GNU tar writes it": ("tar.gz", extended(b"abc", format=tarfile.GNU_FORMAT)),
    "tar with pax headers": ("tgz", extended(b"abc", format=tarfile.PAX_FORMAT)),
    "tar with a global pax header": (
        "tar.gz", tar_gz(pax(("comment", "abc"), kind=b"g"), tar_member("a", b"a")),
    ),
    "tar with members of gzip": (
        "tar.gz",
        gzip.compress(tar_member("a", b"a")) + gzip.compress(b"") + tar_gz(),
    ),
    "JSON with a byte order mark": ("json", b"\xef\xbb\xbf[]"),
    "JSON with 4 MB of spaces": ("json", b"[" + b" " * 4_000_000 + b"]"),
    "JSON with a number of 10,000 digits": ("json", b"[" + b"1" * 10_000 + b"]"),
    "JSON with a lone surrogate, escaped": ("json", b'["\\ud800"]'),
    "XML in Latin-1": (
        "xml", '<?xml version="1.0" encoding="latin-1"?><é/>'.encode("latin-1"),
    ),
    "XML in UTF-16": ("xml", '<?xml version="1.0"?><é/>'.encode("utf-16")),
    "XML with comments and CDATA": ("xml", b"<!-- a --><a><![CDATA[<!DOCTYPE]]></a>"),
}  # fmt: skip


@pytest.fixture(scope="module")
def filling(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> Iterator[Running]:
    with opened(tmp_path_factory.mktemp("filling"), empty_database) as running:
        yield running


@pytest.mark.parametrize("kind", ODD)
def test_odd_but_right_file_passes(filling: Running, kind: str) -> None:
    extension, content = ODD[kind]
    name = f"odd-{list(ODD).index(kind)}"
    answer = upload(filling, extension, content, name)
    assert answer.status_code == 201, answer.json()["detail"]
    safe = {"verdict": "safe", "findings": []}
    assert answer.json()["facts"].get("safety", safe) == safe


# What the operator may allow.

UNSAFE_MODELS = {
    "pickle": ("pt", torch_zip(SYSTEM), "os.system"),
    "legacy": ("pt", torch_legacy(SYSTEM[2:-1]), "os.system"),
    "nested": ("pt", torch_zip(members={"extra/model": SEVEN_ZIP}), "extra/model"),
    "lambda": ("h5", keras_model(model("Sequential", LAMBDA)), "Lambda"),
}


def test_unsafe_models_are_marked_where_they_are_allowed(trusting: Running) -> None:
    for name, (extension, content, finding) in UNSAFE_MODELS.items():
        answer = upload(trusting, extension, content, name)
        assert answer.status_code == 201, answer.json()["detail"]
        safety = answer.json()["facts"]["safety"]
        assert safety["verdict"] == "unsafe"
        assert any(finding in found for found in safety["findings"])
    assert upload(trusting, "pt", torch_zip(), "safe").status_code == 201

    def listed(verdict: str) -> set[str]:
        items = trusting.get(f"/models?safety={verdict}").json()["items"]
        return {item["name"] for item in items}

    assert listed("unsafe") == set(UNSAFE_MODELS)
    assert listed("safe") == {"safe"}


NEVER_ALLOWED = (
    *("zip: the path '../slip.txt'", "zip: a symbolic link", "tar: a hard link out"),
    *("tar: a path that slips out", "xml: a billion laughs", "h5: an external link"),
    *("onnx: external data", "pt: a path that slips out", "pt: two members of a name"),
)


@pytest.mark.parametrize("kind", NEVER_ALLOWED)
def test_what_reaches_out_is_never_allowed(trusting: Running, kind: str) -> None:
    assert_refused(trusting, HOSTILE[kind])


# A process that dies.


def test_killed_inspection_costs_one_request(filling: Running) -> None:
    inspector = filling.gateway.inspector
    worker = inspector._ready
    assert worker is not None
    worker.send_signal(signal.SIGSTOP)
    answers: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: answers.append(upload(filling, "json", b"[1]"))
    )
    asking.start()
    deadline = time.monotonic() + 60
    while inspector._ready is worker and time.monotonic() < deadline:
        time.sleep(0.001)
    worker.kill()
    asking.join(60)
    (answer,) = answers
    assert problem(answer) == MISMATCH
    assert CRASHED in answer.json()["detail"]
    assert not list(filling.settings.spool_directory.iterdir())
    assert upload(filling, "json", b"[1]", "next").status_code == 201
