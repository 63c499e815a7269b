"""Purging: delete what the law forces to be deleted, and say that it was.

A content is purged, not a version: versions of equal content share its objects. First
every version of it is said to be purged, in the store and in its row, and loses what
its publisher said of it; from then on nothing of it is served. Then the objects go, and
the records are replaced by reduced ones, so that a rebuilt index says the same. The
numbers stay taken. Each step can be done again, so whoever is broken off runs it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from vision_o3.db import queries, withdrawals
from vision_o3.errors import (
    AlreadyExistsError,
    ConfigurationError,
    LimitExceededError,
    ObjectNotFoundError,
    StorageError,
    TransientStorageError,
)
from vision_o3.registry.hot_cache import forget_content
from vision_o3.registry.records import MAX_RECORD_SIZE, encode_record
from vision_o3.registry.store_listing import record_key
from vision_o3.registry.withdrawal_records import MAX_WITHDRAWAL_SIZE
from vision_o3.registry.withdrawing import Withdrawer
from vision_o3.storage.base import KeepsHistory
from vision_o3.storage.keys import parse_key, version_prefix, withdrawal_key

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from typing import Protocol

    from vision_o3.content.cid import CID
    from vision_o3.db.engine import Database
    from vision_o3.registry.claims import Timing
    from vision_o3.registry.values import Version
    from vision_o3.registry.withdrawing import Wish
    from vision_o3.storage.base import ObjectStore

    class Keeper(Protocol):
        """Keeps something of contents in memory."""

        def forget(
            self,
            cid: CID,
            manifest_cid: CID | None = None,
            index_cid: CID | None = None,
        ) -> None:
            """Drop what is kept of a content and of its listings."""
            ...


_EVER = datetime.max.replace(tzinfo=UTC)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Purged:
    """What a purging came to."""

    cid: CID
    versions: tuple[Version, ...]
    """All that had the content."""
    deleted: tuple[str, ...]
    """Keys of objects that were deleted from the store just now."""
    deleted_from_second: tuple[str, ...]
    """Likewise, from the second store."""
    cache_bytes: int
    """Removed from this machine's cache."""
    old_versions: int = 0
    """Of these and other objects, which the stores had kept, and that are gone too."""
    kept: tuple[str, ...] = ()
    """Why a store may still keep old versions, in a sentence each."""


