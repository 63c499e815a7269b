"""A store in a bucket of Akave O3, or of any other service with an S3 API.

``obstore`` reads, as it needs the least processor time and has async streams;
``botocore`` does all else, as it can guard the end of an upload in parts, list and
abort uploads, and send a file without holding it in memory (ADR 10).

Every request is tried again within one time budget. What is read is measured: a store
or proxy that answers other bytes than were asked for is never believed.
"""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC
from typing import TYPE_CHECKING, Any, TypeAlias

import structlog

from vision_o3.errors import StorageError, TransientStorageError
from vision_o3.storage.base import ObjectMeta, PutIfAbsent, StoreCapabilities
from vision_o3.storage.keys import is_key, parse_key
from vision_o3.storage.obstore_adapter import check_key
from vision_o3.storage.s3_client import BucketClient, S3Options, check_address
from vision_o3.storage.s3_content import BytesContent, FileContent, unreadable
from vision_o3.storage.s3_reading import Reader
from vision_o3.storage.s3_writing import Writer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from datetime import datetime
    from pathlib import Path

__all__ = ["S3Options", "S3Store"]

_NO_KEY = {"NoSuchKey", "http-404"}
_CANNOT = {
    "NotImplemented",
    "MethodNotAllowed",
    "http-501",
    "http-405",
    "AccessDenied",
    "http-403",
}
"""How stores refuse what they do not know, or what the keys may not."""
_REFUSED = {"AccessDenied", "http-403", "InvalidRequest", "ObjectLocked"}
"""How stores keep what is under a retention."""
_NO_LOCK = "ObjectLockConfigurationNotFoundError"
_DENIED = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "RequestTimeTooSkewed",
    "NoSuchBucket",
    "ExpiredToken",
}
"""Refusals that say nothing of what a store can do."""

_Past: TypeAlias = tuple[str, str]
"""A name in the bucket, and the id of one of its versions."""

_log = structlog.get_logger(__name__)


