"""Repair: put the right object in the place of one that is wrong or missing.

The right bytes are on the gateway's disk, verified, *before* the wrong ones are
deleted. The worst that a crash in between leaves is an absent object, which the next
scrub finds and brings back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vision_o3.errors import (
    AlreadyExistsError,
    IntegrityError,
    LimitExceededError,
    NotFoundError,
    ObjectNotFoundError,
    StorageError,
    StorageFullError,
)
from vision_o3.registry.inventory import (
    Kind,
    StoredObject,
    fetch_object,
    read_dag,
    write_file,
)
from vision_o3.registry.records import MAX_RECORD_SIZE, decode_record, encode_record
from vision_o3.registry.withdrawal_records import (
    MAX_WITHDRAWAL_SIZE,
    Decision,
    decode_decision,
    encode_decision,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vision_o3.registry.pacing import PatientStore
    from vision_o3.registry.records import Record
    from vision_o3.registry.spool import Spool
    from vision_o3.registry.values import Version

    _Fetch = Callable[[StoredObject, Version, Path], None]

NO_SECOND = "No second store is set (VISION_O3_SECOND_STORE)."


class Repairer:
    """Replaces objects of published versions, whose keys nobody else writes.

    From the second store, if there is one; a sidecar also from its artifact, which it
    follows from; a record or withdrawal from what the database says. Safe in any
    thread.

    Args:
        store: What is repaired.
        second: Where right bytes may be, under the same keys.
        spool: Where they are kept while they are verified.
        pace: Told of every read, with its bytes; may wait.
    """

    def __init__(
        self,
        store: PatientStore,
        second: PatientStore | None,
        spool: Spool,
        pace: Callable[[int], None],
    ) -> None:
        self._store = store
        self._second = second
        self._spool = spool
        self._pace = pace

    def repair(self, stored: StoredObject, record: Record, *, replace: bool) -> str:
        """Store the right object; return where it is from. Verify it afterwards.

        Args:
            stored: The object.
            record: What the database says of its version.
            replace: Delete what is there, once the right bytes are at hand.

        Raises:
            NotFoundError: Nobody has the right bytes; the message says who was asked.
            StorageFullError: The spool's disk or the store is full.
            StorageError: The store failed. If it did so after the wrong object was
                deleted, that is absent now.
        """
        with self._spool.scratch(stored.file_size) as path:
            source = self._fetch(stored, record, path)
            if replace:
                self._store.delete(stored.key)
            try:
                self._store.put_file(stored.key, path)
            except AlreadyExistsError:
                # Ours, its answer lost, or another repair's: whoever asked verifies.
                return source
        return source

    def _fetch(self, stored: StoredObject, record: Record, path: Path) -> str:
        """Write the right object to a file; return where it is from."""
        if stored.kind is Kind.RECORD:
            self._check_replaceable(stored, record)
            write_file(path, [_encode(record)])
            return "the database"
        if stored.kind is Kind.WITHDRAWAL:
            self._check_absent(stored)
            write_file(path, [_encode_withdrawal(record.version)])
            return "the database"
        asked = []
        sources: dict[str, _Fetch] = {"the second store": self._from_second}
        if stored.kind is Kind.SIDECAR:
            sources["its artifact"] = self._from_artifact
        for source, fetch in sources.items():
            try:
                fetch(stored, record.version, path)
            except StorageFullError:
                raise
            except (IntegrityError, NotFoundError, StorageError) as error:
                asked.append(f"From {source}: {error.message}")
            else:
                return source
        raise NotFoundError(" ".join(asked))

    def _from_second(self, stored: StoredObject, version: Version, path: Path) -> None:
        del version
        if self._second is None:
            raise NotFoundError(NO_SECOND)
        fetch_object(self._second, stored, path, self._pace)

    def _from_artifact(
        self, stored: StoredObject, version: Version, path: Path
    ) -> None:
        del stored
        artifact = StoredObject(
            version.object_key, Kind.ARTIFACT, version.cid, version.file_size
        )
        sidecar = read_dag(self._store, artifact, self._pace).sidecar()
        if sidecar is None:
            raise NotFoundError(f"{artifact.key} is one leaf and has no sidecar.")
        write_file(path, [sidecar])

    def _check_absent(self, stored: StoredObject) -> None:
        """Raise if there is a good withdrawal in the place of a wrong one.

        One that says something else than the database was decided all the same.
        """
        try:
            content = self._store.get(stored.key, max_size=MAX_WITHDRAWAL_SIZE)
            decode_decision(content, stored.key)
        except (IntegrityError, LimitExceededError, ObjectNotFoundError):
            return
        raise NotFoundError(
            "In its place is a good one that says otherwise, so perhaps it is the "
            "database that is wrong. Compare the two, and remove the object if it is "
            "not right."
        )

    def _check_replaceable(self, stored: StoredObject, record: Record) -> None:
        """Raise if the record in the store may be right, and the database wrong.

        A good record of another version or content is no damage: perhaps a wrong
        database was restored.
        """
        try:
            content = self._store.get(stored.key, max_size=MAX_RECORD_SIZE)
            found = decode_record(content, stored.key)
        except (IntegrityError, ObjectNotFoundError):
            return
        if _identity(found) != _identity(record):
            raise NotFoundError(
                "In its place is a good record of another version, so perhaps it is "
                "the database that is wrong. Compare the two, and remove the record if "
                "it is not right."
            )


def _encode_withdrawal(version: Version) -> bytes:
    withdrawal = version.withdrawal
    if withdrawal is None:
        raise NotFoundError("The database does not say that it was withdrawn.")
    decision = Decision(
        version_id=version.id,
        cid=version.cid,
        number=withdrawal.number,
        at=withdrawal.at,
        by=withdrawal.by,
        by_admin=withdrawal.by_admin,
        state=withdrawal.state,
        reason=withdrawal.reason,
    )
    return encode_decision(version, decision)


def _encode(record: Record) -> bytes:
    return encode_record(
        record.version,
        line_id=str(record.line_id),
        line_created_at=record.line_created_at,
    )


def _identity(record: Record) -> tuple[object, ...]:
    return record.line_id, record.version.id, record.version.cid