class Purger:
    """Purges contents. Safe in any number of processes, beside gateways.

    Args:
        database: Says which versions there are.
        store: Where the objects are.
        second: A second store, if there is one, from which they are deleted too.
        timing: By which clock.
        cache_directory: Where the gateways of this machine keep blocks, if anywhere.
    """

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        second: ObjectStore | None,
        timing: Timing,
        cache_directory: Path | None = None,
    ) -> None:
        self._database = database
        self._store = store
        self._second = second
        self._withdrawer = Withdrawer(database, store, timing)
        self._cache_directory = cache_directory

    def purge(self, cid: CID, wish: Wish) -> Purged:
        """Delete a content, and say of all its versions that they were purged.

        Args:
            cid: The content.
            wish: Of state ``purged``, with the reason, and who wants it.

        Raises:
            NotFoundError: No version has this content.
            StorageError: A store failed, or has still what it was told to delete.
            ConfigurationError: The second store, or the index, says what cannot be.
            DatabaseUnavailableError: The database did not answer. After any error
                nothing is served of what is said to be purged; run it again.
        """
        versions = self._withdrawer.withdraw_content(cid, wish)
        deleted = self._delete_from(self._store, versions)
        from_second: list[str] = []
        if self._second is not None:
            self._copy_decisions(self._second, versions)
            from_second = self._delete_from(self._second, versions)
        erased, kept = 0, list[str]()
        for name, store in (("store", self._store), ("second store", self._second)):
            try:
                erased += _erase_history(store, versions)
            except TransientStorageError:
                raise
            except StorageError as error:
                kept.append(f"The {name} may keep old versions. {error.message}")
        size = 0
        if self._cache_directory is not None:
            size = forget_content(self._cache_directory, cid)
        with self._database.write() as session:
            for key in {*deleted, *from_second}:
                queries.clear_suspect(session, key)
        _log.info("content.purged", cid=str(cid), objects=len(deleted))
        return Purged(
            cid,
            versions,
            tuple(deleted),
            tuple(from_second),
            size,
            erased,
            tuple(kept),
        )

    def _copy_decisions(self, second: ObjectStore, versions: Iterable[Version]) -> None:
        """Let a second store say of the versions it has that they were purged."""
        for version in versions:
            place = version.collection, version.name, version.version
            if version.withdrawal is None or not second.find(record_key(*place)):
                continue
            key = withdrawal_key(*place, version.withdrawal.number)
            content = self._store.get(key, max_size=MAX_WITHDRAWAL_SIZE)
            try:
                second.put(key, content)
            except AlreadyExistsError as error:
                if _content_at(second, key, MAX_WITHDRAWAL_SIZE) != content:
                    raise ConfigurationError(
                        f"The second store has another decision at {key}. Look at it, "
                        "remove it there, and run this again.",
                    ) from error

    def _delete_from(
        self, store: ObjectStore, versions: Iterable[Version]
    ) -> list[str]:
        """Delete a content's objects from one store; replace the records there.

        Returns:
            The keys of what was deleted.
        """
        deleted: list[str] = []
        for version in versions:
            place = version.collection, version.name, version.version
            # First what is still being written, so that it cannot come to be later.
            store.remove_unfinished(version_prefix(*place), before=_EVER)
            keys = self._keys_of(store, version)
            self._require_own(keys, version)
            for key in keys:
                store.delete(key)
                deleted.append(key)
                _log.info("object.purged", key=key, cid=str(version.cid))
        for version in versions:
            self._replace_record(store, version, is_first=store is self._store)
            left = self._keys_of(store, version)
            if left:
                raise StorageError(
                    f"The store was told to delete {left[0]}, and still has it. Run "
                    "this again; if it stays, delete it by the store's own means.",
                )
        return deleted

    def _keys_of(self, store: ObjectStore, version: Version) -> list[str]:
        """Return the objects that a store has of a version, but for what stays.

        They are those that it names, and whatever else lies beside its record.
        """
        place = version.collection, version.name, version.version
        record, prefix = record_key(*place), version_prefix(*place)
        found = {each.key for each in store.list(prefix)}
        kept = {
            key
            for key in found
            if key == record or ((parsed := parse_key(key)) and parsed.withdrawal)
        }
        elsewhere = {
            key
            for key in _named_by(version)
            if not key.startswith(prefix) and store.find(key)
        }
        return sorted((found - kept) | elsewhere)

    def _require_own(self, keys: Iterable[str], version: Version) -> None:
        """Raise if a version of other content names one of the objects.

        Raises:
            ConfigurationError: It does, so the index is wrong. Nothing was deleted that
                it needs.
        """
        with self._database.read() as session:
            other = withdrawals.find_other_naming(session, tuple(keys), version.cid)
        if other is None:
            return
        line, row = other
        raise ConfigurationError(
            f"Version {row.version} of {line.name!r} names an object of "
            f"{version.collection}/{version.name}/v{version.version} too, though its "
            "content is another: a record, or the index, is wrong. That object was not "
            "deleted. Look which one is right ('vision-o3 admin scrub'), purge or mend "
            "the other version, and run this again.",
        )

    def _replace_record(
        self, store: ObjectStore, version: Version, *, is_first: bool
    ) -> None:
        """Put the reduced record in the place of the whole one."""
        with self._database.read() as session:
            collection = withdrawals.collection_of(version.collection)
            line = queries.find_line(session, collection, version.name)
        if line is None:
            raise StorageError(f"The index has lost the line {version.name!r}.")
        wanted = encode_record(
            version, line_id=str(line.id), line_created_at=line.created_at
        )
        key = record_key(version.collection, version.name, version.version)
        found = _content_at(store, key, MAX_RECORD_SIZE)
        if found == wanted or (found is None and not is_first):
            return
        if found is not None:
            store.delete(key)
        try:
            store.put(key, wanted)
        except AlreadyExistsError as error:  # ours, its answer lost, or another's
            if _content_at(store, key, MAX_RECORD_SIZE) != wanted:
                raise StorageError(
                    f"Another wrote {key} at the same moment. Run this again.",
                ) from error


class Forgetter:
    """Drops what a gateway keeps of contents that were purged, by whomever.

    Nothing of them is served, whatever is kept: this is so that they are gone.

    Args:
        database: Says what was purged.
        keepers: What keeps something in memory.
        cache_directory: Where blocks are kept, if anywhere.
    """

    def __init__(
        self,
        database: Database,
        keepers: Iterable[Keeper],
        cache_directory: Path | None,
    ) -> None:
        self._database = database
        self._keepers = tuple(keepers)
        self._cache_directory = cache_directory

    def forget_purged(self) -> int:
        """Drop it all; return the bytes that were removed from the disk.

        Raises:
            DatabaseUnavailableError: The database did not answer.
        """
        with self._database.read() as session:
            purged = set(withdrawals.purged_contents(session))
        removed = 0
        for cid, manifest_cid, index_cid in purged:
            for keeper in self._keepers:
                keeper.forget(cid, manifest_cid, index_cid)
            if self._cache_directory is not None:
                removed += forget_content(self._cache_directory, cid)
        return removed


def _erase_history(store: object, versions: Iterable[Version]) -> int:
    """Let a store forget what objects of versions were before; return how many.

    Raises:
        TransientStorageError, StorageError: It failed, or does not.
    """
    if not isinstance(store, KeepsHistory):
        return 0
    erased = 0
    for version in versions:
        prefix = version_prefix(version.collection, version.name, version.version)
        elsewhere = (key for key in _named_by(version) if not key.startswith(prefix))
        for each in (prefix, *elsewhere):
            erased += store.erase_history(each)
    return erased


def _named_by(version: Version) -> tuple[str, ...]:
    """Return the keys of what a version consisted of, but for its record."""
    keys = (
        version.object_key,
        version.sidecar_key,
        version.manifest_key,
        version.index_key,
    )
    return tuple(key for key in keys if key is not None)


def _content_at(store: ObjectStore, key: str, most: int) -> bytes | None:
    """Return an object's bytes; ``None`` if there is none, empty if it is too long."""
    try:
        return store.get(key, max_size=most)
    except ObjectNotFoundError:
        return None
    except LimitExceededError:
        return b""
