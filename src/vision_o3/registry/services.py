"""What the gateway and the commands call: one service for each collection."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from vision_o3.content.manifest import Manifest, entries_at
from vision_o3.content.manifest import compare as compare_manifests
from vision_o3.db import models as tables
from vision_o3.db import queries
from vision_o3.formats.inspection import DATASET_FORMATS, MODEL_FORMATS
from vision_o3.naming import parse_name
from vision_o3.registry.members import Members
from vision_o3.registry.publishing import Publisher
from vision_o3.registry.relaying import Relay
from vision_o3.registry.resolving import Resolver
from vision_o3.registry.values import (
    Page,
    Published,
    Submission,
    Version,
    VersionDifference,
    to_version,
)
from vision_o3.registry.watching import UNWATCHED
from vision_o3.registry.withdrawing import Wish, Withdrawer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from typing import ClassVar

    from vision_o3.content.cid import CID
    from vision_o3.content.manifest import FileEntry
    from vision_o3.db.engine import Database
    from vision_o3.db.queries import LineFilters
    from vision_o3.registry.claims import Timing
    from vision_o3.registry.inspecting import Inspector
    from vision_o3.registry.members import Member
    from vision_o3.registry.resolving import MetadataCache
    from vision_o3.registry.spool import Spooled
    from vision_o3.registry.watching import Watcher
    from vision_o3.storage.base import ObjectStore


_COMPARING = 2
"""Comparisons at the same time: each holds two manifests, parsed (500 bytes a file)."""


class ArtifactService:
    """Publishes, finds and relays the versions of one collection.

    Safe in any thread. All methods but ``kept`` and ``stream`` block.

    Args:
        relay: Reads what is stored; shared by all collections. Not closed here.
        cache: What was resolved, kept in memory; likewise.
        watcher: Is told of the steps of publishing.
    """

    collection: ClassVar[tables.Collection]
    accepted: ClassVar[tuple[str, ...]]
    """The formats that the collection accepts, by extension."""

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        inspector: Inspector,
        timing: Timing,
        relay: Relay | None = None,
        cache: MetadataCache | None = None,
        *,
        watcher: Watcher = UNWATCHED,
    ) -> None:
        self._database = database
        self._store = store
        self._resolver = Resolver(self.collection, database, cache)
        self._withdrawer = Withdrawer(database, store, timing)
        self._relay = relay or Relay(store)
        self._publisher = Publisher(
            self.collection,
            database,
            store,
            inspector,
            accepted=self.accepted,
            timing=timing,
            watcher=watcher,
        )

    def publish(self, submission: Submission, spooled: Spooled) -> Published:
        """Publish a received file; see ``Publisher.publish``.

        Whoever has the answer, or an error that leaves it open whether there is one,
        finds here what is published now.
        """
        try:
            return self._publisher.publish(submission, spooled)
        finally:
            self._resolver.changed(submission.name)

    def check_may_publish(
        self, submission: Submission, may_read: Callable[[str, str], bool]
    ) -> None:
        """Raise unless the publisher may publish to the line; see ``Publisher``."""
        self._publisher.check_may_publish(submission, may_read)

    def withdraw(self, name: str, number: int, wish: Wish) -> Version:
        """Deprecate or block a version, or lift that; see ``Withdrawer.withdraw``.

        Whoever has the answer, or an error, finds here what the version is now.
        """
        try:
            return self._withdrawer.withdraw(self.collection, name, number, wish)
        finally:
            self._resolver.changed(name)

    def forget(
        self, cid: CID, manifest_cid: CID | None = None, index_cid: CID | None = None
    ) -> None:
        """Drop what is kept in memory of the bytes of a content."""
        del manifest_cid, index_cid  # only archives have them
        self._relay.forget(cid)

    def find_latest(self, name: str, cid: CID) -> Version | None:
        """Return a line's current version if it has this content; never a kept one."""
        with self._database.read() as session:
            found = queries.find_latest(session, self.collection, name)
        if found is None or found[1].cid != cid:
            return None
        return to_version(self.collection, *found)

    def latest(self, name: str) -> Version:
        """Return a line's current version; see ``Resolver.latest``."""
        return self._resolver.latest(name)

    def version(self, name: str, number: int) -> Version:
        """Return one version of a line; see ``Resolver.version``."""
        return self._resolver.version(name, number)

    def by_cid(self, cid: CID, lines: frozenset[str] | None = None) -> Version:
        """Return the newest version of a content; see ``Resolver.by_cid``."""
        return self._resolver.by_cid(cid, lines)

    def kept(
        self,
        name: str | None = None,
        number: int | None = None,
        cid: CID | None = None,
    ) -> Version | None:
        """Return an answer that is kept, without blocking; see ``Resolver.kept``."""
        return self._resolver.kept(name, number, cid)

    def history(self, name: str, *, page: int, page_size: int) -> Page[Version]:
        """Return a line's versions, newest first.

        Raises:
            InvalidNameError: Not a name.
            NotFoundError: Nothing is published under it.
        """
        parse_name(name)
        with self._database.read() as session:
            total, rows = queries.history(
                session, self.collection, name, (page - 1) * page_size, page_size
            )
            if not total:
                raise self._resolver.no_line(name)
            items = tuple(to_version(self.collection, *row) for row in rows)
        return Page(items, page, page_size, total)

    def list(
        self, filters: LineFilters, *, sort: str, page: int, page_size: int
    ) -> Page[Version]:
        """Return the current version of each line that passes all filters."""
        with self._database.read() as session:
            total, rows = queries.list_latest(
                session,
                self.collection,
                filters,
                sort,
                (page - 1) * page_size,
                page_size,
            )
            items = tuple(to_version(self.collection, *row) for row in rows)
        return Page(items, page, page_size, total)

    def sidecar(self, version: Version) -> bytes | None:
        """Return the sidecar of a version; see ``Relay.sidecar``."""
        return self._relay.sidecar(version)

    async def read_sidecar(self, version: Version) -> bytes | None:
        """Return the same on an event loop; see ``Relay.read_sidecar``."""
        return await self._relay.read_sidecar(version)

    def stream(
        self, version: Version, start: int, end: int
    ) -> AsyncGenerator[memoryview]:
        """Yield verified bytes of a version; see ``Relay.stream``."""
        return self._relay.stream(version, start, end)

    def presigned_url(self, version: Version, *, ttl_s: int) -> str | None:
        """Return a URL where the store itself serves the version, if it can."""
        return self._store.presign_get(version.object_key, ttl_s=ttl_s)


