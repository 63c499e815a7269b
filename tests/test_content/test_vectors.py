"""Our CIDs and sidecars against those of independent implementations."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from vision_o3.content.cid import CID, DAG_PB
from vision_o3.content.dag import ContentHasher, Dag, DagBuilder
from vision_o3.content.leaves import LeafTable
from vision_o3.content.profile import UNIXFS_V1_2025, ImportProfile
from vision_o3.content.sidecar import max_sidecar_size

VECTORS = Path(__file__).parents[1] / "vectors"
HASHED = 50_000_000
"""Bytes; larger files are built from the digests of their leaves."""


def load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((VECTORS / name).read_text())
    return document


SHARED = load("shared.json")
BOUNDARIES = load("boundaries.json")
SHAPES = load("shapes.json")

SHARED_RUN = bytes(i * 31 % 251 for i in range(251))
OUR_RUN = bytes((i * 167 + 13) % 241 for i in range(241))


def content(run: bytes, start: int, end: int) -> bytes:
    at = start % len(run)
    return (run * ((at + end - start) // len(run) + 1))[at : at + end - start]


@lru_cache(maxsize=4096)
def digest(run: bytes, at: int, size: int) -> bytes:
    return hashlib.sha256(content(run, at, at + size)).digest()


def dag_of(run: bytes, size: int, profile: ImportProfile = UNIXFS_V1_2025) -> Dag:
    """Name a periodic file, each different leaf hashed once."""
    builder = DagBuilder(profile)
    for start in range(0, size, profile.chunk_size):
        leaf = min(profile.chunk_size, size - start)
        builder.add_leaf(digest(run, start % len(run), leaf), leaf)
    return builder.finish()


def of_size(vector: dict[str, Any]) -> str:
    return f"{vector['size']}B"


def check_sidecar(dag: Dag, profile: ImportProfile = UNIXFS_V1_2025) -> None:
    sidecar = dag.sidecar()
    if sidecar is None:
        assert dag.root.is_raw
        return
    assert len(sidecar) <= max_sidecar_size(dag.size, profile)
    table = LeafTable.from_sidecar(dag.root, sidecar, profile)
    assert table.size == dag.size
    assert table.count == -(-dag.size // profile.chunk_size)


def test_the_vectors_are_for_our_profile() -> None:
    ours = (UNIXFS_V1_2025.name, UNIXFS_V1_2025.chunk_size, UNIXFS_V1_2025.width)
    assert (SHARED["profile"], SHARED["chunkSize"], SHARED["maxLinks"]) == ours
    theirs = (BOUNDARIES["profile"], BOUNDARIES["chunk_size"], BOUNDARIES["width"])
    assert theirs == ours


@pytest.mark.parametrize(
    "vector", SHARED["vectors"] + SHARED["vectors2GiB"]["vectors"], ids=of_size
)
def test_shared_vectors(vector: dict[str, Any]) -> None:
    dag = dag_of(SHARED_RUN, vector["size"])
    assert str(dag.root) == vector["cid"]
    assert dag.size == vector["size"]
    check_sidecar(dag)


@pytest.mark.parametrize(
    "vector",
    [vector for vector in SHARED["vectors"] if vector["size"] <= HASHED],
    ids=of_size,
)
def test_shared_vectors_hashed_from_bytes(vector: dict[str, Any]) -> None:
    hasher = ContentHasher()
    size = 999_983  # a prime, so that pieces cut leaves at ever other places
    for start in range(0, vector["size"], size):
        hasher.update(content(SHARED_RUN, start, min(start + size, vector["size"])))
    assert hasher.finish() == dag_of(SHARED_RUN, vector["size"])


@pytest.mark.parametrize("vector", BOUNDARIES["vectors"], ids=of_size)
def test_boundaries(vector: dict[str, Any]) -> None:
    dag = dag_of(OUR_RUN, vector["size"])
    assert str(dag.root) == vector["cid"]
    named: list[str] = [str(CID.of_block(DAG_PB, node)) for node in dag.nodes]
    assert named == vector.get("nodes", [])
    sidecar = dag.sidecar() or b""
    assert len(sidecar) == vector.get("sidecar_size", 0)
    if "sidecar_sha256" in vector:
        assert hashlib.sha256(sidecar).hexdigest() == vector["sidecar_sha256"]
    if "sidecar" in vector:
        assert sidecar.hex() == vector["sidecar"]
    check_sidecar(dag)


def test_every_shape_of_up_to_four_levels() -> None:
    profile = ImportProfile("shapes", SHAPES["chunk_size"], SHAPES["width"])
    for vector in SHAPES["vectors"]:
        hasher = ContentHasher(profile)
        hasher.update(content(OUR_RUN, 0, vector["size"]))
        dag = hasher.finish()
        assert str(dag.root) == vector["cid"]
        if "sidecar_sha256" in vector:
            sidecar = dag.sidecar() or b""
            assert hashlib.sha256(sidecar).hexdigest() == vector["sidecar_sha256"]
        check_sidecar(dag, profile)
