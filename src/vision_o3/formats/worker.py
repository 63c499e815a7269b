"""One inspection in a process of its own: ``python -m vision_o3.formats.worker``.

The process reads one job, a line of JSON, from its standard input, bounds itself, looks
at the file, and writes one JSON object to its standard output. What a hostile file
does to a parser, it does here: the gateway loses one request. The process has no
secrets: its environment is empty, and it inherits no connection.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from vision_o3.errors import LimitExceededError, VisionO3Error
from vision_o3.formats.inspection import Outputs, inspect
from vision_o3.formats.limits import Limits

OPEN_FILES = 64
LARGEST_OUTPUT = 4 << 30
"""Bytes of a manifest or index that the process may write."""
_MOST_JOB = 1 << 16


def main() -> int:
    """Do the one job that standard input names; return the exit code."""
    line = sys.stdin.buffer.readline(_MOST_JOB)
    if not line:
        return 0  # a process that was kept ready and is not needed
    threading.Thread(target=_end_with_gateway, daemon=True).start()
    job = json.loads(line)
    limits = Limits(**job["limits"])
    bound_process(limits)
    answer = work(job, limits)
    # In the order of the record, so that a rebuilt index answers the same bytes.
    sys.stdout.write(json.dumps(answer, allow_nan=False, sort_keys=True))
    sys.stdout.flush()
    sys.stdout.close()  # the answer is whole
    return 0


def _end_with_gateway() -> None:
    """End this process when nobody waits for its answer any more."""
    # Not by the buffered stream: a thread that holds its lock stops Python's ending.
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def bound_process(limits: Limits) -> None:
    """Bound what this process may use, for the rest of its life.

    Memory is bounded by what it may write to (``RLIMIT_DATA``), as mapping a large file
    to read it costs none. Processor time is a backstop: whoever started this process
    bounds its time by the clock.
    """
    processor_s = int(limits.time_s * 2) + 1  # two threads
    for kind, bound in (
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_CPU, processor_s),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_FSIZE, LARGEST_OUTPUT),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            bound = min(bound, hard)  # noqa: PLW2901 - no process can raise it
        resource.setrlimit(kind, (bound, bound))


def work(job: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """Return the answer to a job: what the file is, or the error that tells."""
    try:
        with (
            Path(job["manifest"]).open("wb") as manifest,
            Path(job["index"]).open("wb") as index,
        ):
            inspection = inspect(
                Path(job["path"]), job["declared"], limits, Outputs(manifest, index)
            )
    except VisionO3Error as error:
        return _refusal(error)
    except MemoryError:
        return _refusal(
            LimitExceededError(
                "Looking into the file took more memory than the "
                f"{limits.memory_bytes} bytes that this gateway grants "
                "(VISION_O3_INSPECT_MEMORY_BYTES).",
                limit=limits.memory_bytes,
            )
        )
    except Exception:  # noqa: BLE001 - the edge of the process: told, not lost
        return {"failure": traceback.format_exc(limit=-8)}
    return {
        "file_format": inspection.file_format,
        "facts": inspection.facts,
        "listed": inspection.listed,
    }


def _refusal(error: VisionO3Error) -> dict[str, Any]:
    return {
        "error": error.code,
        "message": error.message,
        "values": {
            name: value
            for name, value in error.values.items()
            if isinstance(value, str | int | float)
        },
    }


if __name__ == "__main__":
    sys.exit(main())
