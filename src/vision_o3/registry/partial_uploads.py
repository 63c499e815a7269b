"""Uploads that come in parts, and survive a broken link and a killed gateway.

Each is a directory of the spool: the sidecar of what is to come, and a file of its
length that is one hole at first. A leaf is written once it is verified. Nothing notes
which leaves are in: what the disk holds is hashed when that is asked. So there is
nothing that a crash could leave wrong, and any process of this machine can go on.

Who publishes an upload holds a shared lock on its file; who removes it, an exclusive
one. Who writes needs none: only the right bytes are ever written, to their place.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import functools
import hashlib
import math
import os
import shutil
import time
import uuid
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from vision_o3.content.dag import DagBuilder
from vision_o3.content.leaves import LeafTable
from vision_o3.errors import (
    CIDMismatchError,
    IncompleteUploadError,
    InputError,
    IntegrityError,
    InvalidRangeError,
    LimitExceededError,
    NotFoundError,
    QuotaExceededError,
    StorageError,
    UnsafeContentError,
    UploadInProgressError,
)
from vision_o3.registry.keeping import Kept
from vision_o3.registry.spool import (
    WORKERS,
    LeafWriter,
    Spooled,
    spool_error,
    write_at,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from vision_o3.content.cid import CID
    from vision_o3.registry.spool import Spool

_FOLDER = "partial"
_DATA = "data"
_SIDECAR = "dag.car"
_GONE = ".gone"
_NEW = ".new"
_BATCH = 4 * WORKERS
"""Leaves that one scan gives to the workers at a time; other uploads need them too."""
_SHARE = 0.75
"""Of the disk's room that the uploads which one owner has begun may claim."""
_KEPT_LEAVES = 250_000
"""Leaves whose digests are kept in memory: 8 MB, for 256 GB of uploads."""


@dataclass(frozen=True, slots=True)
class PartialUpload:
    """How far an upload is. Sizes in bytes; ranges are half-open."""

    cid: CID
    file_size: int
    received: int
    """Of the range that was looked at."""
    missing: tuple[tuple[int, int], ...]
    """Of the range that was looked at, in order."""
    expires_at: datetime
    """When it is removed, unless more comes before."""
    created: bool = False


@dataclass(frozen=True, slots=True)
class _Opened:
    """An upload that is there. Who opened it closes the descriptor."""

    table: LeafTable
    path: Path
    descriptor: int


class PartWriter(LeafWriter):
    """Takes the bytes of one part, in order. Made by ``PartialUploads.open_part``."""

    def __init__(self, opened: _Opened, spool: Spool, offset: int, size: int) -> None:
        super().__init__(spool.workers, offset)
        self._table = opened.table
        self._descriptor = opened.descriptor
        self._size = size

    async def write(self, piece: bytes | memoryview) -> None:
        """Take the next bytes; see ``LeafWriter.write``.

        Raises:
            CIDMismatchError: A leaf is not what the CID names; it is not written.
            InputError: There are more bytes than announced.
            StorageFullError, StorageError: As there.
        """
        if self._received + len(piece) > self._size:
            raise InputError(f"The part has more than the {self._size} bytes it said.")
        await super().write(piece)

    async def finish(self) -> None:
        """Return once all of the part is on disk.

        Raises:
            IncompleteUploadError: It ended early; its whole leaves are kept.
            CIDMismatchError, StorageFullError, StorageError: As for ``write``.
        """
        if self._received < self._size:
            raise IncompleteUploadError(
                f"The part ended after {self._received} of {self._size} bytes. Its "
                "whole leaves are kept: ask what is missing, and send that."
            )
        await self.flush()
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._pool, os.fdatasync, self._descriptor
            )
        except OSError as error:
            raise spool_error(error) from error

    def _place(self, leaf: list[memoryview], offset: int) -> bytes:
        content = b"".join(leaf)
        index = offset // self._table.chunk_size
        try:
            self._table.verify(index, content)
        except IntegrityError as error:
            raise CIDMismatchError(
                f"{error.message} They were damaged on the way, or the file was "
                "changed. The right ones before them are kept.",
                cid=str(self._table.root),
            ) from error
        write_at(self._descriptor, content, offset)
        return self._table.digest(index)


