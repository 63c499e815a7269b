"""The commands ``admin scrub`` and ``admin mirror``: are the objects right, twice."""

from __future__ import annotations

import json
import math
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vision_o3.db import queries
from vision_o3.db.models import DATASETS, MODELS
from vision_o3.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    InputError,
)
from vision_o3.gateway.logs import log_to_stderr
from vision_o3.gateway.o3_client import O3Client
from vision_o3.gateway.opening import check_migrated, open_database, open_spool
from vision_o3.registry.mirroring import Mirror
from vision_o3.registry.scrubbing import Scrubber
from vision_o3.registry.suspects import Suspects
from vision_o3.settings import load_settings
from vision_o3.storage.factory import parse_location

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator
    from typing import TextIO

    from vision_o3.registry.mirroring import Mirrored
    from vision_o3.registry.scrubbing import Finding, Scrubbed
    from vision_o3.settings import Settings

_MB = 1_000_000
_REDRAW_S = 1.0
_CLEAR_TO_END = "\x1b[K"


def scrub(arguments: Namespace) -> int:
    """Verify what is stored, print what is wrong; 1 if something wrong is left."""
    log_to_stderr()
    settings = load_settings()
    if not 0 <= arguments.rate < math.inf:
        raise InputError(
            f"{arguments.rate:g} is no rate. Give megabytes in a second, as "
            "--rate 50, or 0 for no limit.",
        )
    with ExitStack() as opened:
        check_migrated(settings)
        database = opened.enter_context(open_database(settings))
        client = opened.enter_context(O3Client.open(settings))
        second = O3Client.open_second(settings) if arguments.repair else None
        if second is not None:
            opened.enter_context(second)
        scrubber = Scrubber(
            database,
            client.store,
            None if second is None else second.store,
            Suspects(database),
            opened.enter_context(open_spool(settings)),
            rate_bytes_per_s=arguments.rate * _MB,
        )
        line = opened.enter_context(_progress_line())
        scrubbed = scrubber.scrub(
            marked=arguments.marked,
            repair=arguments.repair,
            progress=lambda checked, size, faults: line(
                f"{checked} objects, {_in_mb(size)} read, {faults} faults"
            ),
        )
    if arguments.json:
        print(json.dumps(_scrubbed_document(scrubbed)))
    else:
        for sentence in _scrubbed_sentences(scrubbed, tried=arguments.repair):
            print(sentence)
    return 0 if scrubbed.clean else 1


def mirror(arguments: Namespace) -> int:
    """Copy one store to another, print what was done; 1 if something is left out."""
    log_to_stderr()
    settings = load_settings()
    if parse_location(arguments.source) == parse_location(arguments.target):
        raise ConfigurationError(
            f"SRC and DST are both {arguments.source}. Name two stores.",
        )
    with ExitStack() as opened:
        source = opened.enter_context(O3Client.open_at(settings, arguments.source))
        target = opened.enter_context(O3Client.open_at(settings, arguments.target))
        spool = opened.enter_context(open_spool(settings))
        is_claimed = _claims(settings, opened)
        line = opened.enter_context(_progress_line())
        mirrored = Mirror(source.store, target.store, spool).mirror(
            verify=arguments.verify,
            is_claimed=is_claimed,
            progress=lambda seen, total, size: line(
                f"{seen} of {total} versions, {_in_mb(size)} copied"
            ),
        )
    if arguments.json:
        document = asdict(mirrored)
        print(json.dumps({"complete": mirrored.complete, **document}))
    else:
        for sentence in _mirrored_sentences(mirrored, arguments.target):
            print(sentence)
    return 0 if mirrored.complete else 1


# -------------------------------------------------------------------------- printing


def _scrubbed_document(scrubbed: Scrubbed) -> dict[str, Any]:
    return {
        "clean": scrubbed.clean,
        "checked": scrubbed.checked,
        "bytes_read": scrubbed.bytes_read,
        "repaired": scrubbed.repaired,
        "unrepaired": scrubbed.unrepaired,
        "wrong": [_finding_document(each) for each in scrubbed.wrong],
        "unreadable_count": scrubbed.unreadable_count,
        "unreadable": [_finding_document(each) for each in scrubbed.unreadable],
        "ended_early": scrubbed.ended_early,
    }


