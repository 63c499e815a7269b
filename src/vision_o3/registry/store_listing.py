"""One listing of a whole store, kept on disk, with the records in order.

A registry of a million versions has some four million objects. What is asked of their
listing needs an index, not memory: it is held in a nameless SQLite file, which is gone
with the process.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Self

from vision_o3.errors import StorageError
from vision_o3.storage.keys import EXTENSIONS, parse_key, version_keys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from vision_o3.storage.base import ObjectMeta, ObjectStore

_TABLE = """
CREATE TABLE objects (
    key TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    collection TEXT NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    is_record INTEGER NOT NULL,
    withdrawal INTEGER NOT NULL
) WITHOUT ROWID
"""
_INDEX = (
    "CREATE INDEX places "
    "ON objects (collection, name, version, is_record, size, withdrawal)"
)
_ANY_EXTENSION = {name: min(known) for name, known in EXTENSIONS.items()}


def record_key(collection: str, name: str, version: int) -> str:
    """Return where a version's record lies, whatever its artifact is."""
    return version_keys(collection, name, version, _ANY_EXTENSION[collection]).record


class RecordObject(NamedTuple):
    """A version's record, as the store lists it."""

    collection: str
    name: str
    version: int
    key: str
    size: int
    withdrawal: int
    """The number of the last decision on the version; 0: there is none."""


class Unrecorded(NamedTuple):
    """A version of which the store has objects, but no record."""

    collection: str
    key: str
    """One of the objects."""
    record_key: str
    """Where the record would be."""


class StoreListing:
    """What a store held when it was listed, but for keys that no version can have.

    Close it, or use it as a context manager. For one thread.

    Raises:
        StorageError: The store cannot be listed, or there is no room for the listing.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._table = sqlite3.connect("", isolation_level=None)
        try:
            with _our_errors():
                self._table.execute("PRAGMA journal_mode = OFF")
                self._table.execute(_TABLE)
                self._table.execute("BEGIN")
                # A store may list a key twice that is written meanwhile.
                self._table.executemany(
                    "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?)",
                    _rows(store.list()),
                )
                self._table.execute(_INDEX)
                self._table.execute("COMMIT")
                self.records: int = self._table.execute(
                    "SELECT count(*) FROM objects WHERE is_record"
                ).fetchone()[0]
        except BaseException:
            self._table.close()
            raise

    def size(self, key: str) -> int | None:
        """Return an object's size in bytes; ``None`` if it was not there."""
        with _our_errors():
            found = self._table.execute(
                "SELECT size FROM objects WHERE key = ?", (key,)
            ).fetchone()
        return None if found is None else int(found[0])

    def in_order(self) -> Iterator[RecordObject]:
        """Yield all records: models, then datasets; by line; by number."""
        with _our_errors():
            for row in self._table.execute(
                "SELECT collection, name, version, key, size, "
                "(SELECT max(withdrawal) FROM objects AS each "
                "WHERE each.collection = objects.collection "
                "AND each.name = objects.name AND each.version = objects.version) "
                "FROM objects "
                "WHERE is_record ORDER BY collection DESC, name, version"
            ):
                yield RecordObject(*row)

    def unrecorded(self) -> Iterator[Unrecorded]:
        """Yield the versions that have objects but no record, in the same order."""
        with _our_errors():
            for collection, name, version, key in self._table.execute(
                "SELECT collection, name, version, min(key) FROM objects "
                "GROUP BY collection, name, version HAVING NOT max(is_record) "
                "ORDER BY collection DESC, name, version"
            ):
                yield Unrecorded(collection, key, record_key(collection, name, version))

    def close(self) -> None:
        """Remove the listing. May be called any number of times."""
        self._table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _rows(found: Iterator[ObjectMeta]) -> Iterator[tuple[str | int, ...]]:
    for each in found:
        parsed = parse_key(each.key)
        if parsed is None:
            continue
        place = parsed.collection, parsed.name, parsed.version
        is_record = each.key == record_key(*place)
        yield each.key, each.size, *place, is_record, parsed.withdrawal


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(
            "There is no room for the listing of the store in the directory for "
            f"temporary files ({error}). Free some, or name another by TMPDIR.",
        ) from error
