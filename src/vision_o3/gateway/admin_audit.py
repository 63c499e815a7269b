"""The commands ``admin audit …``: verify, list, export, head."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from vision_o3.db.audit import Filters
from vision_o3.errors import InputError
from vision_o3.gateway.opening import open_database
from vision_o3.registry import audit_trail
from vision_o3.registry.audit_trail import Head
from vision_o3.registry.new_files import new_file
from vision_o3.schemas.versions import MAX_PAGE_SIZE
from vision_o3.sdk.output import printable
from vision_o3.settings import load_settings

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator
    from typing import BinaryIO

    from vision_o3.db.audit import Event
    from vision_o3.registry.audit_trail import Verified, VerifiedChain

_NOT_WHOLE = 7
"""The exit code, as for ``IntegrityError``."""
_MOST_PAGES = 1_000_000


def verify(arguments: Namespace) -> int:
    """Verify the whole trail; 7 if something of it was tampered with."""
    heads = [Head.parse(text) for text in arguments.head]
    with open_database(load_settings()) as database:
        verified = audit_trail.verify_trail(database, heads)
    if arguments.json:
        print(json.dumps({"whole": verified.whole, **asdict(verified)}))
    else:
        for sentence in _sentences(verified):
            print(printable(sentence))
    return 0 if verified.whole else _NOT_WHOLE


def list_events(arguments: Namespace) -> int:
    """Print a page of the events that pass the filters, newest first."""
    for name, most in (("page", _MOST_PAGES), ("page_size", MAX_PAGE_SIZE)):
        if not 1 <= getattr(arguments, name) <= most:
            option = name.replace("_", "-")
            raise InputError(f"--{option} is a whole number from 1 to {most}.")
    filters = _filters(arguments)
    with open_database(load_settings()) as database:
        page = audit_trail.list_trail(
            database, filters, page=arguments.page, page_size=arguments.page_size
        )
    if arguments.json:
        items = [audit_trail.document_of(event) for event in page.items]
        print(json.dumps({**asdict(page), "items": items}))
        return 0
    for event in page.items:
        print(printable(_line(event)))
    pages = max(1, -(-page.total // page.page_size))
    print(f"Events: {page.total}. Page {page.page} of {pages}.")
    return 0


def export(arguments: Namespace) -> int:
    """Write all events that pass the filters to a new file, or to the output."""
    filters = _filters(arguments)
    count = 0
    with open_database(load_settings()) as database, _opened(arguments.file) as file:
        for events in audit_trail.export_trail(database, filters):
            count += len(events)
            for event in events:
                line = json.dumps(audit_trail.document_of(event))
                file.write(line.encode() + b"\n")
    if arguments.file == "-":
        return 0
    if arguments.json:
        print(json.dumps({"file": arguments.file, "events": count}))
    else:
        print(f"{count} events were written to {arguments.file}.")
    return 0


def head(arguments: Namespace) -> int:
    """Print where the trail ends now."""
    with open_database(load_settings()) as database:
        found = audit_trail.head_of(database)
    if arguments.json:
        print(json.dumps({**asdict(found), "head": str(found)}))
    else:
        print(found)
    return 0


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with new_file(Path(name)) as file:
            yield file


def _filters(arguments: Namespace) -> Filters:
    return Filters(
        principal=arguments.principal,
        action=arguments.action,
        subject=arguments.subject,
        since=_moment("--since", arguments.since),
        until=_moment("--until", arguments.until),
    )


def _moment(option: str, text: str | None) -> datetime | None:
    """Return the moment that a text names: a day's begin, or a time with its zone."""
    if text is None:
        return None
    try:
        if len(text) == len("2026-11-25"):
            day = date.fromisoformat(text)
            return datetime(day.year, day.month, day.day, tzinfo=UTC)
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise _no_moment(option, text) from error
    raise _no_moment(option, text)


def _no_moment(option: str, text: str) -> InputError:
    return InputError(
        f"{option} {text[:64]!r} is no moment. Give a day (2026-11-25, from its begin "
        "in UTC) or a time with its zone (2026-11-25T14:00:00Z).",
    )


def _line(event: Event) -> str:
    detail = json.dumps(event.detail, ensure_ascii=False)
    at = event.at.isoformat(timespec="seconds").replace("+00:00", "Z")
    return f"{at}   {event.principal}   {event.action}   {event.subject}   {detail}" + (
        f"   from {event.address}" if event.address else ""
    )


def _sentences(verified: Verified) -> Iterator[str]:
    for chain in verified.chains:
        yield _chain_sentence(chain)
    if verified.chains_left_out:
        yield (
            f"There are {verified.chains_left_out} more chains than can be: somebody "
            "has made them up."
        )
    if verified.head_lost:
        yield (
            "The row in audit_head, which says where this database's chain ends, is "
            "missing or spoilt."
        )
    for missing in verified.missing_heads:
        yield (
            f"The trail does not have {missing}: what followed was cut off, or it was "
            "computed anew from an event before that one on."
        )
    if verified.whole:
        yield f"The audit trail is whole: {verified.events} events."
    else:
        yield (
            "The audit trail is NOT whole. Keep a copy of the database as it is; see "
            "who could write to it; compare with backups, exports and the gateway's "
            "log ('audit.recorded'). 'vision-o3 admin restore' brings back events "
            "that are missing."
        )


def _chain_sentence(chain: VerifiedChain) -> str:
    whose = "this database's" if chain.own else "restored"
    said = f"Chain {chain.chain} ({whose}): {chain.events} events, "
    fault = chain.first_fault
    if fault is None:
        return f"{said}all verified, up to {chain.last_seq}:{chain.last_hash}."
    where = "" if fault.seq is None else f"at event {fault.seq}: "
    return (
        f"{said}{chain.verified} verified before the first of {chain.faults} faults, "
        f"{where}{fault.reason}."
    )
