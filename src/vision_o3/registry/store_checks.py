"""What an object store can do, found out by trying; for ``admin check-store``.

Objects are stored, read and removed whose keys begin with one new ``probe/<hex>``;
nothing else is touched. Each finding is a sentence that tells an operator what to do.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import urllib.error
import urllib.request
import uuid
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import urlsplit

from vision_o3.errors import AlreadyExistsError, VisionO3Error
from vision_o3.storage.base import PutIfAbsent
from vision_o3.storage.s3 import S3Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from vision_o3.storage.base import ObjectStore

MULTIPART_BYTES = 5 << 20
"""Smallest part of S3; a store to check must cut files from this size up."""
_MULTIPART_FILE = MULTIPART_BYTES + 100_003
"""Two parts, of which the last is short."""
_PROBE_SIZE = 4099
_RANGE = (1021, 3067)
_CLOCK_TOLERANCE = timedelta(minutes=5)
"""A third of the difference at which S3 refuses every request."""
_CLOCK_REFUSED = "RequestTimeTooSkewed"
_RESOLUTION = timedelta(seconds=1)
"""To which S3 rounds the times of objects."""
_URL_TTL_S = 300
_HTTP_TIMEOUT_S = 30.0
_HTTP_OK = 200


class Status(StrEnum):
    """How a capability was found."""

    OK = "ok"
    LIMITED = "limited"
    """Usable; the sentence says within what limits."""
    FAILED = "failed"
    """The gateway needs it, and would fail."""
    UNKNOWN = "unknown"
    """Not tried, since what it needs failed; or the store does not say."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One capability of a store."""

    capability: str
    status: Status
    sentence: str
    """What was found and, unless ``ok``, what to do."""
    reason: str | None = None
    """What the store answered when it refused: its code, or a word of ``storage``'s."""


class HttpAnswer(NamedTuple):
    """What a plain HTTP request was answered."""

    status: int
    body: bytes


class PlainHttp(Protocol):
    """One HTTP request without credentials, as a device sends it."""

    def __call__(self, method: str, url: str, body: bytes | None = None) -> HttpAnswer:
        """Return the answer, whatever its status.

        Raises:
            OSError: There was none.
        """
        ...


def plain_http(method: str, url: str, body: bytes | None = None) -> HttpAnswer:
    """Send one HTTP request by ``urllib``, through no proxy; see ``PlainHttp``."""
    request = urllib.request.Request(url, data=body, method=method)  # noqa: S310 - a URL that the store signed
    if body is not None:
        request.add_header("Content-Type", "application/octet-stream")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_HTTP_TIMEOUT_S) as answer:
            return HttpAnswer(answer.status, answer.read(_PROBE_SIZE + 1))
    except urllib.error.HTTPError as error:
        with error:
            return HttpAnswer(error.code, b"")


def check_store(
    store: ObjectStore,
    *,
    clock: Callable[[], datetime],
    http: PlainHttp,
    reopen: Callable[[], ObjectStore] | None = None,
    direct_downloads: bool = False,
) -> list[Finding]:
    """Return what the store can do, capability by capability.

    What does not apply to a kind of store is left out. What the checks stored is
    removed whatever they meet; if that fails, the finding on ``delete`` says so. Moves
    about 11 MiB where the store is S3.

    Args:
        store: If it is S3: opened with ``conditional_put=False``, so that opening it
            asked for nothing, and with ``multipart_bytes=MULTIPART_BYTES``.
        clock: Tells this machine's time, aware.
        http: Fetches presigned URLs.
        reopen: Opens the store as the settings say, which may find out what it can do,
            and fail. Without it, ``store`` is as the settings say.
        direct_downloads: Whether the gateway will answer with presigned URLs.
    """
    checks = _Checks(store, clock, http, reopen, direct_downloads=direct_downloads)
    try:
        return list(checks.run())
    finally:
        checks.remove_probes()


def reason_of(error: VisionO3Error) -> str | None:
    """Return why a store refused, as its adapter has noted it on the error."""
    reason = error.values.get("reason")
    return reason if isinstance(reason, str) else None


class _Outcome(NamedTuple):
    status: Status
    sentence: str
    reason: str | None = None


class _Step(NamedTuple):
    capability: str
    needs: tuple[str, ...]
    """What must have worked for this to make sense."""
    work: Callable[[], _Outcome]
    """An error of ours that it raises is a failure in that error's words."""


