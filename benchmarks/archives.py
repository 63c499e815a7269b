"""Archives of 20,000 images: inspected whole, and one file read out of a large one.

    python benchmarks/archives.py                       # everything
    python benchmarks/archives.py zip tar.gz            # parts
    python benchmarks/archives.py --images 20000 --repeats 7 --home /dev/shm

Parts: `zip` and `tar.gz` (manifest, index and facts of 200 MB, against reading every
file with `zipfile` or `tarfile` and hashing it with plain sha256; peak memory), `one`
(bytes read for one file of a 1 GiB archive, in leaves of 1 MiB as the gateway does),
`diff` (the whole command, against a gateway).

The images have a JPEG header and bytes of a little less than 8 bits of entropy, so that
deflate finds something, as it does in real ones.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import harness
from harness import MIB, Contender

from vision_o3.formats.limits import Limits
from vision_o3.formats.manifests import inspect_archive
from vision_o3.formats.member_index import MemberIndex
from vision_o3.formats.members import read_member

if TYPE_CHECKING:
    from collections.abc import Iterator

LEAF = MIB
CONTAINERS = ("zip", "tar.gz")
PEAK = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1])))
import archives
before = archives.harness.peak_memory("self")
archives.inspect(Path(sys.argv[2]), sys.argv[3])
print(before, archives.harness.peak_memory("self"))
"""


