"""Versions for tests that need no index."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

from vision_o3.content.dag import Dag
from vision_o3.registry.values import Version


def version_of(dag: Dag, object_key: str) -> Version:
    """Return a model's version whose file is the DAG's, stored under a key."""
    folder, _, name = object_key.rpartition("/")
    stem, _, extension = name.partition(".")
    return Version(
        collection="models",
        id=str(uuid4()),
        name=folder.rpartition("/")[2],
        version=1,
        cid=dag.root,
        file_format=extension,
        file_size=dag.size,
        description="",
        tags=(),
        owner_id="ann",
        publisher="ann",
        created_at=datetime(2026, 11, 25, tzinfo=UTC),
        facts={},
        object_key=object_key,
        sidecar_key=f"{folder}/{stem}.dag.car" if dag.nodes else None,
    )
