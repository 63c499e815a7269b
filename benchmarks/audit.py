"""What the audit trail costs: writing an event, verifying and exporting all of them.

python benchmarks/audit.py [--events 100000] [--writes 500] [--postgres URL]

On SQLite, and on an empty database of PostgreSQL if its URL is given: a transaction
with nothing but an event (and the same with a plain row in its place), then a trail of
so many events verified and exported, with the peak of what Python holds meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import harness

from vision_o3.db import audit
from vision_o3.db.audit import Event, Filters
from vision_o3.db.engine import Database
from vision_o3.db.migrate import migrate
from vision_o3.db.models import SignInFailureRow
from vision_o3.registry.audit_trail import export_trail, verify_trail

if TYPE_CHECKING:
    from collections.abc import Callable

_BATCH = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--writes", type=int, default=500)
    parser.add_argument("--postgres", metavar="URL")
    arguments = parser.parse_args()
    harness.describe_machine()
    print("\n| database | what | result |\n|---|---|--:|")
    with tempfile.TemporaryDirectory() as directory:
        urls = [f"sqlite:///{directory}/registry.db"]
        if arguments.postgres:
            urls.append(arguments.postgres)
        for url in urls:
            _measure(url, arguments.events, arguments.writes)


def _measure(url: str, events: int, writes: int) -> None:
    migrate(url)
    database = Database(url)

    def tell(what: str, result: str) -> None:
        print(f"| {database.dialect} | {what} | {result} |")

    plain, audited = [], []
    for number in range(writes):  # in turns
        plain.append(_timed(lambda number=number: _write_row(database, number)))
        audited.append(_timed(lambda number=number: _write_event(database, number)))
    for what, times in (("a row alone", plain), ("an event alone", audited)):
        tell(f"{what}, median of {writes}", f"{1e3 * statistics.median(times):.2f} ms")
    _fill(database, events)
    taken = _timed(lambda: verify_trail(database))
    tell(f"{events:,} events verified", f"{taken:.1f} s, {events / taken:,.0f}/s")
    taken = _timed(lambda: sum(map(len, export_trail(database, Filters()))))
    tell("the same read for an export", f"{taken:.1f} s, {events / taken:,.0f}/s")
    tracemalloc.start()
    verify_trail(database)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    tell("peak of memory while verifying", f"{peak / harness.MIB:.1f} MiB")
    database.close()


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _write_row(database: Database, number: int) -> None:
    with database.write() as session:
        now = datetime.now(UTC)
        subject = f"user:{number}-{now.timestamp()}"
        session.add(SignInFailureRow(subject=subject, failures=1, last_at=now))


def _write_event(database: Database, number: int) -> None:
    with database.write() as session:
        audit.append_event(
            session,
            at=datetime.now(UTC),
            principal="ann",
            action="version.published",
            subject=f"models/m/v{number}",
            detail={"size": number},
        )


def _fill(database: Database, events: int) -> None:
    for start in range(0, events, _BATCH):
        with database.write() as session:
            head = audit.lock_head(session)
            made = []
            for number in range(start, min(start + _BATCH, events)):
                event = Event(
                    chain=head.chain,
                    seq=head.seq + 1,
                    hash="",
                    at=datetime.now(UTC),
                    principal="ann",
                    action="version.published",
                    subject=f"models/yolov11-nano/v{number}",
                    detail={"cid": "b" * 59, "size": number},
                    address="192.0.2.7",
                    request_id="0b0e7f3c5d1e4a0f9d3a6c2b",
                )
                event = replace(event, hash=event.hash_after(head.hash))
                head.seq, head.hash = event.seq, event.hash
                made.append(event)
            audit.add_events(session, made)


if __name__ == "__main__":
    main()
