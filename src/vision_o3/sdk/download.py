"""One verified transfer: plan, fetch, verify, write.

The sidecar, verified against the CID, says what each leaf of 1 MiB must be. One thread
receives into a small ring of buffers and writes; another hashes beside it. A leaf is
written only once it is verified, so whatever the file holds is right. After a dropped
link the transfer goes on at the first leaf that is not yet verified.

Memory: ``RING`` buffers of 1 MiB, and the sidecar (about 50 bytes for each MiB).
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Callable, Iterator, List, NamedTuple, Optional, Tuple

from vision_o3.content.cid import CID
from vision_o3.content.dag import ContentHasher
from vision_o3.content.leaves import LeafTable
from vision_o3.content.sidecar import max_sidecar_size
from vision_o3.errors import (
    DigestMismatchError,
    IntegrityError,
    LengthMismatchError,
    MalformedBlockError,
    TransportError,
    VisionO3Error,
)
from vision_o3.sdk.session import read_body

if TYPE_CHECKING:
    import queue
    from types import TracebackType
    from typing import Type

    from vision_o3.sdk.retry import Attempts
    from vision_o3.sdk.session import Session
    from vision_o3.sdk.transport import Response
    from vision_o3.sdk.versions import VersionInfo

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

RING = 4
"""Buffers: leaves that may wait to be verified or written."""
WRONG_ANSWERS = 3
"""Times in a row that wrong bytes are given before the source is a liar."""
MAX_SIDECAR_SIZE = 64 << 20
"""Bytes; enough for a file of 1 TiB."""
_PIECE_SIZE = 1 << 20
_OK = 200
_PARTIAL = 206


def plan(session: Session, info: VersionInfo) -> LeafTable:
    """Return what each leaf of a version must be, verified against its CID.

    One request, and none for a file of one leaf.

    Raises:
        IntegrityError: What the gateway says is not what the CID names.
        VisionO3Error: As for any request, after all attempts.
    """
    root = CID.parse(info.cid)
    if root.is_raw:
        return LeafTable.of_raw(root, info.file_size)
    max_size = min(max_sidecar_size(info.file_size), MAX_SIDECAR_SIZE)
    path = f"/{info.collection}/cid/{root}/dag"
    patience = Patience(session.attempts())
    while True:
        try:
            with session.exchange("GET", path) as response:
                sidecar = read_body(response, max_size, MalformedBlockError)
            table = LeafTable.from_sidecar(root, sidecar)
        except VisionO3Error as error:
            patience.failed(error)
            continue
        return _agreed(table, info)


def _agreed(table: LeafTable, info: VersionInfo) -> LeafTable:
    if table.size != info.file_size:
        raise LengthMismatchError(
            f"{info.cid} has {table.size} bytes, not {info.file_size} as the gateway "
            "says.",
            expected=table.size,
            actual=info.file_size,
        )
    return table


def fetch(
    session: Session,
    path: str,
    table: LeafTable,
    file: int,
    progress: Optional[Progress] = None,
) -> None:
    """Write the file that ``table`` describes, each leaf once it is verified.

    Args:
        session: Whom to ask.
        path: Where the gateway serves the bytes.
        table: From ``plan``.
        file: An empty file's descriptor.
        progress: Called with bytes verified and written, and bytes in all.

    Raises:
        IntegrityError: The source gave wrong bytes, again and again. None of them were
            written.
        OSError: The file cannot be written.
        VisionO3Error: As for any request, after all attempts.
    """
    patience = Patience(session.attempts())
    with Transfer(table, file, progress) as transfer:
        while not transfer.done:
            before = transfer.verified
            try:
                start, _ = table.span(before)
                with open_range(session, path, start, table.size) as response:
                    transfer.receive(response)
            except VisionO3Error as error:
                if transfer.verified > before:
                    patience.progressed()
                patience.failed(error)


def fetch_unlisted(
    session: Session,
    path: str,
    content: Tuple[CID, int],
    file: int,
    progress: Optional[Progress] = None,
) -> None:
    """Write a file that no sidecar describes, and return once all of it is verified.

    Its leaves cannot be told from wrong ones as they come: the file is hashed on the
    way and compared at its end. So show it to nobody before this has returned. After a
    dropped link the transfer goes on where it was; after wrong bytes it starts again.

    Args:
        session: Whom to ask.
        path: Where the gateway serves the bytes.
        content: The CID and the length in bytes.
        file: An empty file's descriptor.
        progress: Called with bytes written, and bytes in all.

    Raises:
        IntegrityError: The source gave wrong bytes, again and again.
        OSError: The file cannot be written.
        VisionO3Error: As for any request, after all attempts.
    """
    cid, size = content
    patience = Patience(session.attempts())
    buffer = memoryview(bytearray(min(_PIECE_SIZE, size)))
    hasher, done = ContentHasher(), 0
    while True:
        before = done
        try:
            with open_range(session, path, done, size) as response:
                while done < size:
                    count = response.readinto(buffer[: size - done])
                    if not count:
                        raise TransportError("The connection ended before the file.")
                    hasher.update(buffer[:count])
                    write_at(file, buffer[:count], done)
                    done += count
                    if progress is not None:
                        progress(done, size)
            _compare(cid, hasher.finish().root)
        except VisionO3Error as error:
            # Less than a leaf at a time is no progress: a source that drips would
            # never come to an end.
            if done - before >= _PIECE_SIZE:
                patience.received()
            patience.failed(error)
            if isinstance(error, IntegrityError):
                hasher, done = ContentHasher(), 0
            continue
        return


def _compare(expected: CID, actual: CID) -> None:
    if actual != expected:
        raise DigestMismatchError(
            f"The bytes are {actual}, not {expected}.",
            expected=str(expected),
            actual=str(actual),
        )


class Patience:
    """Decides whether to go on after an error.

    Failed exchanges are counted by the retry policy. Wrong bytes are asked for again
    a few times without waiting. Progress starts both counts anew.
    """

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._wrong_answers = 0

    def progressed(self) -> None:
        """Take note that right bytes came."""
        self._wrong_answers = 0
        self._attempts.progressed()

    def received(self) -> None:
        """Take note that bytes came, of which it is not known if they are right."""
        self._attempts.progressed()

    def failed(self, error: VisionO3Error) -> None:
        """Return if another attempt should be made; raise the error if not."""
        # With a status, it is the gateway that tells of its own store's damage.
        if isinstance(error, IntegrityError) and "status" not in error.values:
            self._wrong_answers += 1
            if self._wrong_answers >= WRONG_ANSWERS:
                raise error
        else:
            self._attempts.failed(error)


@contextmanager
def open_range(
    session: Session, path: str, start: int, size: int
) -> Iterator[Response]:
    """Yield an answer whose next bytes are those of a file from ``start`` on.

    A server that knows no ranges answers with the whole file; its start is skipped.

    Args:
        session: Whom to ask.
        path: Where the gateway serves the file.
        start: Where to begin.
        size: The file's length, which the answer must agree to.

    Raises:
        LengthMismatchError: The answer announces other bytes.
        TransportError: The status is neither of the two that have the bytes.
    """
    headers = {"Range": f"bytes={start}-{size - 1}"} if start else {}
    with session.exchange("GET", path, headers) as response:
        begins = 0
        if response.status == _PARTIAL and start:
            begins = start
            _expect(response, "content-range", f"bytes {start}-{size - 1}/{size}")
        elif response.status != _OK:
            raise TransportError(
                f"The answer to a download was {response.status}.", retryable=False
            )
        if "content-length" in response.headers:
            _expect(response, "content-length", str(size - begins))
        _skip(response, start - begins)
        yield response


def _expect(response: Response, header: str, expected: str) -> None:
    actual = response.headers.get(header, "").strip()
    if actual != expected:
        raise LengthMismatchError(
            f"The answer has {header.title()} {actual[:64]!r}, not {expected!r}.",
            expected=expected,
            actual=actual,
        )


def _skip(response: Response, count: int) -> None:
    buffer = memoryview(bytearray(min(count, 1 << 20)))
    while count:
        part = buffer[:count]
        _fill(response, part)
        count -= len(part)


def _fill(response: Response, buffer: memoryview) -> None:
    """Fill the whole buffer with the next bytes of an answer."""
    filled = 0
    while filled < len(buffer):
        count = response.readinto(buffer[filled:])
        if not count:
            raise TransportError("The connection ended before the file did.")
        filled += count


class Transfer:
    """A file as it grows: receives leaves in order, has them verified, writes them.

    Use it in a ``with`` block, which ends its second thread.

    Attributes:
        verified: Leaves that are verified and written; the next one to ask for.
    """

    def __init__(
        self, table: LeafTable, file: int, progress: Optional[Progress] = None
    ) -> None:
        self.verified = 0
        self._table = table
        self._file = file
        self._progress = progress
        self._count = len(table.covering(0, table.size))
        self._free: List[memoryview] = [
            memoryview(bytearray(min(table.chunk_size, table.size)))
            for _ in range(min(RING, self._count))
        ]
        self._checker = _Checker(table)

    def __enter__(self) -> Transfer:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._checker.close()

    @property
    def done(self) -> bool:
        """Whether the whole file is written."""
        return self.verified == self._count

    def receive(self, response: Response) -> None:
        """Take all leaves from the first that is not yet verified on.

        Raises:
            IntegrityError: A leaf is wrong. Those before it are written.
            TransportError: The answer ended. All leaves that came whole are written.
            OSError: The file cannot be written.
        """
        try:
            for index in range(self.verified, self._count):
                if not self._free:
                    self._settle()
                start, end = self._table.span(index)
                _fill(response, self._free[-1][: end - start])
                self._checker.put(_Leaf(index, end - start, self._free.pop()))
                while self._checker.has_verdict():
                    self._settle()
        finally:
            self._settle_all()

    def _settle_all(self) -> None:
        failure: Optional[VisionO3Error] = None
        while self._checker.pending:
            try:
                self._settle()
            except VisionO3Error as error:  # the leaves after it are let go
                failure = failure or error
        if failure is not None:
            raise failure

    def _settle(self) -> None:
        """Write the oldest leaf, once it is verified, and free its buffer."""
        leaf, error = self._checker.get()
        self._free.append(leaf.buffer)
        if error is not None:
            raise error
        if leaf.number != self.verified:  # one before it was wrong
            return
        start, end = self._table.span(leaf.number)
        write_at(self._file, leaf.buffer[: leaf.size], start)
        self.verified += 1
        if self._progress is not None:
            self._progress(end, self._table.size)


class _Leaf(NamedTuple):
    number: int
    size: int
    buffer: memoryview


class _Verdict(NamedTuple):
    leaf: _Leaf
    error: Optional[Exception]


class _Checker:
    """Verifies leaves on a thread of its own; sha-256 runs beside the receiving.

    Attributes:
        pending: Leaves put in whose verdict was not taken yet.
    """

    def __init__(self, table: LeafTable) -> None:
        from queue import SimpleQueue  # noqa: PLC0415 - a cache hit needs no queue

        self.pending = 0
        self._table = table
        self._leaves: queue.SimpleQueue[Optional[_Leaf]] = SimpleQueue()
        self._verdicts: queue.SimpleQueue[_Verdict] = SimpleQueue()
        self._thread = threading.Thread(
            target=self._run, name="vision-o3-verify", daemon=True
        )
        self._thread.start()

    def put(self, leaf: _Leaf) -> None:
        self.pending += 1
        self._leaves.put(leaf)

    def has_verdict(self) -> bool:
        return not self._verdicts.empty()

    def get(self) -> _Verdict:
        verdict = self._verdicts.get()
        self.pending -= 1
        return verdict

    def close(self) -> None:
        self._leaves.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            leaf = self._leaves.get()
            if leaf is None:
                return
            error: Optional[Exception] = None
            try:
                self._table.verify(leaf.number, leaf.buffer[: leaf.size])
            except Exception as found:  # noqa: BLE001 - raised on the other thread
                error = found
            self._verdicts.put(_Verdict(leaf, error))


def write_at(file: int, piece: memoryview, offset: int) -> None:
    """Write all of a piece at a place of a file.

    Raises:
        OSError: It cannot be written.
    """
    while piece:
        written = os.pwrite(file, piece, offset)
        piece = piece[written:]
        offset += written
