"""One verified transfer: plan, fetch from several sources at once, verify, write.

The sidecar, verified against the CID, says what each leaf of 1 MiB must be. A few
threads, each with one connection and one buffer, fetch runs of leaves: while one hashes
or writes, the others receive. A leaf is written only once it is verified, so whatever
the file holds is right, whoever served it and however often the transfer began.

A source is asked for one leaf first, and for twice as many after each run that was
right. One that serves a wrong byte, stalls or fails is left alone for a while; its
leaves go to another. Memory: one leaf a connection, and 32 bytes for each leaf.
"""

from __future__ import annotations

import io
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Callable,
    Iterable,
    List,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from vision_o3.content.cid import CID
from vision_o3.content.dag import ContentHasher
from vision_o3.content.leaves import LeafTable
from vision_o3.content.sidecar import max_sidecar_size
from vision_o3.errors import (
    CancelledError,
    DeadlineExceededError,
    DigestMismatchError,
    IntegrityError,
    LengthMismatchError,
    OfflineError,
    TransportError,
    VisionO3Error,
    WithdrawnError,
)
from vision_o3.sdk.logs import logger
from vision_o3.sdk.partials import extents
from vision_o3.sdk.retry import chance
from vision_o3.sdk.sources import fill, open_range, skip

if TYPE_CHECKING:
    from vision_o3.sdk.bounds import Bounds
    from vision_o3.sdk.retry import Attempts
    from vision_o3.sdk.session import Session
    from vision_o3.sdk.sources import Source
    from vision_o3.sdk.versions import VersionInfo

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

DEFAULT_CONNECTIONS = 4
WRONG_ANSWERS = 3
"""Times in a row that wrong bytes are given before the source is a liar."""
MAX_SIDECAR_SIZE = 64 << 20
"""Bytes; enough for a file of 1 TiB."""
LONGEST_RUN = 32
"""Leaves that are asked for at once."""
_SHORTEST_RUN = 2
"""Leaves; at a file's end, runs get short so that all connections end together."""
_PIECE_SIZE = 1 << 20
_LOOK_EVERY_S = 0.2
_LEFT_ALONE_S = 60.0
"""How long a source that failed again and again is left alone while others serve."""
_SLOW_LEAF_S = 15.0
"""A source that takes longer for a leaf is left alone for a while, if others serve."""
_JOIN_S = 5.0
_log = logger(__name__)


def plan(session: Session, sources: Sequence[Source], info: VersionInfo) -> LeafTable:
    """Return what each leaf of a version must be, verified against its CID.

    One request, and none for a file of one leaf. The gateway, last of the sources, is
    asked first; another has the sidecar where the gateway fails.

    Raises:
        IntegrityError: What the gateway says is not what the CID names.
        WithdrawnError: It says that the version is not to be used.
        VisionO3Error: As for any request, after all attempts.
    """
    root = CID.parse(info.cid)
    if root.is_raw:
        return LeafTable.of_raw(root, info.file_size)
    max_size = min(max_sidecar_size(info.file_size), MAX_SIDECAR_SIZE)
    patience = Patience(session.attempts())
    gateway, *others = reversed(sources)
    while True:
        try:
            return _agreed(_table_from(gateway, root, max_size), info)
        except WithdrawnError:
            raise
        except VisionO3Error as error:
            failure = error
        for source in reversed(others):
            with suppress(TransportError, IntegrityError):
                return _agreed(_table_from(source, root, max_size), info)
        patience.failed(failure)


def _table_from(source: Source, root: CID, max_size: int) -> LeafTable:
    sidecar = source.sidecar(max_size)
    if sidecar is None:
        raise TransportError(f"{source.name} has no sidecar.", retryable=False)
    return LeafTable.from_sidecar(root, sidecar)


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
    sources: Sequence[Source],
    table: LeafTable,
    file: int,
    progress: Optional[Progress] = None,
    *,
    connections: int = DEFAULT_CONNECTIONS,
) -> None:
    """Write the file that ``table`` describes, each leaf once it is verified.

    Leaves that the file has already are kept, once they are verified.

    Args:
        session: For the policy, the clock and the bounds of the call.
        sources: Whom to ask, in this order.
        table: From ``plan``.
        file: The file's descriptor; empty, or left from a transfer that broke off.
        progress: Called on this thread with bytes verified and written, and in all.
        connections: How many at most.

    Raises:
        IntegrityError: The last source left gave wrong bytes, again and again. None
            of them were written.
        OSError: The file cannot be written.
        VisionO3Error: As for any request, after all attempts. The leaves that came
            are in the file.
    """
    transfer = Transfer(session, sources, table, file, progress)
    transfer.keep_right_leaves()
    transfer.run(connections)


