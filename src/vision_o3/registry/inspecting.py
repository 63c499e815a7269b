"""Inspect: what a received file is, found out in a process of its own.

Each process looks at one file and ends. One is kept ready, as starting Python takes
longer than looking at most files.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from pydantic import ValidationError

from vision_o3.content.dag import cid_of_stream
from vision_o3.errors import (
    FormatError,
    GatewayBusyError,
    LimitExceededError,
    StorageError,
    UnsafeContentError,
)
from vision_o3.schemas.facts import NEW_FACTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vision_o3.content.dag import Dag
    from vision_o3.errors import VisionO3Error
    from vision_o3.formats.limits import Limits
    from vision_o3.registry.spool import Spool

# -P: no module is found by where the gateway happens to run.
WORKER = (sys.executable, "-P", "-s", "-m", "vision_o3.formats.worker")
_LEAST_TIME_S = 30.0
_LEAST_RATE = 2 << 20
"""Bytes a second. A file is granted so much time for its size and no more, so that a
small one that hangs its reader does not keep others waiting for long: HDF5 2.0 never
ends on some damaged heaps. Ten times slower than what the slowest reader does here."""
_LONGEST_WAIT_S = 60.0
"""For others' files. Beyond that the publisher is told to come back."""
_MOST_ANSWER = 4 << 20
"""Bytes of an answer that are read."""
_REFUSALS: dict[str, type[VisionO3Error]] = {
    refusal.code: refusal
    for refusal in (FormatError, UnsafeContentError, LimitExceededError)
}
"""What a process may refuse a file with; it is not trusted to say anything else."""
_ENVIRONMENT = {
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "PYTHONUTF8": "1",
    # NumPy comes with HDF5's reader; its thread pool would only take memory.
    "OPENBLAS_NUM_THREADS": "1",
    # No filter is ever loaded by name (HDF5 reference manual, H5PL).
    "HDF5_PLUGIN_PRELOAD": "::",
    "HDF5_USE_FILE_LOCKING": "FALSE",
}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Listing:
    """A file that an inspection wrote, and what its bytes are named."""

    path: Path
    dag: Dag


@dataclass(frozen=True, slots=True)
class Inspected:
    """What a file is; of an archive also what it holds."""

    file_format: str
    facts: dict[str, Any]
    manifest: Listing | None = None
    index: Listing | None = None
    """Where each file of the archive lies in it."""