class _Checks:
    """One run: the probes, and what was found so far."""

    def __init__(
        self,
        store: ObjectStore,
        clock: Callable[[], datetime],
        http: PlainHttp,
        reopen: Callable[[], ObjectStore] | None,
        *,
        direct_downloads: bool,
    ) -> None:
        self._store = store
        self._clock = clock
        self._http = http
        self._reopen = reopen
        # Devices would be sent to URLs that do not work.
        self._bad_url = Status.FAILED if direct_downloads else Status.LIMITED
        self._key = f"probe/{uuid.uuid4().hex}"
        # New in every run, so that no answer can be of an earlier one.
        self._content = hashlib.shake_256(self._key.encode()).digest(_PROBE_SIZE)
        self._written: set[str] = set()
        self._statuses: dict[str, Status] = {}
        self._put_at: tuple[datetime, datetime] | None = None
        self._clock_refused: str | None = None

    def run(self) -> Iterator[Finding]:
        for step in self._steps():
            outcome = self._try(step)
            self._statuses[step.capability] = outcome.status
            yield Finding(step.capability, *outcome)

    def remove_probes(self) -> None:
        """Remove what is left of the probes, as far as that works."""
        for key in sorted(self._written):
            try:
                self._store.delete(key)
            except VisionO3Error:
                continue  # the finding on deleting has said it
            self._written.discard(key)

    def _steps(self) -> Iterator[_Step]:
        yield _Step("reach", (), self._reach)
        yield _Step("put", ("reach",), self._put)
        yield _Step("clock", (), self._compare_clocks)
        yield _Step("get", ("put",), self._get)
        yield _Step("put_if_absent", ("get",), self._put_if_absent)
        yield _Step("range", ("put",), self._get_range)
        yield _Step("stream", ("put",), self._stream)
        yield _Step("list", ("put",), self._list)
        s3 = self._store if isinstance(self._store, S3Store) else None
        if s3 is not None:
            yield _Step("multipart", ("get",), self._multipart)
            yield _Step(
                "unfinished_uploads", ("put",), lambda: self._unfinished_uploads(s3)
            )
        if self._store.capabilities.presign:
            yield _Step("presigned_get", ("put",), self._presigned_get)
            yield _Step("presigned_put", ("get",), self._presigned_put)
            yield _Step("private", ("put",), self._private)
        yield _Step("delete", ("put",), self._delete)
        if s3 is not None:
            yield _Step("versions", ("reach",), lambda: _versions(s3))
            yield _Step("object_lock", ("reach",), lambda: _object_lock(s3))

    def _try(self, step: _Step) -> _Outcome:
        for need in step.needs:
            if self._statuses[need] in {Status.FAILED, Status.UNKNOWN}:
                return _unknown(f"Not tried, as '{need}' did not work.")
        try:
            return step.work()
        except VisionO3Error as error:
            reason = reason_of(error)
            if reason == _CLOCK_REFUSED:
                self._clock_refused = error.message
                return _unknown("The store answers, but looks at nothing: see 'clock'.")
            return _Outcome(Status.FAILED, error.message, reason)

    def _reach(self) -> _Outcome:
        for _ in self._store.list(self._key):
            break
        return _ok("The store answers, and accepts the keys.")

    def _put(self) -> _Outcome:
        before = self._clock()
        self._store_probe(self._key)
        self._put_at = before, self._clock()
        return _ok("Objects can be stored.")

    def _store_probe(self, key: str) -> None:
        self._written.add(key)  # first: an answer may be lost
        self._store.put(key, self._content)

    def _compare_clocks(self) -> _Outcome:
        if self._clock_refused is not None:
            return _Outcome(Status.FAILED, self._clock_refused, _CLOCK_REFUSED)
        if self._put_at is None:
            return _unknown("Not tried, as 'put' did not work.")
        found = self._store.find(self._key)
        if found is None:
            return _failed("An object that was just stored is not found. " + _BROKEN)
        before, after = self._put_at
        behind = before - _RESOLUTION - found.modified_at
        ahead = found.modified_at - _RESOLUTION - after
        difference = max(behind, ahead, timedelta())
        if difference > _CLOCK_TOLERANCE:
            return _failed(
                f"This machine's clock is {difference.total_seconds():.0f} s "
                f"{'ahead of' if behind > ahead else 'behind'} the store's. Set it, "
                "for example by NTP: beyond 15 minutes S3 stores refuse every "
                "request, and presigned URLs are not valid when they should be."
            )
        return _ok("This machine's clock agrees with the store's.")

    def _get(self) -> _Outcome:
        content = self._store.get(self._key, max_size=_PROBE_SIZE)
        if content != self._content:
            return _failed(
                "The store answered other bytes than were stored. " + _BROKEN
            )
        return _ok("Objects are read as they were stored.")

    def _put_if_absent(self) -> _Outcome:
        key = f"{self._key}.once"
        self._store_probe(key)
        store = self._store if self._reopen is None else self._reopen()
        try:
            try:
                store.put(key, self._content[::-1])
                refused = False
            except AlreadyExistsError:
                refused = True
            kind = store.capabilities.put_if_absent
        finally:
            if store is not self._store:
                store.close()
        if not refused or self._store.get(key, max_size=_PROBE_SIZE) != self._content:
            return _failed(
                "The store replaced an object although the request forbade it "
                "(If-None-Match: *). Set VISION_O3_S3_CONDITIONAL_PUT to auto or no."
            )
        if kind is PutIfAbsent.ATOMIC:
            return _ok("The store itself refuses to replace an object.")
        return _limited(
            "The store does not refuse to replace an object, or is not asked to: the "
            "gateway looks first. That is safe under the publishing lease while one "
            "request is shorter than it (VISION_O3_S3_TIMEOUT_S below "
            "VISION_O3_LEASE_S). Prefer a store with conditional writes, or a bucket "
            "with versions and Object Lock."
        )

    def _get_range(self) -> _Outcome:
        start, end = _RANGE
        if self._store.get_range(self._key, start, end) != self._content[start:end]:
            return _failed(
                "The store answered other bytes than the range that was asked for. "
                "Devices could not go on after a broken link: use a store that honours "
                "the Range header, or mend the proxy before it."
            )
        return _ok("Ranges of an object are read exactly.")

    def _stream(self) -> _Outcome:
        start, end = 1, _PROBE_SIZE

        async def read() -> bytes:
            async with aclosing(self._store.stream(self._key, start, end)) as pieces:
                return b"".join([bytes(piece) async for piece in pieces])

        if asyncio.run(read()) != self._content[start:end]:
            return _failed(
                "The store streamed other bytes than were stored. " + _BROKEN
            )
        return _ok("Objects can be streamed.")

    def _list(self) -> _Outcome:
        sizes = {found.key: found.size for found in self._store.list(self._key)}
        if sizes.get(self._key) != _PROBE_SIZE:
            return _failed(
                "The list of objects lacks one that was just stored, or has its size "
                "wrong. rebuild-index, mirror and sweep would overlook objects: use a "
                "store that lists what it has."
            )
        return _ok("The list of objects has what was just stored.")

    def _multipart(self) -> _Outcome:
        key = f"{self._key}.parts"
        content = hashlib.shake_256(key.encode()).digest(_MULTIPART_FILE)
        self._written.add(key)
        try:
            with tempfile.TemporaryDirectory(prefix="vision-o3-") as directory:
                path = Path(directory) / "parts"
                path.write_bytes(content)
                self._store.put_file(key, path)
        except OSError as error:
            return _unknown(
                "Not tried, as no temporary file can be written here "
                f"({error.strerror or 'unknown'}). Set TMPDIR to a directory for it."
            )
        except VisionO3Error as error:
            return _failed(
                f"{error.message} A file in parts was refused; larger values of "
                "VISION_O3_S3_MULTIPART_BYTES, up to 5 GiB, do without parts."
            )
        if self._store.get(key, max_size=_MULTIPART_FILE) != content:
            return _failed(
                "An object stored in parts has other bytes than the file. " + _BROKEN
            )
        return _ok("Large files are stored in parts.")

    def _unfinished_uploads(self, s3: S3Store) -> _Outcome:
        day_ago = self._clock() - timedelta(days=1)
        try:
            s3.abort_uploads(self._key, before=day_ago)
        except VisionO3Error as error:
            reason = reason_of(error)
            return _Outcome(
                Status.LIMITED,
                "The store does not list uploads that were broken off "
                f"({reason or error.code}), so the gateway cannot remove them. Give "
                "the bucket a lifecycle rule that aborts incomplete multipart uploads.",
                reason,
            )
        return _ok("Uploads that were broken off can be found and removed.")

    def _presigned_get(self) -> _Outcome:
        url = self._store.presign_get(self._key, ttl_s=_URL_TTL_S) or ""
        try:
            answer = self._http("GET", url)
        except OSError:
            return _Outcome(self._bad_url, _NO_URL + _NO_DIRECT)
        if answer.status != _HTTP_OK:
            return _Outcome(
                self._bad_url, _refused_url("reading", answer.status) + _NO_DIRECT
            )
        if answer.body != self._content:
            sentence = "A presigned URL gave other bytes than were stored. "
            return _Outcome(self._bad_url, sentence + _NO_DIRECT)
        return _ok("Presigned URLs hand out objects.")

    def _presigned_put(self) -> _Outcome:
        key = f"{self._key}.presigned"
        url = self._store.presign_put(key, ttl_s=_URL_TTL_S) or ""
        self._written.add(key)
        try:
            answer = self._http("PUT", url, self._content)
        except OSError:
            return _limited(_NO_URL + _NO_DIRECT_UPLOAD)
        if answer.status != _HTTP_OK:
            return _limited(_refused_url("storing", answer.status) + _NO_DIRECT_UPLOAD)
        if self._store.get(key, max_size=_PROBE_SIZE) != self._content:
            sentence = "A presigned URL stored other bytes than it was sent. "
            return _limited(sentence + _NO_DIRECT_UPLOAD)
        return _ok("Presigned URLs take objects.")

    def _private(self) -> _Outcome:
        url = self._store.presign_get(self._key, ttl_s=_URL_TTL_S) or ""
        unsigned = urlsplit(url)._replace(query="").geturl()
        try:
            answer = self._http("GET", unsigned)
        except OSError:
            return _unknown(
                "Not tried, as the store's URL cannot be fetched from here."
            )
        if answer.status == _HTTP_OK:
            return _limited(
                "The store hands out objects without any signature: whoever can reach "
                "it reads everything. Unless that is meant, make the bucket private."
            )
        return _ok("Without a signature the store hands out nothing.")

    def _delete(self) -> _Outcome:
        try:
            for key in sorted(self._written):
                self._store.delete(key)
            left = self._store.find(self._key)
        except VisionO3Error as error:
            return _failed(
                f"{error.message} What uploads that died left behind could not be "
                f"removed either. Objects under {self._key} may be left."
            )
        if left is not None:
            return _failed(
                f"An object is there after it was deleted: {self._key}. What uploads "
                "that died left behind would stay: allow the keys to delete."
            )
        self._written.clear()
        return _ok("Objects can be removed.")