def images(count: int, size: int, seed: int = 1) -> Iterator[tuple[str, bytes]]:
    """Yield paths and contents of images, of half to one and a half times the size."""
    randomness = random.Random(seed)
    skew = bytes(value if value >= 24 else value % 8 for value in range(256))
    start = b"\xff\xd8\xff\xe0\x00\x10JFIF\0\1\1\0\0\1\0\1\0\0"
    for number in range(count):
        width, height = randomness.choice(((640, 480), (480, 640), (500, 375)))
        frame = (
            b"\xff\xc0\0\x0b\x08" + struct.pack(">2H", height, width) + b"\1\1\x11\0"
        )
        length = randomness.randrange(size // 2, size * 3 // 2)
        body = randomness.randbytes(length).translate(skew)
        split = ("train", "val", "test")[number * 10 // count // 4]
        path = f"images/{split}/{number:06}.jpg"
        yield path, start + frame + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + body + b"\xff\xd9"


def make_archive(path: Path, container: str, count: int, size: int, level: int) -> None:
    """Write an archive of images."""
    if container == "zip":
        with zipfile.ZipFile(
            path, "w", zipfile.ZIP_DEFLATED, compresslevel=level
        ) as made:
            for name, content in images(count, size):
                made.writestr(name, content)
        return
    with tarfile.open(path, "w:gz", compresslevel=level) as archive:
        for name, content in images(count, size):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def read_with_zipfile(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            hashlib.sha256(archive.read(member)).digest()


def read_with_tarfile(path: Path) -> None:
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            hashlib.sha256(content.read()).digest()


def inspect(path: Path, container: str) -> tuple[bytes, bytes]:
    """Return the manifest and the index of an archive."""
    manifest, index = io.BytesIO(), io.BytesIO()
    with path.open("rb") as file:
        inspect_archive(
            file,
            path.stat().st_size,
            container,  # type: ignore[arg-type]  # one of the two
            Limits(),
            manifest=manifest,
            index=index,
        )
    return manifest.getvalue(), index.getvalue()


def timed(run: object, *arguments: object) -> float:
    started = time.perf_counter()
    run(*arguments)  # type: ignore[operator]  # any function
    return time.perf_counter() - started


def bench_whole(home: Path, container: str, count: int, repeats: int) -> None:
    path = home / "dataset"
    make_archive(path, container, count, 10_000, level=6)
    plain = read_with_zipfile if container == "zip" else read_with_tarfile
    harness.compare(
        f"{count:,} images in a {container}",
        [
            Contender(
                f"{plain.__name__.rpartition('_')[2]} and sha256",
                lambda: timed(plain, path),
            ),
            Contender(
                "manifest, index and facts", lambda: timed(inspect, path, container)
            ),
        ],
        size=path.stat().st_size,
        repeats=repeats,
    )
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(Path(__file__).parent), str(path), container],
        check=True,
        capture_output=True,
        text=True,
    )
    before, peak = (int(value) / MIB for value in done.stdout.split())
    print(f"\nPeak memory: {peak:.0f} MiB, of which {before:.0f} before.")


def bench_one(home: Path) -> None:
    print("\n### One file of an archive of 1 GiB\n")
    print("| | archive MiB | file KiB | read MiB | read ÷ archive | ms |")
    print("|---|--:|--:|--:|--:|--:|")
    for container in CONTAINERS:
        path = home / "dataset"
        make_archive(path, container, 10_000, 110_000, level=1)
        manifest, content = inspect(path, container)
        files = json.loads(manifest)["files"]
        index = MemberIndex.decode(content)
        size = path.stat().st_size
        for number in (0, len(files) // 2, len(files) - 1):
            leaves: set[int] = set()

            def read(
                start: int, end: int, path: Path = path, leaves: set[int] = leaves
            ) -> Iterator[bytes]:
                with path.open("rb") as file:
                    while start < end:
                        leaf = start // LEAF
                        leaves.add(leaf)
                        file.seek(start)
                        piece = file.read(min(end, (leaf + 1) * LEAF) - start)
                        yield piece
                        start += len(piece)

            started = time.perf_counter()
            for _ in read_member(index, number, read, 0, files[number]["size"]):
                pass
            taken = time.perf_counter() - started
            print(
                f"| {container}, file {number} | {size / MIB:,.0f} "
                f"| {files[number]['size'] / 1024:.0f} | {len(leaves)} "
                f"| {len(leaves) * LEAF / size:.2%} | {taken * 1000:.1f} |"
            )
        path.unlink()


def bench_diff(home: Path, count: int, repeats: int) -> None:
    """Time the whole command `vision-o3 dataset diff`, first and again."""
    old = dict(images(count, 1000))
    new = dict(old)
    for number, path in enumerate(list(old)):
        if number % 100 == 0:
            new[f"moved/{number}.jpg"] = new.pop(path)
        elif number % 100 == 1:
            new[path] += b"changed"
    with harness.gateway(home) as gateway:
        environment = {
            **os.environ,
            "VISION_O3_URL": gateway.url,
            "VISION_O3_CLIENT_ID": gateway.client_id,
            "VISION_O3_CLIENT_SECRET": gateway.client_secret,
            "VISION_O3_CACHE": str(home / "cache"),
        }
        command = [sys.executable, "-m", "vision_o3", "dataset"]
        for files in (old, new):
            path = home / "d.zip"
            with zipfile.ZipFile(path, "w") as made:
                for name, content in files.items():
                    made.writestr(name, content)
            push = [*command, "push", str(path), "--name", "d"]
            subprocess.run(push, env=environment, check=True, capture_output=True)
        diff = [*command, "diff", "d", "1", "2"]

        def cold() -> float:
            shutil.rmtree(home / "cache", ignore_errors=True)
            return harness.timed(diff, env=environment)

        def warm() -> float:
            return harness.timed(diff, env=environment)

        harness.compare(
            f"`vision-o3 dataset diff` of {count:,} files",
            [Contender("nothing cached", cold), Contender("manifests cached", warm)],
            size=path.stat().st_size,
            repeats=repeats,
        )
        done = subprocess.run(
            diff, env=environment, check=True, capture_output=True, text=True
        )
        print(f"\n{done.stdout.splitlines()[-1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = [*CONTAINERS, "one", "diff"]
    parser.add_argument("parts", nargs="*", help="default: all", metavar="PART")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--home", default="/dev/shm", help="where files lie")  # noqa: S108 - memory-backed on purpose
    options = parser.parse_args()
    if unknown := set(options.parts) - set(parts):
        parser.error(f"no such part: {', '.join(unknown)}; there are {parts}")
    harness.describe_machine()
    for part in options.parts or parts:
        with tempfile.TemporaryDirectory(dir=options.home) as directory:
            if part == "one":
                bench_one(Path(directory))
            elif part == "diff":
                bench_diff(Path(directory), options.images, options.repeats)
            else:
                bench_whole(Path(directory), part, options.images, options.repeats)


if __name__ == "__main__":
    main()