class Inspector:
    """Inspects files, each in a process of its own. Safe in any thread.

    Args:
        spool: Where the processes write what they list.
        limits: What one inspection may meet and cost.
        concurrent: Inspections at the same time; others wait.
        command: What is run; default: ``formats/worker.py``.
    """

    def __init__(
        self,
        spool: Spool,
        limits: Limits,
        *,
        concurrent: int = 2,
        command: Sequence[str] = WORKER,
    ) -> None:
        self._command = command
        self._spool = spool
        self._limits = limits
        self._turn = threading.BoundedSemaphore(concurrent)
        self._lock = threading.Lock()
        self._ready: subprocess.Popen[bytes] | None = _start(command)
        self._busy: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    @contextmanager
    def inspect(self, path: Path, declared: str) -> Iterator[Inspected]:
        """Yield what a file of a declared format is. Listings last as the block does.

        Raises:
            FormatError: The content is something else, or damaged.
            UnsafeContentError: It could do harm where it is used.
            LimitExceededError: It exceeds a limit, or looking takes too long.
            GatewayBusyError: Others' files take too long, or the gateway is ending.
            StorageError: The spool cannot be written.
        """
        with ExitStack() as scratch:
            manifest = scratch.enter_context(self._spool.scratch())
            index = scratch.enter_context(self._spool.scratch())
            size = path.stat().st_size
            time_s = min(self._limits.time_s, _LEAST_TIME_S + size / _LEAST_RATE)
            job = {
                "path": str(path.resolve()),
                "declared": declared,
                "limits": asdict(replace(self._limits, time_s=time_s)),
                "manifest": str(manifest.resolve()),
                "index": str(index.resolve()),
            }
            if not self._turn.acquire(timeout=_LONGEST_WAIT_S):
                raise GatewayBusyError(
                    "The gateway is looking into other uploads. Try again later.",
                    retry_after_s=15,
                )
            try:
                answer = self._ask(job, time_s)
            finally:
                self._turn.release()
            facts = self._checked(answer, declared)
            if not answer.get("listed"):
                yield Inspected(declared, facts)
                return
            yield Inspected(declared, facts, _listing(manifest), _listing(index))

    def close(self) -> None:
        """End all processes; what is being inspected is refused.

        May be called any number of times.
        """
        with self._lock:
            self._closed = True
            ready, self._ready = self._ready, None
            for worker in self._busy:
                worker.kill()
        if ready is not None:
            _end(ready)

    def _ask(self, job: dict[str, Any], time_s: float) -> dict[str, Any]:
        """Return a process's answer to a job; ``failure`` says why there is none."""
        worker = self._take()
        timed_out = threading.Event()

        def stop() -> None:
            timed_out.set()
            worker.kill()

        timer = threading.Timer(time_s, stop)
        timer.daemon = True
        timer.start()
        try:
            content = _exchange(worker, json.dumps(job).encode() + b"\n")
        finally:
            timer.cancel()
            self._done(worker)
        if timed_out.is_set():
            raise LimitExceededError(
                f"Looking into the file took longer than the {time_s:.3g} s that this "
                "gateway grants for its size (VISION_O3_INSPECT_TIMEOUT_S).",
                limit=time_s,
            )
        if self._closed:
            raise _ending()
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            return {"failure": f"the process ended with {worker.returncode}"}
        return answer

    def _take(self) -> subprocess.Popen[bytes]:
        """Return a process for one job: the one kept ready, or a new one."""
        with self._lock:
            if self._closed:
                raise _ending()
            worker, self._ready = self._ready, None
            if worker is None or worker.poll() is not None:
                worker = _start(self._command)
            self._busy.add(worker)
            return worker

    def _done(self, worker: subprocess.Popen[bytes]) -> None:
        """End a process that had its job, and make another one ready."""
        _end(worker)
        with self._lock:
            self._busy.discard(worker)
            if self._ready is None and not self._closed:
                self._ready = _start(self._command)

    def _checked(self, answer: dict[str, Any], declared: str) -> dict[str, Any]:
        """Return the facts of an answer, or raise what it refuses the file with."""
        refusal = _REFUSALS.get(answer.get("error", ""))
        if refusal is not None:
            raise refusal(str(answer["message"]), **answer["values"])
        try:
            facts = NEW_FACTS.validate_python(answer.get("facts"))
        except ValidationError as error:
            _log.error(
                "inspection.failed",
                declared=declared,
                reason=answer.get("failure") or str(error),
            )
            raise FormatError(
                f"The file was declared as .{declared}, but looking into it failed: it "
                "is damaged, or made to break its reader. Save it anew with the "
                "framework that made it. If it loads there, tell the operator.",
                declared=declared,
            ) from None
        found: dict[str, Any] = facts.model_dump(mode="json")
        return found


def _ending() -> GatewayBusyError:
    return GatewayBusyError(
        "The gateway is being stopped. Send the file again in a moment.",
        retry_after_s=5,
    )


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603 - our own module, no input
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd="/",
        )
    except OSError as error:
        raise StorageError("The gateway cannot start a process to inspect.") from error


def _exchange(worker: subprocess.Popen[bytes], job: bytes) -> bytes:
    """Send a job; return what comes back, or nothing if the process died."""
    if worker.stdin is None or worker.stdout is None:
        return b""
    try:
        # Left open: when it closes, the gateway has ended, and so does the process.
        worker.stdin.write(job)
        worker.stdin.flush()
        return worker.stdout.read(_MOST_ANSWER)
    except OSError:
        return b""


def _end(worker: subprocess.Popen[bytes]) -> None:
    """Let a process end, and wait for it."""
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue  # it died before it read what was written
    try:
        worker.wait(timeout=1)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def _listing(path: Path) -> Listing:
    try:
        with path.open("rb", buffering=0) as file:
            return Listing(path, cid_of_stream(file))
    except OSError as error:
        raise StorageError("The gateway cannot read its spool directory.") from error