def _versions(store: S3Store) -> _Outcome:
    try:
        found = store.versioning()
    except VisionO3Error as error:
        return _unknown(f"The store does not say whether it keeps versions. {error}")
    if found is None:
        return _unknown("The store does not say whether it keeps versions of objects.")
    if found:
        return _ok("The bucket keeps what is replaced or deleted as a version.")
    return _limited(
        "The bucket does not keep what is replaced or deleted. Switch versions on: "
        "then no mistake and no stolen key destroys an artifact."
    )


def _object_lock(store: S3Store) -> _Outcome:
    try:
        found = store.object_lock()
    except VisionO3Error as error:
        return _unknown(f"The store does not say whether there is a lock. {error}")
    if found is None:
        return _unknown(
            f"The store does not say whether the bucket has Object Lock. {_LOCK}"
        )
    if not found:
        return _limited(f"The bucket has no Object Lock. {_LOCK}")
    if "no default retention" in found:
        return _limited(
            "The bucket has Object Lock, but no default retention: it locks nothing "
            "by itself. Set one, for example GOVERNANCE and several years."
        )
    return _ok(f"The bucket has Object Lock ({found}).")


_LOCK = (
    "With it the store itself keeps artifacts from being changed or removed; it can be "
    "had only while a bucket is empty."
)
_BROKEN = "Do not use this store, nor a proxy before it that changes answers."
_NO_URL = "A presigned URL could not be fetched from this machine. "
_NO_DIRECT = "Leave VISION_O3_DIRECT_DOWNLOADS=false: the gateway relays all bytes."
_NO_DIRECT_UPLOAD = "Uploads go through the gateway, which does not need this."


def _refused_url(purpose: str, status: int) -> str:
    return f"The store refused a presigned URL for {purpose} (HTTP {status}). "


def _ok(sentence: str) -> _Outcome:
    return _Outcome(Status.OK, sentence)


def _limited(sentence: str) -> _Outcome:
    return _Outcome(Status.LIMITED, sentence)


def _failed(sentence: str) -> _Outcome:
    return _Outcome(Status.FAILED, sentence)


def _unknown(sentence: str) -> _Outcome:
    return _Outcome(Status.UNKNOWN, sentence)