class S3Store:
    """Objects in a bucket, below a prefix which may be empty or like ``a/b``.

    Opening it asks the store for nothing, unless it has to find out whether the store
    honours conditional writes.

    Raises:
        TransientStorageError, StorageError: Found out when the store was opened: it
            cannot be reached or used; the message says what to do.
    """

    def __init__(self, bucket: str, prefix: str, options: S3Options) -> None:
        if prefix and not is_key(prefix):
            raise StorageError(f"{prefix!r} cannot be the prefix of objects.")
        check_address(bucket, options)
        self._prefix = f"{prefix}/" if prefix else ""
        self._client = BucketClient(bucket, options)
        self._reader = Reader(bucket, prefix, options)
        self._writer = Writer(self._client, self._prefix, self._reader)
        if options.conditional_put is None:
            try:
                self._writer.find_out()
            except BaseException:
                self.close()
                raise
        guarded = self._writer.conditional and self._writer.conditional_parts
        self._capabilities = StoreCapabilities(
            PutIfAbsent.ATOMIC if guarded else PutIfAbsent.EMULATED, presign=True
        )

    @property
    def capabilities(self) -> StoreCapabilities:
        """Say what this store can do; see ``ObjectStore.capabilities``."""
        return self._capabilities

    # ----------------------------------------------------------------- writing

    def put(self, key: str, content: bytes) -> None:
        """Store a small object; see ``ObjectStore.put``."""
        check_key(key)
        self._writer.put(key, BytesContent(content))

    def put_file(self, key: str, path: Path) -> None:
        """Store a file; see ``ObjectStore.put_file``."""
        check_key(key)
        try:
            file = path.open("rb")
        except OSError as error:
            raise unreadable() from error
        with file:
            self._writer.put(key, FileContent(file.fileno()))

    def delete(self, key: str) -> None:
        """Remove an object; see ``ObjectStore.delete``."""
        check_key(key)
        try:
            self._client.insist("delete_object", key, Key=self._prefix + key)
        except StorageError as error:
            if error.values.get("reason") not in _NO_KEY:
                raise

    def remove_unfinished(self, prefix: str, *, before: datetime) -> int:
        """Abort uploads in parts; see ``ObjectStore.remove_unfinished``.

        Nothing is removed where the store cannot list them, which is logged: there the
        store's own rules must (a lifecycle rule for incomplete uploads).
        """
        if not _begins_keys(prefix):
            return 0
        try:
            return self.abort_uploads(prefix, before=before)
        except StorageError as error:
            if error.values.get("reason") not in _CANNOT:
                raise
            _log.warning("store.cannot_list_uploads", reason=error.values["reason"])
            return 0

    def abort_uploads(self, prefix: str, *, before: datetime) -> int:
        """Abort uploads in parts as ``remove_unfinished``, or say that it cannot be.

        Raises:
            TransientStorageError, StorageError: The store failed, or cannot list them.
        """
        removed = 0
        for page in self._client.pages(
            "list_multipart_uploads",
            "the list of unfinished uploads",
            {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"},
            Prefix=self._prefix + prefix,
        ):
            for upload in page.get("Uploads", ()):
                name, begun, number = self._fields(
                    upload, "Key", "Initiated", "UploadId"
                )
                key = self._own_key(name, prefix)
                ours = key is not None and (prefix or parse_key(key) is not None)
                if key is not None and ours and begun < before:
                    removed += self._writer.abort(key, number)
        return removed

    def erase_history(self, prefix: str) -> int:
        """Delete what objects were before; see ``KeepsHistory.erase_history``."""
        if not _begins_keys(prefix):
            return 0
        old, marks = self._history(prefix)
        # Marks last: without its mark, what was deleted would be there again.
        for name, version in [*old, *marks]:
            self._erase(name, version)
        return len(old) + len(marks)

    def _history(self, prefix: str) -> tuple[list[_Past], list[_Past]]:
        """Return past versions of objects, and marks that say of some: deleted."""
        old: list[_Past] = []
        marks: list[_Past] = []
        for page in self._client.pages(
            "list_object_versions",
            "the list of versions",
            {"KeyMarker": "NextKeyMarker", "VersionIdMarker": "NextVersionIdMarker"},
            Prefix=self._prefix + prefix,
        ):
            for found, is_mark in (
                *((each, False) for each in page.get("Versions", ())),
                *((each, True) for each in page.get("DeleteMarkers", ())),
            ):
                name, version, current = self._fields(
                    found, "Key", "VersionId", "IsLatest"
                )
                if self._own_key(name, prefix) is None or (current and not is_mark):
                    continue
                (marks if is_mark and current else old).append((name, version))
        return old, marks

    def _erase(self, name: str, version: str) -> None:
        """Delete one version for good; past a retention, if that may be."""
        what = f"an old version of {name}"
        given = {"Key": name, "VersionId": version}
        try:
            self._client.insist("delete_object", what, **given)
        except StorageError as error:
            if error.values.get("reason") not in _REFUSED:
                raise
            self._client.insist(
                "delete_object", what, **given, BypassGovernanceRetention=True
            )

    # ----------------------------------------------------------------- reading

    def get(self, key: str, *, max_size: int) -> bytes:
        """Return a whole object; see ``ObjectStore.get``."""
        check_key(key)
        return self._reader.get(key, max_size)

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Return the bytes ``[start, end)``; see ``ObjectStore.get_range``."""
        check_key(key)
        return self._reader.get_range(key, start, end)

    async def stream(
        self, key: str, start: int, end: int
    ) -> AsyncGenerator[bytes | memoryview]:
        """Yield the bytes ``[start, end)``; see ``ObjectStore.stream``.

        One request, begun again where it broke off. All pieces but the last have
        exactly 1 MiB.
        """
        check_key(key)
        async with aclosing(self._reader.stream(key, start, end)) as pieces:
            async for piece in pieces:
                yield piece

    def open_file(self, key: str) -> int | None:  # noqa: ARG002
        """Return ``None``: the objects are no files of this machine."""
        return None

    def find(self, key: str) -> ObjectMeta | None:
        """Return what is known of an object; see ``ObjectStore.find``."""
        check_key(key)
        return self._reader.find(key)

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """Yield objects by prefix; see ``ObjectStore.list``."""
        if not _begins_keys(prefix):
            return
        for page in self._client.pages(
            "list_objects_v2",
            "the list of objects",
            {"ContinuationToken": "NextContinuationToken"},
            Prefix=self._prefix + prefix,
        ):
            for found in page.get("Contents", ()):
                name, size, at = self._fields(found, "Key", "Size", "LastModified")
                key = self._own_key(name, prefix)
                if key is not None:
                    yield ObjectMeta(key, size, at.astimezone(UTC))

    def presign_get(self, key: str, *, ttl_s: int) -> str | None:
        """Return a URL to read by; see ``ObjectStore.presign_get``."""
        check_key(key)
        return self._reader.presign("GET", key, ttl_s)

    def presign_put(self, key: str, *, ttl_s: int) -> str | None:
        """Return a URL to store by; see ``ObjectStore.presign_put``."""
        check_key(key)
        return self._reader.presign("PUT", key, ttl_s)

    def versioning(self) -> bool | None:
        """Say whether the bucket keeps versions; ``None``: the store does not say."""
        answer = self._fact("get_bucket_versioning")
        return None if answer is None else answer.get("Status") == "Enabled"

    def object_lock(self) -> str | None:
        """Return the bucket's Object Lock in words; empty if it has none.

        ``None``: the store does not say.
        """
        answer = self._fact("get_object_lock_configuration")
        if answer is None:
            return None
        found = answer.get("ObjectLockConfiguration", {})
        if found.get("ObjectLockEnabled") != "Enabled":
            return ""
        rule = found.get("Rule", {}).get("DefaultRetention", {})
        if "Mode" not in rule:
            return "no default retention"
        years = rule.get("Years")
        lasts = f"{years} years" if years else f"{rule.get('Days')} days"
        return f"{rule['Mode']}, {lasts}"

    def close(self) -> None:
        """Free connections and threads; see ``ObjectStore.close``."""
        self._writer.close()
        self._client.close()

    def _fact(self, operation: str) -> dict[str, Any] | None:
        """Ask about the bucket; ``None`` where the store does not answer that."""
        what = operation.replace("_", " ")
        try:
            return self._client.insist(operation, what)
        except TransientStorageError:
            raise
        except StorageError as error:
            reason = error.values.get("reason")
            if reason == _NO_LOCK:
                return {}
            if reason in _DENIED:
                raise
            return None

    def _fields(self, listed: dict[str, Any], *names: str) -> tuple[Any, ...]:
        return tuple(self._client.field(listed, name, "a list") for name in names)

    def _own_key(self, name: str, prefix: str) -> str | None:
        """Return the key of a name in the bucket, unless it is none of ours."""
        key = name.removeprefix(self._prefix)
        own = name.startswith(self._prefix) and key.startswith(prefix) and is_key(key)
        return key if own else None


def _begins_keys(prefix: str) -> bool:
    """Say whether any key can begin with this text."""
    return not prefix or is_key(prefix) or is_key(f"{prefix}0")