class PartialUploads:
    """The uploads in parts of one spool. Safe in any thread, in several processes.

    All methods but ``open_part`` block.

    Args:
        spool: Gives directory, limits and worker threads.
        expires_s: Seconds after which an upload that nothing came for is removed.
        most: Uploads that one owner may have begun; 0 for any number.
    """

    def __init__(self, spool: Spool, *, expires_s: float, most: int = 0) -> None:
        self._spool = spool
        self._most = most
        self._directory = spool.directory / _FOLDER
        self._expires_s = expires_s
        self._tables: Kept[LeafTable] = Kept(_KEPT_LEAVES)

    def begin(self, owner: str, cid: CID, sidecar: bytes) -> PartialUpload:
        """Make an upload, or find the one that is there; it lasts anew.

        Args:
            owner: Nobody else finds it.
            cid: The file's.
            sidecar: The file's.

        Raises:
            InputError: The file is one leaf.
            CIDMismatchError: The sidecar is not the one of the CID.
            LimitExceededError: The file is too large.
            QuotaExceededError: The owner has begun too many.
            StorageFullError, StorageError: The disk cannot take it.
        """
        if cid.is_raw:
            raise InputError(
                f"{cid} names one leaf, which has no sidecar and no parts. "
                "Publish it by a form with the file."
            )
        try:
            table = LeafTable.from_sidecar(cid, sidecar)
        except IntegrityError as error:
            raise CIDMismatchError(
                f"The sidecar is not that of {cid}: {error.message}", cid=str(cid)
            ) from error
        self._spool.check_size(table.size)
        try:
            return self._begin(owner, cid, sidecar, table.size)
        except OSError as error:
            raise spool_error(error) from error

    def _begin(self, owner: str, cid: CID, sidecar: bytes, size: int) -> PartialUpload:
        created = False
        while True:
            with suppress(NotFoundError), self._opened(owner, cid) as opened:
                there = 512 * os.fstat(opened.descriptor).st_blocks
                self._check_room(owner, opened.path, size - there)
                os.utime(opened.descriptor)
                if _is_at(opened.path, opened.descriptor):
                    missing = self._look(opened, 0, size)
                    return self._state(opened, missing, size, created=created)
            path = self._path(owner, cid)
            self._check_number(owner)
            self._check_room(owner, path, size)
            try:
                self._make(path, sidecar, size)
                created = True
            except OSError as error:
                if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                    raise
                # Another request was faster, or what is there is damaged.
                try:
                    os.close(self._open(owner, cid).descriptor)
                except NotFoundError:
                    _discard(path)

    def _check_number(self, owner: str) -> None:
        """Raise if an owner has begun as many uploads as they may."""
        if not self._most or not self._directory.is_dir():
            return
        mark = f"{_mark_of(owner)}-"
        begun = sum(
            path.name.startswith(mark) and not path.name.endswith((_GONE, _NEW))
            for path in self._directory.iterdir()
        )
        if begun >= self._most:
            raise QuotaExceededError(
                f"You have begun {begun} uploads and not published them, and may have "
                f"{self._most}. Publish or remove one (DELETE /uploads/CID), or wait "
                "until they expire.",
                limit=self._most,
            )

    def find(
        self, owner: str, cid: CID, start: int = 0, end: int | None = None
    ) -> PartialUpload:
        """Return how far an upload is, of the whole file or of a range.

        Cost: reads and hashes what came of the range.

        Raises:
            NotFoundError: There is none, or it has expired.
            InvalidRangeError: The range lies outside the file, or cuts a leaf.
            StorageError: The disk cannot be read.
        """
        try:
            with self._opened(owner, cid) as opened:
                end = opened.table.size if end is None else end
                _check_range(opened.table, start, end)
                missing = self._look(opened, start, end)
                return self._state(opened, missing, end - start)
        except OSError as error:
            raise spool_error(error) from error

    @asynccontextmanager
    async def open_part(
        self, owner: str, cid: CID, offset: int, size: int
    ) -> AsyncIterator[PartWriter]:
        """Yield a writer of ``size`` bytes from ``offset`` on.

        Whole leaves are kept, also if the block ends with an error.

        Raises:
            NotFoundError: There is no such upload.
            InvalidRangeError: The part lies outside the file, or cuts a leaf.
            StorageError: The file cannot be opened.
        """
        opened = await asyncio.to_thread(self._open_part, owner, cid, offset, size)
        try:
            writer = PartWriter(opened, self._spool, offset, size)
            try:
                yield writer
            finally:
                await writer.settle()
        finally:
            os.close(opened.descriptor)

    @contextmanager
    def complete(self, owner: str, cid: CID) -> Iterator[Spooled | None]:
        """Yield the whole file to be published, or ``None`` if bytes are missing.

        The upload is gone when the block has ended well, and when the content is
        refused for what it is. After any other error it is kept.

        Raises:
            StorageError: The disk cannot be read.
        """
        try:
            opened = self._open(owner, cid)
        except NotFoundError:
            yield None
            return
        except OSError as error:
            raise spool_error(error) from error
        try:
            spooled = self._find_complete(opened)
            if spooled is None:
                yield None
                return
            try:
                yield spooled
            except (UnsafeContentError, LimitExceededError):
                _remove(opened.path, opened.descriptor)
                raise
            _remove(opened.path, opened.descriptor)
        finally:
            os.close(opened.descriptor)

    def _find_complete(self, opened: _Opened) -> Spooled | None:
        """Return the whole file, locked against removal, if nothing is missing."""
        table = opened.table
        try:
            fcntl.flock(opened.descriptor, fcntl.LOCK_SH)
            if not _is_at(opened.path, opened.descriptor) or self._look(
                opened, 0, table.size
            ):
                return None
        except OSError as error:
            raise spool_error(error) from error
        builder = DagBuilder()
        for index in range(table.count):
            start, end = table.span(index)
            builder.add_leaf(table.digest(index), end - start)
        return Spooled(opened.path / _DATA, builder.finish())

    def forget(self, owner: str, cid: CID) -> None:
        """Remove an upload.

        Raises:
            NotFoundError: There is none.
            UploadInProgressError: It is being published.
            StorageError: The disk refuses.
        """
        try:
            with self._opened(owner, cid) as opened:
                removed = _remove(opened.path, opened.descriptor)
        except OSError as error:
            raise spool_error(error) from error
        if not removed:
            raise UploadInProgressError(
                "This upload is being published. Try again in a moment.",
                retry_after_s=2,
            )

    def remove_expired(self) -> int:
        """Remove uploads that nothing came for; return how many."""
        removed = 0
        oldest = time.time() - self._expires_s
        try:
            found = list(self._directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return 0
        for path in found:
            if path.is_symlink() or not path.is_dir():
                continue
            if path.suffix == _GONE:
                shutil.rmtree(path, ignore_errors=True)
                continue
            try:
                descriptor = os.open(path / _DATA, os.O_RDONLY | os.O_NOFOLLOW)
            except OSError:  # its gateway died while it was made
                with suppress(FileNotFoundError):  # another sweep was faster
                    if path.stat().st_mtime < oldest:
                        _discard(path)
                        removed += 1
                continue
            try:
                removed += _remove(path, descriptor, oldest=oldest)
            finally:
                os.close(descriptor)
        return removed

    # ------------------------------------------------------------------- on disk

    def _path(self, owner: str, cid: CID) -> Path:
        name = hashlib.sha256(f"{owner}\0{cid}".encode()).hexdigest()[:40]
        name = f"{_mark_of(owner)}-{name}"
        return self._directory / name

    def _make(self, path: Path, sidecar: bytes, size: int) -> None:
        """Make an upload, which appears whole; others may make the same."""
        new = path.with_name(f"{uuid.uuid4().hex}{_NEW}")
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.mkdir(mode=0o700)
        try:
            with (new / _SIDECAR).open("xb") as file:
                file.write(sidecar)
                file.flush()
                os.fsync(file.fileno())
            with (new / _DATA).open("xb") as file:
                file.truncate(size)
            new.rename(path)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise

    def _open(self, owner: str, cid: CID, flags: int = os.O_RDONLY) -> _Opened:
        """Open an upload; no link is followed.

        Raises:
            NotFoundError: There is none.
            OSError: The disk refuses.
        """
        path = self._path(owner, cid)
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                table = self._tables.find(cid) or self._read_table(folder, cid)
                descriptor = os.open(_DATA, flags | os.O_NOFOLLOW, dir_fd=folder)
            finally:
                os.close(folder)
        except (FileNotFoundError, IntegrityError) as error:
            raise _no_upload(cid) from error
        if os.fstat(descriptor).st_size != table.size:
            os.close(descriptor)
            raise _no_upload(cid)
        return _Opened(table, path, descriptor)

    @contextmanager
    def _opened(self, owner: str, cid: CID) -> Iterator[_Opened]:
        opened = self._open(owner, cid)
        try:
            yield opened
        finally:
            os.close(opened.descriptor)

    def _open_part(self, owner: str, cid: CID, offset: int, size: int) -> _Opened:
        try:
            opened = self._open(owner, cid, os.O_RDWR)
        except OSError as error:
            raise spool_error(error) from error
        try:
            _check_range(opened.table, offset, offset + size)
            self._spool.check_free(size)
        except (InvalidRangeError, StorageError):
            os.close(opened.descriptor)
            raise
        return opened

    def _check_room(self, owner: str, path: Path, size: int) -> None:
        """Raise unless the disk can take what is to come: of this upload and all begun.

        What an owner has begun may claim ``_SHARE`` of the room, so that nobody keeps
        others out by uploads of which nothing comes.

        Args:
            owner: Whose upload it is.
            path: Where it is, or will be.
            size: Bytes that are to come of it.

        Raises:
            StorageFullError: It cannot.
        """
        of_owner = of_all = max(0, size)
        mark = f"{_mark_of(owner)}-"
        with suppress(FileNotFoundError, NotADirectoryError):
            for other in self._directory.iterdir():
                if other != path:
                    with suppress(OSError):  # it is removed just now
                        state = os.lstat(other / _DATA)
                        awaited = max(0, state.st_size - 512 * state.st_blocks)
                        of_all += awaited
                        of_owner += awaited * other.name.startswith(mark)
        self._spool.check_free(max(of_all, math.ceil(of_owner / _SHARE)))

    def _read_table(self, folder: int, cid: CID) -> LeafTable:
        descriptor = os.open(_SIDECAR, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - it is open already
            table = LeafTable.from_sidecar(cid, file.read())
        self._tables.keep(cid, table, table.count)
        return table

    def _look(
        self, opened: _Opened, start: int, end: int
    ) -> tuple[tuple[int, int], ...]:
        """Return what is missing of a range, having hashed what is there."""
        table, descriptor = opened.table, opened.descriptor

        def is_right(index: int) -> bool:
            at, until = table.span(index)
            try:
                table.verify(index, os.pread(descriptor, until - at, at))
            except IntegrityError:
                return False
            return True

        there = list(_leaves_with_data(descriptor, table.chunk_size, start, end))
        right: set[int] = set()
        for first in range(0, len(there), _BATCH):
            batch = there[first : first + _BATCH]
            answers = self._spool.workers.map(is_right, batch)
            right.update(
                index for index, answer in zip(batch, answers, strict=True) if answer
            )
        missing: list[tuple[int, int]] = []
        looked_at = set(there)
        for index in table.covering(start, end):
            at, until = table.span(index)
            if index in right:
                continue
            # Nothing but zeros may be a hole, made by the file system.
            if index not in looked_at and table.digest(index) == _zeros(until - at):
                continue
            if missing and missing[-1][1] == at:
                at = missing.pop()[0]
            missing.append((at, until))
        return tuple(missing)

    def _state(
        self,
        opened: _Opened,
        missing: tuple[tuple[int, int], ...],
        size: int,
        *,
        created: bool = False,
    ) -> PartialUpload:
        """Return how far an upload is, of ``size`` bytes that were looked at."""
        touched = datetime.fromtimestamp(os.fstat(opened.descriptor).st_mtime, UTC)
        return PartialUpload(
            cid=opened.table.root,
            file_size=opened.table.size,
            received=size - sum(end - start for start, end in missing),
            missing=missing,
            expires_at=touched + timedelta(seconds=self._expires_s),
            created=created,
        )


@functools.lru_cache(maxsize=64)
def _zeros(size: int) -> bytes:
    """Return the digest of so many zeros: those of a whole leaf, or of a last one."""
    return hashlib.sha256(bytes(size)).digest()


def _remove(path: Path, descriptor: int, *, oldest: float = math.inf) -> bool:
    """Remove an upload unless it is in use, or was touched since ``oldest``."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if os.fstat(descriptor).st_mtime >= oldest or not _is_at(path, descriptor):
        return False
    _discard(path)
    return True


def _no_upload(cid: CID) -> NotFoundError:
    return NotFoundError(
        f"You have no upload of {cid} here; it may have expired. "
        f"Begin it: PUT /uploads/{cid} with the sidecar.",
        cid=str(cid),
    )


def _check_range(table: LeafTable, start: int, end: int) -> None:
    """Raise unless these are whole leaves of the file, at least one."""
    size, chunk_size = table.size, table.chunk_size
    if (
        not 0 <= start < end <= size
        or start % chunk_size
        or (end % chunk_size and end != size)
    ):
        raise InvalidRangeError(
            f"[{start}, {end}) is not of whole leaves of this file of {size} bytes. "
            f"Begin at a multiple of {chunk_size}, and end at one or with the file.",
            size=size,
        )


def _leaves_with_data(
    descriptor: int, chunk_size: int, start: int, end: int
) -> Iterator[int]:
    """Yield the leaves of a range that are not all hole."""
    while start < end:
        try:
            start = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        if start >= end:
            return
        hole = min(os.lseek(descriptor, start, os.SEEK_HOLE), end)
        first, after = start // chunk_size, -(-hole // chunk_size)
        yield from range(first, after)
        start = after * chunk_size


def _mark_of(owner: str) -> str:
    """Return what the names of an owner's uploads begin with."""
    return hashlib.sha256(owner.encode()).hexdigest()[:16]


def _is_at(path: Path, descriptor: int) -> bool:
    """Say whether the opened file is still the upload's."""
    try:
        found = os.lstat(path / _DATA)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))


def _discard(path: Path) -> None:
    """Remove an upload, at once for all others."""
    gone = path.with_name(f"{uuid.uuid4().hex}{_GONE}")
    with suppress(FileNotFoundError):
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
