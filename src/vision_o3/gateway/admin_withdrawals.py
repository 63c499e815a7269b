"""The commands that stop a bad version: deprecate, block, unblock, purge."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from vision_o3.content.cid import CID
from vision_o3.db.withdrawals import COLLECTIONS, versions_of
from vision_o3.errors import InputError, NotFoundError
from vision_o3.gateway.logs import log_to_stderr
from vision_o3.gateway.o3_client import O3Client
from vision_o3.gateway.opening import open_database, timing_of
from vision_o3.naming import parse_version
from vision_o3.registry.audit import OPERATOR
from vision_o3.registry.purging import Purger
from vision_o3.registry.resolving import Resolver
from vision_o3.registry.values import to_version
from vision_o3.registry.withdrawal_records import LIFTED
from vision_o3.registry.withdrawing import Wish, Withdrawer
from vision_o3.sdk.output import printable
from vision_o3.settings import load_settings

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Sequence

    from vision_o3.db.engine import Database
    from vision_o3.db.models import Collection
    from vision_o3.registry.purging import Purged
    from vision_o3.registry.values import Version
    from vision_o3.settings import Settings

_ELSEWHERE = (
    "devices that fetched it",
    "mirrors other than VISION_O3_SECOND_STORE",
    "backups of the bucket, and copies that it makes by itself",
    "dumps and backups of the database, which hold what was said of the versions",
    "caches of gateways on other machines, until they sweep next, or start again",
    "uploads in parts that were not published, until they expire",
)
"""Where copies may be that a purging does not reach."""


class _Place(NamedTuple):
    """Which version is meant."""

    collection: Collection
    name: str
    number: int


def deprecate(arguments: Namespace) -> int:
    """Deprecate a version."""
    return _withdraw(arguments, "deprecated")


def block(arguments: Namespace) -> int:
    """Block a version, or all versions of a content."""
    return _withdraw(arguments, "blocked")


def unblock(arguments: Namespace) -> int:
    """Let a version, or all versions of a content, be used again."""
    return _withdraw(arguments, LIFTED)


def purge(arguments: Namespace) -> int:
    """Delete a content for good; 1 if a store may keep old versions of it."""
    log_to_stderr()
    settings = load_settings()
    wish = Wish("purged", arguments.reason, OPERATOR, is_admin=True)
    wanted = _wanted(arguments)
    with ExitStack() as opened:
        database = opened.enter_context(open_database(settings))
        cid = _cid_of(database, wanted)
        versions = _versions_of(database, cid)
        if not arguments.yes:
            _confirm(cid, versions)
        client = opened.enter_context(O3Client.open(settings))
        second = O3Client.open_second(settings)
        if second is not None:
            opened.enter_context(second)
        purged = Purger(
            database,
            client.store,
            None if second is None else second.store,
            timing_of(settings),
            settings.cache_directory,
        ).purge(cid, wish)
    if arguments.json:
        print(json.dumps(_purged_document(purged, settings)))
    else:
        for sentence in _purged_sentences(purged, settings):
            print(sentence)
    return 1 if purged.kept else 0


def _withdraw(arguments: Namespace, state: str) -> int:
    log_to_stderr()
    settings = load_settings()
    wish = Wish(state, arguments.reason, OPERATOR, is_admin=True)
    wanted = _wanted(arguments)
    with (
        open_database(settings) as database,
        O3Client.open(settings) as client,
    ):
        withdrawer = Withdrawer(database, client.store, timing_of(settings))
        if isinstance(wanted, _Place):
            versions: Sequence[Version] = [withdrawer.withdraw(*wanted, wish)]
        else:
            versions = withdrawer.withdraw_content(wanted, wish)
    if arguments.json:
        print(json.dumps({"versions": [_described(each) for each in versions]}))
        return 0
    for version in versions:
        withdrawal = version.withdrawal
        what = "may be used" if withdrawal is None else f"is {withdrawal.state}"
        reason = "" if withdrawal is None else f": {withdrawal.reason}"
        print(printable(f"{_place_of(version)} {what}{reason}"))
    return 0


# ------------------------------------------------------------------------- arguments


def _wanted(arguments: Namespace) -> _Place | CID:
    """Return the version that is meant, or the content.

    Raises:
        InputError: It is not said which, or both are.
    """
    cid: str | None = getattr(arguments, "cid", None)
    line, number = arguments.line, arguments.version
    if cid is not None and line is None:
        return CID.parse(cid)
    if cid is not None or line is None or number is None:
        either = " or --cid CID" if hasattr(arguments, "cid") else ""
        raise InputError(
            f"Say which: COLLECTION/NAME VERSION, as models/yolov11-nano 3{either}.",
        )
    kind, _, name = line.partition("/")
    for collection in COLLECTIONS:
        if collection.name == kind and name:
            return _Place(collection, name, parse_version(number))
    raise InputError(
        f"{line[:200]!r} is no line. Write models/NAME or datasets/NAME.",
    )


def _cid_of(database: Database, wanted: _Place | CID) -> CID:
    if not isinstance(wanted, _Place):
        return wanted
    resolver = Resolver(wanted.collection, database)
    return resolver.version(wanted.name, wanted.number).cid


def _versions_of(database: Database, cid: CID) -> list[Version]:
    with database.read() as session:
        found = [
            to_version(collection, *each)
            for collection in COLLECTIONS
            for each in versions_of(session, collection, cid)
        ]
    if not found:
        raise NotFoundError(f"No model and no dataset has the CID {cid}.", cid=str(cid))
    return found


def _confirm(cid: CID, versions: Sequence[Version]) -> None:
    """Let the operator say once more that this is wanted.

    Raises:
        InputError: They do not, or nobody can be asked.
    """
    print(f"This deletes {cid} for good, and with it:", file=sys.stderr)
    for version in versions:
        print(f"  {_place_of(version)}", file=sys.stderr)
    if not sys.stdin.isatty():
        raise InputError("Nobody can be asked. If that is what you want, say --yes.")
    print("Type 'purge' to go on: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != "purge":
        raise InputError("Nothing was deleted.")


# -------------------------------------------------------------------------- printing


def _place_of(version: Version) -> str:
    return f"{version.collection}/{version.name} v{version.version}"


def _described(version: Version) -> dict[str, Any]:
    withdrawal = version.withdrawal
    return {
        "collection": version.collection,
        "name": version.name,
        "version": version.version,
        "cid": str(version.cid),
        "withdrawal": withdrawal
        and {
            "state": withdrawal.state,
            "reason": withdrawal.reason,
            "at": withdrawal.at.isoformat(),
            "by": withdrawal.by,
        },
    }


def _purged_document(purged: Purged, settings: Settings) -> dict[str, Any]:
    return {
        "cid": str(purged.cid),
        "versions": [_described(each) for each in purged.versions],
        "deleted": list(purged.deleted),
        "second_store": settings.second_store,
        "deleted_from_second": list(purged.deleted_from_second),
        "old_versions": purged.old_versions,
        "kept": list(purged.kept),
        "cache_bytes": purged.cache_bytes,
        "copies_may_be_at": list(_ELSEWHERE),
    }


def _purged_sentences(purged: Purged, settings: Settings) -> Iterator[str]:
    for version in purged.versions:
        yield f"{_place_of(version)} is purged. Its number stays taken."
    for key in purged.deleted:
        yield f"Deleted {key}"
    if settings.second_store is not None:
        yield (
            f"Deleted from {settings.second_store}: {len(purged.deleted_from_second)} "
            "objects."
        )
    if purged.old_versions:
        yield f"Old versions of objects that were deleted too: {purged.old_versions}"
    yield from purged.kept
    yield "Not reached, so see to these too:"
    for place in _ELSEWHERE:
        yield f"  {place}"