def _finding_document(finding: Finding) -> dict[str, Any]:
    return {
        **asdict(finding),
        "kind": finding.kind.value,
        "cid": str(finding.cid),
        "fault": finding.fault.value,
    }


def _scrubbed_sentences(scrubbed: Scrubbed, *, tried: bool) -> Iterator[str]:
    for finding in (*scrubbed.wrong, *scrubbed.unreadable):
        remedy = f" {finding.remedy}" if finding.remedy else ""
        yield f"{finding.fault.value} {finding.key}: {finding.detail}{remedy}"
    listed = len(scrubbed.wrong) + len(scrubbed.unreadable)
    more = scrubbed.repaired + scrubbed.unrepaired + scrubbed.unreadable_count - listed
    if more:
        yield f"And {more} more, which are in the log alone."
    yield (
        f"Checked: {scrubbed.checked} objects, {_in_mb(scrubbed.bytes_read)} read. "
        f"Repaired: {scrubbed.repaired}. Wrong or missing: {scrubbed.unrepaired}. "
        f"Could not be read: {scrubbed.unreadable_count}."
    )
    if scrubbed.unrepaired and not tried:
        yield (
            "To repair them: 'vision-o3 admin scrub --marked --repair'. It takes a "
            "sidecar from its artifact, a record from the database, and the rest from "
            "VISION_O3_SECOND_STORE."
        )
    if scrubbed.ended_early:
        yield f"Not everything was looked at. {scrubbed.ended_early}"


def _mirrored_sentences(mirrored: Mirrored, target: str) -> Iterator[str]:
    for problem in mirrored.problems:
        yield f"{problem.key}: {problem.detail}"
    more = mirrored.problem_count - len(mirrored.problems)
    if more:
        yield f"And {more} more, which are in the log alone."
    yield (
        f"Copied: {mirrored.copied} objects, {_in_mb(mirrored.bytes)}. There already: "
        f"{mirrored.present} objects. Complete at {target}: {mirrored.versions} "
        f"versions. Uploads at work, left out: {mirrored.skipped}. Problems: "
        f"{mirrored.problem_count}."
    )
    if mirrored.ended_early:
        yield (
            f"Not everything was looked at. {mirrored.ended_early} The same command "
            "goes on where this one ended."
        )


def _in_mb(size: int) -> str:
    return f"{size / _MB:,.1f} MB"


@contextmanager
def _progress_line() -> Iterator[Callable[[str], None]]:
    """Yield what shows how far the work is, on a terminal at most once a second."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    drawn: float | None = None
    stream: TextIO = sys.stderr

    def draw(text: str) -> None:
        nonlocal drawn
        now = time.monotonic()
        if drawn is None or now - drawn >= _REDRAW_S:
            drawn = now
            stream.write(f"\r{text}{_CLEAR_TO_END}")
            stream.flush()

    try:
        yield draw
    finally:
        stream.write(f"\r{_CLEAR_TO_END}")
        stream.flush()


def _claims(
    settings: Settings, opened: ExitStack
) -> Callable[[str, str, int], bool] | None:
    """Return what says whether a version is only being uploaded.

    ``None``, with a note to the operator, where there is no database: a mirror may be
    wanted just because it is lost.
    """
    try:
        check_migrated(settings)
    except (ConfigurationError, DatabaseUnavailableError) as error:
        print(
            "vision-o3: There is no database to ask which uploads are not finished, so "
            f"what of one is in the store may be copied. {error}",
            file=sys.stderr,
        )
        return None
    database = opened.enter_context(open_database(settings))

    def is_claimed(collection: str, name: str, number: int) -> bool:
        tables = MODELS if collection == MODELS.name else DATASETS
        with database.read() as session:
            line = queries.find_line(session, tables, name)
            if line is None:
                return False
            claim = queries.find_claim(session, tables, line)
        return claim is not None and claim.version == number

    return is_claimed