class ModelService(ArtifactService):
    """The registry's models."""

    collection = tables.MODELS
    accepted = MODEL_FORMATS


class DatasetService(ArtifactService):
    """The registry's datasets, and the files in their archives."""

    collection = tables.DATASETS
    accepted = DATASET_FORMATS

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        inspector: Inspector,
        timing: Timing,
        relay: Relay | None = None,
        cache: MetadataCache | None = None,
        *,
        watcher: Watcher = UNWATCHED,
    ) -> None:
        super().__init__(
            database, store, inspector, timing, relay, cache, watcher=watcher
        )
        self._members = Members(self._relay)
        self._comparing = threading.BoundedSemaphore(_COMPARING)

    def forget(
        self, cid: CID, manifest_cid: CID | None = None, index_cid: CID | None = None
    ) -> None:
        """Drop what is kept in memory of a content, and of its listings."""
        super().forget(cid)
        self._members.forget(manifest_cid, index_cid)

    def manifest(self, version: Version) -> bytes:
        """Return a version's manifest; see ``Members.manifest``."""
        return self._members.manifest(version)

    def files(self, version: Version, *, page: int, page_size: int) -> Page[FileEntry]:
        """Return some of the files of a version's archive, in the manifest's order.

        Raises:
            VisionO3Error: As ``manifest`` says.
        """
        total, entries = entries_at(
            self.manifest(version), (page - 1) * page_size, page_size
        )
        return Page(tuple(entries), page, page_size, total)

    def find_file(self, version: Version, path: str) -> Member:
        """Return one file of a version's archive; see ``Members.find``."""
        return self._members.find(version, path)

    def stream_file(
        self, member: Member, start: int, end: int
    ) -> AsyncGenerator[memoryview]:
        """Yield verified bytes of a file; see ``Members.stream``."""
        return self._members.stream(member, start, end)

    def compare(self, before: Version, after: Version) -> VersionDifference:
        """Return what changed from one version to another.

        Files are compared by the manifests, where both are archives; annotations by
        what was read of them when they were published.

        Raises:
            VisionO3Error: As ``manifest`` says.
        """
        files = None
        if before.manifest_cid is not None and after.manifest_cid is not None:
            with self._comparing:
                files = compare_manifests(
                    Manifest(self.manifest(before)), Manifest(self.manifest(after))
                )
        return VersionDifference(before, after, files)
