"""The commands that bring the database back: rebuild-index, backup, restore."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vision_o3 import __version__
from vision_o3.gateway.logs import log_to_stderr
from vision_o3.gateway.o3_client import O3Client
from vision_o3.gateway.opening import open_database, timing_of
from vision_o3.registry import backups
from vision_o3.registry.rebuilding import Rebuilder
from vision_o3.settings import load_settings

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable


_PAUSE_S = 1.0
"""Between two lines that tell how far it is."""


def rebuild_index(arguments: Namespace) -> int:
    """Add what the database lacks from the records; 1 if some could not be read."""
    log_to_stderr()
    settings = load_settings()
    with open_database(settings) as database, O3Client.open(settings) as client:
        rebuilt = Rebuilder(database, client.store, timing_of(settings)).rebuild(
            _progress()
        )
    if arguments.json:
        print(json.dumps(asdict(rebuilt)))
    else:
        for problem in rebuilt.unreadable:
            print(f"{problem.key}: {problem.reason}", file=sys.stderr)
        left_out = len(rebuilt.unreadable)
        print(
            f"The index has {rebuilt.added + rebuilt.present} versions that are in the "
            f"store: {rebuilt.added} were added, {rebuilt.present} were there. "
            + (f"Problems: {left_out}." if left_out else "All were readable.")
        )
    return 1 if rebuilt.unreadable else 0


def backup(arguments: Namespace) -> int:
    """Write users and audit trail to a new file; 1 if events were left out."""
    log_to_stderr()
    with open_database(load_settings()) as database:
        done = backups.back_up(database, Path(arguments.file), software=__version__)
    if arguments.json:
        print(json.dumps({"file": arguments.file, **asdict(done)}))
        return 1 if done.audit_events_unreadable else 0
    print(
        f"{done.users} users and {done.audit_events} audit events were written to "
        f"{arguments.file}, which only you can read. It holds hashes of secrets: keep "
        "it as safe as the database."
    )
    if done.audit_events_unreadable:
        print(
            f"{done.audit_events_unreadable} audit events were left out, as they "
            "cannot be read. See: vision-o3 admin audit verify.",
            file=sys.stderr,
        )
    return 1 if done.audit_events_unreadable else 0


def restore(arguments: Namespace) -> int:
    """Add what the database lacks from a backup; 1 if something there differs."""
    log_to_stderr()
    with open_database(load_settings()) as database:
        done = backups.restore(database, Path(arguments.file))
    differs = bool(done.users_differing or done.events_differing)
    if arguments.json:
        print(json.dumps(asdict(done)))
        return 1 if differs else 0
    for user in done.users_differing:
        print(
            f"User {user!r} is there, but not as in the backup, and was left as is.",
            file=sys.stderr,
        )
    print(
        f"{done.users_added} users and {done.events_added} audit events were added; "
        f"{done.users_present} and {done.events_present} were there."
    )
    if done.events_differing:
        print(
            f"{done.events_differing} audit events, as of {done.first_differing}, were "
            "left out: the database has others in their places, or went on without "
            "them, or they were changed since they were written. Keep this backup.",
            file=sys.stderr,
        )
    return 1 if differs else 0


def _progress() -> Callable[[int, int], None] | None:
    """Return what tells a person how far it is, now and then; nothing to a program."""
    if not sys.stderr.isatty():
        return None
    told_at = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= _PAUSE_S:
            told_at = time.monotonic()
            print(f"{done} of {total} records", file=sys.stderr)

    return tell
