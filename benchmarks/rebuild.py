"""The index of 10,000 versions, rebuilt from their records.

    python benchmarks/rebuild.py                              # SQLite, a directory
    python benchmarks/rebuild.py --versions 1000000 --lines 100000
    python benchmarks/rebuild.py --database postgresql://root@127.0.0.1:5432/postgres
    python benchmarks/rebuild.py --store s3://bucket/prefix   # with the S3 settings

A database of its own is made beside the one named, and dropped at the end. The store
is filled with records as publishing writes them; what is there already, from a run
before, is used again. Artifacts are of 64 bytes, as nothing reads them.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import harness

from vision_o3.content.dag import cid_of_bytes
from vision_o3.db.engine import Database
from vision_o3.db.migrate import migrate
from vision_o3.errors import AlreadyExistsError
from vision_o3.gateway.o3_client import O3Client
from vision_o3.registry.claims import Timing
from vision_o3.registry.rebuilding import Rebuilder
from vision_o3.registry.records import encode_record
from vision_o3.registry.values import Version
from vision_o3.settings import Settings
from vision_o3.storage.keys import version_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vision_o3.storage.base import ObjectStore

BORN = datetime(2026, 11, 24, tzinfo=UTC)
TENSORS = [
    {"name": f"tensor_{number}", "dtype": "float32", "shape": [1, 3, 640, number]}
    for number in range(20)
]


def versions(count: int, lines: int) -> Iterator[tuple[bytes, Version, bytes]]:
    """Yield artifacts, versions and records, as publishing would store them."""
    for at in range(count):
        line, number = at % lines, at // lines + 1
        name = f"model-{line:06}"
        content = at.to_bytes(64, "big")
        keys = version_keys("models", name, number, "onnx")
        version = Version(
            collection="models",
            id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{name}/{number}")),
            name=name,
            version=number,
            cid=cid_of_bytes(content),
            file_format="onnx",
            file_size=len(content),
            description=f"Trained on batch {at}, für den Test.",
            tags=("edge", f"t{at % 50}"),
            owner_id="ann",
            publisher="bob",
            created_at=BORN + timedelta(seconds=at),
            facts={
                "kind": "onnx",
                "ir_version": 10,
                "opset_import": {"ai.onnx": 17},
                "inputs": TENSORS,
                "outputs": TENSORS,
                "operators": {f"Operator{kind}": kind for kind in range(30)},
                "node_count": 320,
                "custom_domains": [],
                "parameters": 2_624_080,
                "initializer_count": 178,
                "quantized": False,
            },
            object_key=keys.artifact,
            sidecar_key=None,
            framework="onnx",
            model_type="detection",
        )
        line_id = str(uuid.uuid5(uuid.NAMESPACE_OID, name))
        record = encode_record(version, line_id=line_id, line_created_at=BORN)
        yield content, version, record


def fill(store: ObjectStore, count: int, lines: int) -> None:
    """Store what is not there yet."""

    def put(key: str, content: bytes) -> None:
        try:
            store.put(key, content)
        except AlreadyExistsError:
            return

    there = {found.key for found in store.list()}
    with ThreadPoolExecutor(32) as pool:
        for content, version, record in versions(count, lines):
            keys = version_keys("models", version.name, version.version, "onnx")
            for key, body in ((keys.artifact, content), (keys.record, record)):
                if key not in there:
                    pool.submit(put, key, body)


@contextmanager
def new_database(url: str) -> Iterator[Database]:
    """Make an empty database beside the one named; drop it at the end."""
    if url.startswith("sqlite"):
        with tempfile.TemporaryDirectory() as home:
            url = f"sqlite:///{home}/registry.db"
            migrate(url)
            database = Database(url)
            yield database
            database.close()
        return
    import psycopg  # noqa: PLC0415 - only here

    name = f"vision_o3_bench_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(f'CREATE DATABASE "{name}"')
        try:
            own = f"{url.rsplit('/', 1)[0]}/{name}"
            migrate(own)
            database = Database(own)
            yield database
            database.close()
        finally:
            server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--lines", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--database", default="sqlite")
    parser.add_argument("--store", default="", help="default: a directory of its own")
    arguments = parser.parse_args()
    harness.describe_machine()
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(
            store=arguments.store or str(Path(home) / "objects"),
            jwt_secret="-" * 48,
        )
        with O3Client.open(settings) as client:
            fill(client.store, arguments.versions, arguments.lines)
            added: list[float] = []
            again: list[float] = []
            for _ in range(arguments.repeats):
                with new_database(arguments.database) as database:
                    rebuilder = Rebuilder(database, client.store, Timing())
                    for taken in (added, again):
                        begun = time.perf_counter()
                        rebuilt = rebuilder.rebuild()
                        taken.append(time.perf_counter() - begun)
                        assert not rebuilt.unreadable, rebuilt.unreadable[:3]
                        assert rebuilt.added + rebuilt.present == arguments.versions
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"\n{arguments.versions:,} versions in {arguments.lines:,} lines, ", end="")
    print(f"{client.location.split('://')[0]} → {arguments.database.split(':')[0]}\n")
    print("| | median s | min–max s | versions/s |")
    print("|---|--:|--:|--:|")
    for name, taken in (("into an empty index", added), ("again", again)):
        median = statistics.median(taken)
        print(
            f"| {name} | {median:.2f} | {min(taken):.2f}–{max(taken):.2f} "
            f"| {arguments.versions / median:,.0f} |"
        )
    print(f"\nPeak memory {peak} MiB; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