class Transfer:
    """One file as it grows, leaf by leaf, on several threads.

    Args:
        session: For the policy, the clock and the bounds of the call.
        sources: Whom to ask, in this order.
        table: What the leaves must be.
        file: A descriptor.
        progress: Called on the thread that runs the transfer.
    """

    def __init__(
        self,
        session: Session,
        sources: Sequence[Source],
        table: LeafTable,
        file: int,
        progress: Optional[Progress] = None,
    ) -> None:
        self._session = session
        self._policy = session.policy
        self._now = session.clock.monotonic
        self._table = table
        self._file = file
        self._progress = progress
        self._leaves = _Leaves(len(table.covering(0, table.size)))
        self._outlets = [_Outlet(source) for source in sources]
        self._changed = threading.Condition()
        self._bounds: Bounds = session.bounds.also(self)
        self._done_bytes = 0
        self._last_progress = self._now()
        self._tasks = 0
        self._at_work: Set[_Task] = set()
        self._allowed = 1
        self._connections = 1
        self._right_runs = 0
        self._ended = self._leaves.left == 0
        self._failure: Optional[BaseException] = None

    def is_set(self) -> bool:
        """Whether it has ended: what is still under way for it is given up."""
        return self._ended

    def keep_right_leaves(self) -> None:
        """Take the leaves that the file has already, once they are verified.

        Raises:
            OSError: The file cannot be read.
            CancelledError, DeadlineExceededError: The call ended.
        """
        buffer = _leaf_buffer(self._table)
        with io.FileIO(os.dup(self._file)) as file:
            for extent in extents(self._file, self._table.size):
                for index in self._table.covering(extent.start, extent.stop):
                    self._bounds.check()
                    start, end = self._table.span(index)
                    count = _read_at(file, buffer[: end - start], start)
                    if _is_right(self._table, index, buffer[:count]):
                        self._keep(index)
        self._show(0)

    def _keep(self, index: int) -> None:
        if self._leaves.claim(index):
            self._count(index)

    def run(self, connections: int) -> None:
        """Fetch what is missing.

        Raises:
            OSError: The file cannot be written.
            VisionO3Error: It could not be had; what came is in the file.
        """
        self._connections = max(1, min(connections, self._leaves.left))
        self._allowed = self._connections
        if self._ended:
            pass
        elif self._connections == 1:
            self._work()
        else:
            self._run_threads()
        if self._failure is not None:
            raise self._failure

    def _run_threads(self) -> None:
        threads: List[threading.Thread] = []
        shown = self._done_bytes
        try:
            for number in range(self._connections):
                name = f"vision-o3-{number}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # too little memory for one more
                    break
                threads.append(thread)
            if not threads:
                self._connections = self._allowed = 1
                self._work()
            while not self._ended:
                with self._changed:
                    if not self._ended:
                        self._changed.wait(_LOOK_EVERY_S)
                self._bounds.check()
                self._give_up_slow_tasks()
                shown = self._show(shown)
        except CancelledError:
            if not self._ended:
                raise
        finally:
            self._end(None)
            until = time.monotonic() + _JOIN_S
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))
        self._show(shown)

    def _give_up_slow_tasks(self) -> None:
        """End what waits long for a leaf, if another source may have it sooner."""
        now = self._now()
        with self._changed:
            for task in self._at_work:
                others = [
                    each
                    for each in self._outlets
                    if each is not task.outlet
                    and each.error is None
                    and each.spared_until <= now
                ]
                if others and now - task.waits_since > _SLOW_LEAF_S:
                    task.too_slow = True

    def _show(self, shown: int) -> int:
        """Tell how far it is, if that has changed; return what is shown now."""
        done = self._done_bytes
        if self._progress is not None and done != shown:
            self._progress(done, self._table.size)
        return done

    # On each connection's thread

    def _work(self) -> None:
        """Fetch one run after another until the transfer ends."""
        file = None
        try:
            buffer = _leaf_buffer(self._table)
            file = os.dup(self._file)  # its own: it may be closed before this is done
            task = self._next()
            while task is not None:
                with self._session.bounded(self._bounds.also(task)):
                    self._do(task, file, buffer)
                task = self._next()
        except BaseException as error:  # noqa: BLE001 - raised where the call is made
            self._end(error)
        finally:
            if file is not None:
                os.close(file)

    def _next(self) -> Optional[_Task]:
        """Return what to fetch next, and from where; ``None`` at the end."""
        while True:
            with self._changed:
                if self._ended:
                    return None
                wait_s = 0.0
                if self._leaves.missing and len(self._at_work) < self._allowed:
                    outlet, wait_s = self._choose()
                    if outlet is not None:
                        outlet.running += 1
                        self._tasks += 1
                        leaves = self._leaves.take(self._length(outlet))
                        task = _Task(self._tasks, outlet, leaves, self._now())
                        self._at_work.add(task)
                        return task
                if not wait_s:
                    self._changed.wait(_LOOK_EVERY_S)
            if wait_s:
                alone = self._connections == 1
                self._bounds.sleep(wait_s if alone else min(wait_s, _LOOK_EVERY_S))
            self._bounds.check()

    def _choose(self) -> Tuple[Optional[_Outlet], float]:
        """Return the first source that may be asked now, or how long none may be."""
        now = self._now()
        left = [outlet for outlet in self._outlets if outlet.error is None]
        wait_s = 0.0
        for outlet in [each for each in left if each.spared_until <= now] or left:
            if outlet.avoided_until > now:
                left_s = outlet.avoided_until - now
                wait_s = min(wait_s or left_s, left_s)
            elif outlet.running == 0 or outlet.may_share:
                return outlet, 0
        return None, wait_s

    def _length(self, outlet: _Outlet) -> int:
        """Return how many leaves to ask a source for."""
        share = self._leaves.missing // self._allowed
        return min(outlet.run, LONGEST_RUN, max(_SHORTEST_RUN, share))

    def _do(self, task: _Task, file: int, buffer: memoryview) -> None:
        """Fetch a run of leaves, or all that are missing if the whole file comes."""
        outlet, leaves = task.outlet, task.leaves
        held = set(leaves)
        start, end = self._table.span(leaves[0])[0], self._table.span(leaves[-1])[1]
        try:
            with open_range(outlet.source, start, end, self._table.size) as opened:
                if (opened.begins, opened.ends) != (start, end):
                    outlet.has_ranges = False
                    leaves = range(self._leaves.count)
                for index in leaves:
                    if not held and not self._leaves.missing:
                        break
                    first, last = self._table.span(index)
                    part = buffer[: last - first]
                    fill(opened.response, part)
                    self._table.verify(index, part)
                    if index not in held and not self._claim(index):
                        continue
                    held.add(index)
                    write_at(file, part, first)
                    held.discard(index)
                    self._came(task, index)
        except CancelledError:
            if not task.too_slow:
                raise
            slow = TransportError(f"{outlet.source.name} is slow, and others are not.")
            self._failed(task, slow, held)
        except (DeadlineExceededError, OfflineError):
            raise
        except VisionO3Error as error:
            self._failed(task, error, held)
        else:
            self._succeeded(task)

    def _claim(self, index: int) -> bool:
        """Take a leaf that came unasked; return whether it was missing."""
        with self._changed:
            return self._leaves.claim(index)

    def _came(self, task: _Task, index: int) -> None:
        """Take note that a leaf is verified and written."""
        outlet = task.outlet
        with self._changed:
            self._count(index)
            self._last_progress = task.waits_since = now = self._now()
            outlet.failures = outlet.lies = 0
            outlet.served = True
            for other in self._outlets:
                if other is not outlet:
                    other.revive(now + _LEFT_ALONE_S)
            self._changed.notify_all()
        if self._connections == 1:
            self._show(0)

    def _count(self, index: int) -> None:
        start, end = self._table.span(index)
        self._done_bytes += end - start
        self._leaves.left -= 1
        if not self._leaves.left:
            self._ended = True

    def _succeeded(self, task: _Task) -> None:
        """Take note that a run came whole; the next may be longer."""
        outlet = task.outlet
        with self._changed:
            self._release(task, ())
            outlet.run = min(LONGEST_RUN, 2 * outlet.run)
            self._right_runs += 1
            if self._right_runs >= 2 * self._allowed:
                self._right_runs = 0
                self._allowed = min(self._connections, self._allowed + 1)

    def _failed(self, task: _Task, error: VisionO3Error, held: Iterable[int]) -> None:
        """Take note that a source failed, or lied; end if there is no other."""
        outlet = task.outlet
        lied = _is_lie(error)
        with self._changed:
            self._release(task, held)
            if task.too_slow:
                outlet.spared_until = self._now() + _LEFT_ALONE_S
            if not error.retryable and not lied:
                outlet.error, outlet.for_good = error, True
            elif task.number > outlet.failed_at:  # else the same failure was counted
                self._avoid(outlet, error, lied=lied)
            if isinstance(error, WithdrawnError):  # mirrors would serve it still
                self._end_with(error)
            elif all(each.error is not None for each in self._outlets):
                self._end_with(self._outlets[-1].error)

    def _avoid(self, outlet: _Outlet, error: VisionO3Error, *, lied: bool) -> None:
        """Leave a source alone for a while, or until another has served."""
        now = self._now()
        outlet.failed_at = self._tasks
        outlet.served = False
        _log.warning(
            "source.failed: %s: %s", outlet.source.name, error.message,
            extra={"code": error.code},
        )  # fmt: skip
        if lied:
            outlet.lies += 1
            outlet.run = 1
            outlet.spared_until = now + _LEFT_ALONE_S
            wait_s = 0.0
            hopeless = outlet.lies >= WRONG_ANSWERS
        else:
            outlet.failures += 1
            outlet.run = max(1, outlet.run // 2)
            self._allowed = max(1, self._allowed // 2)
            wait_s = self._policy.wait_s(outlet.failures, chance(), error)
            left_s = self._last_progress + self._policy.total_s - now
            hopeless = outlet.failures >= self._policy.attempts or (
                wait_s > min(left_s, self._bounds.left_s())
            )
        outlet.avoided_until = now + wait_s
        if hopeless:
            outlet.error = error

    def _release(self, task: _Task, held: Iterable[int]) -> None:
        """End a run; leaves that did not come are missing again."""
        self._at_work.discard(task)
        task.outlet.running -= 1
        for index in held:
            self._leaves.give_back(index)
        self._changed.notify_all()

    def _end(self, failure: Optional[BaseException]) -> None:
        with self._changed:
            self._end_with(failure)

    def _end_with(self, failure: Optional[BaseException]) -> None:
        if not self._ended:
            self._ended, self._failure = True, failure
        self._changed.notify_all()


@dataclass
class _Outlet:
    """A source as one transfer knows it.

    Attributes:
        running: Runs that it is asked for now.
        run: Leaves to ask for at most.
        served: The last leaf that came from it was right, and nothing failed since.
        has_ranges: It has not answered a range with the whole file.
        failures: In a row.
        lies: Wrong answers in a row.
        failed_at: The last task when a failure was counted. What was asked for before
            and fails too, such as when a server goes down, is not counted again.
        avoided_until: It is not asked before.
        spared_until: It is not asked before if there is another.
        error: Why it is not asked any more.
        for_good: Not even after another has served.
    """

    source: Source
    running: int = 0
    run: int = 1
    served: bool = False
    has_ranges: bool = True
    failures: int = 0
    lies: int = 0
    failed_at: int = 0
    avoided_until: float = float("-inf")
    spared_until: float = float("-inf")
    error: Optional[VisionO3Error] = None
    for_good: bool = False

    @property
    def may_share(self) -> bool:
        """Whether several connections may ask it at once."""
        return self.served and self.has_ranges

    def revive(self, at: float) -> None:
        """Let it be asked once more, at a time, if it had been given up."""
        if self.error is not None and not self.for_good:
            self.error = None
            self.failures = max(0, self.failures - 1)
            self.lies = max(0, self.lies - 1)
            self.spared_until = at


class _Task:
    """A run of leaves that one source is asked for.

    Attributes:
        number: In the order in which tasks were given out.
        outlet: Whom to ask.
        leaves: Which.
        waits_since: When the last leaf of it came, or it began.
        too_slow: It is to be given up.
    """

    def __init__(self, number: int, outlet: _Outlet, leaves: range, at: float) -> None:
        self.number = number
        self.outlet = outlet
        self.leaves = leaves
        self.waits_since = at
        self.too_slow = False

    def is_set(self) -> bool:
        """Whether it is to be given up."""
        return self.too_slow


class _Leaves:
    """Which leaves are missing: neither in, nor asked for.

    Attributes:
        count: All of them.
        missing: How many are missing.
        left: How many are not in.
    """

    def __init__(self, count: int) -> None:
        self.count = self.missing = self.left = count
        self._taken = bytearray(count)

    def take(self, longest: int) -> range:
        """Return the first run of missing leaves; they are asked for from now on."""
        start = self._taken.index(0)
        end = start + 1
        limit = min(self.count, start + longest)
        while end < limit and not self._taken[end]:
            end += 1
        self._taken[start:end] = b"\1" * (end - start)
        self.missing -= end - start
        return range(start, end)

    def claim(self, index: int) -> bool:
        """Take one leaf; return whether it was missing."""
        if self._taken[index]:
            return False
        self._taken[index] = 1
        self.missing -= 1
        return True

    def give_back(self, index: int) -> None:
        """Let a leaf that was asked for be missing again."""
        self._taken[index] = 0
        self.missing += 1


def _read_at(file: io.FileIO, buffer: memoryview, offset: int) -> int:
    """Read what a file has at a place; a bad sector has nothing."""
    try:
        file.seek(offset)
        return file.readinto(buffer) or 0
    except OSError as error:
        _log.warning("artifact.unreadable: %s", error)
        return 0


def _is_right(table: LeafTable, index: int, leaf: memoryview) -> bool:
    try:
        table.verify(index, leaf)
    except IntegrityError:
        return False
    return True


def _leaf_buffer(table: LeafTable) -> memoryview:
    return memoryview(bytearray(min(table.chunk_size, table.size)))


def fetch_unlisted(
    session: Session,
    source: Source,
    content: Tuple[CID, int],
    file: int,
    progress: Optional[Progress] = None,
) -> None:
    """Write a file that no sidecar describes, and return once all of it is verified.

    Its leaves cannot be told from wrong ones as they come: the file is hashed on the
    way and compared at its end. So show it to nobody before this has returned. After a
    dropped link the transfer goes on where it was; after wrong bytes it starts again.

    Args:
        session: Whose policy to follow.
        source: Whom to ask.
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
            with open_range(source, done, size, size) as opened:
                skip(opened.response, done - opened.begins)
                while done < size:
                    count = opened.response.readinto(buffer[: size - done])
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


def _is_lie(error: VisionO3Error) -> bool:
    """Whether bytes were wrong that a source gave for right."""
    # With a status, it is the gateway that tells of its own store's damage.
    return isinstance(error, IntegrityError) and "status" not in error.values


def _compare(expected: CID, actual: CID) -> None:
    if actual != expected:
        raise DigestMismatchError(
            f"The bytes are {actual}, not {expected}.",
            expected=str(expected),
            actual=str(actual),
        )


class Patience:
    """Decides whether to ask one source again after an error.

    Failed exchanges are counted by the retry policy. Wrong bytes are asked for again
    a few times without waiting. Progress starts the first count anew.
    """

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._wrong_answers = 0

    def received(self) -> None:
        """Take note that bytes came, of which it is not known if they are right."""
        self._attempts.progressed()

    def failed(self, error: VisionO3Error) -> None:
        """Return if another attempt should be made; raise the error if not."""
        if _is_lie(error):
            self._wrong_answers += 1
            if self._wrong_answers >= WRONG_ANSWERS:
                raise error
        else:
            self._attempts.failed(error)


def write_at(file: int, piece: memoryview, offset: int) -> None:
    """Write all of a piece at a place of a file.

    Raises:
        OSError: It cannot be written.
    """
    while piece:
        written = os.pwrite(file, piece, offset)
        piece = piece[written:]
        offset += written
