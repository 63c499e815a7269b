"""The command ``admin doctor``: all that a gateway needs, looked at one by one.

Changes nothing, but for the small objects that the store is tried with, which are
removed again. A check that cannot be made is told as a failure, and the others go on.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import textwrap
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cryptography import x509
from sqlalchemy import text

from vision_o3 import __version__
from vision_o3.db import accounts, audit, queries
from vision_o3.db.audit import FIRST
from vision_o3.db.migrate import is_current
from vision_o3.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    StorageError,
    VisionO3Error,
)
from vision_o3.gateway.logs import log_to_stderr
from vision_o3.gateway.o3_client import O3Client
from vision_o3.gateway.opening import open_database
from vision_o3.gateway.redaction import Redaction, secrets_of
from vision_o3.gateway.serving import tls_files
from vision_o3.gateway.tracing import open_tracing
from vision_o3.registry.permissions import ADMIN, permissions_of
from vision_o3.registry.rebuilding import require_index
from vision_o3.registry.store_checks import Status as StoreStatus
from vision_o3.settings import Settings, load_settings

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator

    from vision_o3.db.engine import Database

_WIDTH = 88
_COLUMN = 20
_FEW_LETTERS = 12
"""Different characters of a key; a random one of 32 or more has over 20."""
_SHORT_TOKEN = 16
_CLOCK_WARN = timedelta(seconds=2)
_EXPIRES_SOON = timedelta(days=21)
_OTHER_FILES = 1024
"""Descriptors for what is not a connection, as ``serve`` keeps them."""
_GIB = 1 << 30

T = TypeVar("T")


class Status(StrEnum):
    """How something was found."""

    OK = "ok"
    WARN = "warn"
    """The gateway runs; the sentence says what to look at."""
    FAIL = "fail"
    """The gateway does not run, or not as it should."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one thing."""

    check: str
    status: Status
    sentence: str
    """What is so and, unless ``ok``, what to do."""


def doctor(arguments: Namespace) -> int:
    """Print what was found of all that a gateway needs; 1 if something fails."""
    findings = list(_examine())
    failed = any(finding.status is Status.FAIL for finding in findings)
    if arguments.json:
        shown = [asdict(finding) for finding in findings]
        print(json.dumps({"ok": not failed, "findings": shown}))
    else:
        for finding in findings:
            print(_line(finding))
    return 1 if failed else 0


def _examine() -> Iterator[Finding]:
    try:
        settings = load_settings()
    except ConfigurationError as error:
        yield Finding("settings", Status.FAIL, error.message)
        return
    log_to_stderr()
    redact = Redaction(secrets_of(settings))
    yield _ok("settings", f"Valid, for Vision-O3 {__version__}.")
    for finding in examine(settings):
        yield Finding(finding.check, finding.status, redact(finding.sentence))


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield what is found of a gateway with these settings, one thing at a time."""
    for name, check in _CHECKS:
        yield from _made(name, check, settings)
    with ExitStack() as opened:
        try:
            database = opened.enter_context(open_database(settings))
        except VisionO3Error:
            return  # told already
        for name, look in _DATABASE_CHECKS:
            yield from _made(name, look, database)
        yield from _made("index", partial(_index, database), settings)


def _made(
    name: str, check: Callable[[T], Iterator[Finding]], of: T
) -> Iterator[Finding]:
    """Yield what a check finds; that it cannot be made is a finding too."""
    try:
        yield from check(of)
    except VisionO3Error as error:
        yield Finding(name, Status.FAIL, error.message)
    except OSError as error:
        yield Finding(name, Status.FAIL, f"It cannot be looked at: {error}.")


# -------------------------------------------------------------------------- settings


def _keys(settings: Settings) -> Iterator[Finding]:
    key = settings.signing_key()
    others = len(settings.verifying_keys())
    beside = f" {others} more are accepted." if others else ""
    if not isinstance(key, str):
        yield _ok("keys", f"Tokens are signed with Ed25519 (EdDSA).{beside}")
    elif len(set(key)) < _FEW_LETTERS:
        yield _warn(
            "keys",
            "VISION_O3_JWT_SECRET does not look random: who guesses it can make any "
            "token. Make one: python3 -c 'import secrets; "
            "print(secrets.token_urlsafe(48))'",
        )
    else:
        yield _ok("keys", f"Tokens are signed with a shared secret (HS256).{beside}")
    token = settings.metrics_token
    if token is not None and len(token.get_secret_value()) < _SHORT_TOKEN:
        yield _warn(
            "keys",
            f"VISION_O3_METRICS_TOKEN is shorter than {_SHORT_TOKEN} characters: "
            "make a longer one.",
        )


def _tls(settings: Settings) -> Iterator[Finding]:
    files = tls_files(settings)
    if files is None:
        behind = f" behind {', '.join(settings.proxies)}" if settings.proxies else ""
        yield _ok(
            "tls",
            f"Plain HTTP{behind}: let a proxy speak TLS before the gateway, unless "
            "it is reached on this machine only.",
        )
        return
    certificate = x509.load_pem_x509_certificates(files.certificate.read_bytes())[0]
    ends = certificate.not_valid_after_utc
    left = ends - datetime.now(UTC)
    sentence = f"The certificate is valid until {ends:%Y-%m-%d}."
    if left <= timedelta():
        yield _fail("tls", f"The certificate expired on {ends:%Y-%m-%d}: renew it.")
    elif left < _EXPIRES_SOON:
        yield _warn("tls", f"{sentence} Renew it, and restart the gateway.")
    else:
        yield _ok("tls", sentence)


def _tracing(settings: Settings) -> Iterator[Finding]:
    if settings.tracing:
        open_tracing().close()
        yield _ok("tracing", "Traces are made, and sent where OTEL_… says.")


# ----------------------------------------------------------------------------- system


def _descriptors(settings: Settings) -> Iterator[Finding]:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.max_connections + _OTHER_FILES
    if most == resource.RLIM_INFINITY or most >= needed:
        yield _ok("descriptors", "A process may open enough files.")
        return
    yield _warn(
        "descriptors",
        f"A process may open {most} files, and VISION_O3_MAX_CONNECTIONS needs "
        f"{needed}: fewer connections are accepted. Raise the limit (ulimit -n, "
        "LimitNOFILE=), or lower the setting.",
    )


def _spool(settings: Settings) -> Iterator[Finding]:
    directory = settings.spool_directory
    place = _existing(directory)
    if not _is_writable(place):
        yield _fail(
            "spool",
            f"{place} cannot be written: uploads are received in {directory} "
            "(VISION_O3_SPOOL_DIR).",
        )
        return
    free = shutil.disk_usage(place).free
    room = free - settings.min_free_bytes
    if room <= 0:
        yield _fail(
            "spool",
            f"The disk of {directory} has {free / _GIB:.1f} GiB free, and "
            "VISION_O3_MIN_FREE_BYTES are to be left: no upload is accepted. Free "
            "some, or set VISION_O3_SPOOL_DIR to another disk.",
        )
    elif room < settings.max_upload_bytes:
        yield _warn(
            "spool",
            f"The disk of {directory} has {free / _GIB:.1f} GiB free: a file of "
            f"VISION_O3_MAX_UPLOAD_BYTES ({settings.max_upload_bytes / _GIB:.1f} GiB) "
            "does not fit.",
        )
    else:
        yield _ok("spool", f"{free / _GIB:.1f} GiB free in {directory}.")
    if "://" not in settings.store:
        store = _existing(Path(settings.store).expanduser())
        if store.stat().st_dev != place.stat().st_dev:
            yield _warn(
                "spool",
                f"{directory} and {settings.store} are on different file systems: "
                "each upload is copied instead of linked. Set VISION_O3_SPOOL_DIR to "
                "the store's.",
            )


def _cache(settings: Settings) -> Iterator[Finding]:
    directory = settings.cache_directory
    if directory is None:
        return
    place = _existing(directory)
    if not _is_writable(place):
        yield _fail("cache", f"{place} cannot be written (VISION_O3_CACHE_DIR).")
        return
    usage = shutil.disk_usage(place)
    if usage.total < settings.cache_bytes + settings.min_free_bytes:
        yield _warn(
            "cache",
            f"The disk of {directory} holds {usage.total / _GIB:.1f} GiB, less than "
            f"VISION_O3_CACHE_BYTES ({settings.cache_bytes / _GIB:.1f} GiB) and "
            "VISION_O3_MIN_FREE_BYTES: the cache keeps less.",
        )
    else:
        yield _ok("cache", f"{usage.free / _GIB:.1f} GiB free in {directory}.")


def _is_writable(place: Path) -> bool:
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


# ------------------------------------------------------------------------------ store


def _store(settings: Settings) -> Iterator[Finding]:
    yield from _store_findings("store", settings, second=False)


def _second_store(settings: Settings) -> Iterator[Finding]:
    if settings.second_store is not None:
        yield from _store_findings("second store", settings, second=True)


def _store_findings(
    name: str, settings: Settings, *, second: bool
) -> Iterator[Finding]:
    """Yield what ``check-store`` finds, in one line as far as all is well."""
    location = settings.second_store if second else settings.store
    hint = ""
    if location is not None and "://" not in location:
        hint = f" Look at VISION_O3_{'SECOND_' * second}STORE ({location})."
    try:
        findings = O3Client.check(settings, second=second)
    except StorageError as error:
        yield _fail(name, f"{error.message}{hint}")
        return
    fine = [each for each in findings if each.status is StoreStatus.OK]
    if fine:
        what = ", ".join(each.capability.replace("_", " ") for each in fine)
        yield _ok(name, f"As it should be: {what}.")
    for found in findings:
        if found.status is StoreStatus.FAILED:
            yield _fail(name, f"{found.sentence}{hint}")
        elif found.status is StoreStatus.LIMITED:
            yield _warn(name, found.sentence)


def _index(database: Database, settings: Settings) -> Iterator[Finding]:
    with O3Client.open(settings) as client:
        require_index(database, client.store)
    yield _ok("index", "The database belongs to what is in the store.")


# --------------------------------------------------------------------------- database


def _migrations(settings: Settings) -> Iterator[Finding]:
    try:
        current = is_current(settings.database_url.get_secret_value())
    except DatabaseUnavailableError as error:
        said = " ".join(error.message.split())
        yield _fail("database", f"{said} Look at VISION_O3_DATABASE_URL.")
        return
    if current:
        yield _ok("migrations", "The database has this version's tables.")
    else:
        yield _fail(
            "migrations",
            "The database's tables are not those of this version: run 'vision-o3 "
            "admin migrate'.",
        )


def _database(database: Database) -> Iterator[Finding]:
    ask = "sqlite_version()" if database.dialect == "sqlite" else "version()"
    with database.read() as session:
        version = str(session.execute(text(f"SELECT {ask}")).scalar_one())
    name = "SQLite " if database.dialect == "sqlite" else ""
    yield _ok("database", f"{name}{version.partition(' on ')[0]} answers.")


def _clock(database: Database) -> Iterator[Finding]:
    before = datetime.now(UTC)
    with database.read() as session:
        told = queries.database_now(session)
    after = datetime.now(UTC)
    difference = max(before - told, told - after, timedelta())
    if difference <= _CLOCK_WARN:
        yield _ok("clock", "This machine's clock agrees with the database's.")
        return
    yield _warn(
        "clock",
        f"This machine's clock is {difference.total_seconds():.0f} s "
        f"{'ahead of' if before > told else 'behind'} the database's. Set both, for "
        "example by NTP: tokens and secrets expire by them.",
    )


def _users(database: Database) -> Iterator[Finding]:
    with database.read() as session:
        users = [row for row in accounts.list_users(session) if not row.disabled_at]
    if not users:
        yield _warn(
            "users",
            "There are none, so that nobody can sign in: vision-o3 user add NAME "
            "--role admin",
        )
    elif any(ADMIN in permissions_of(row.roles, row.permissions) for row in users):
        yield _ok("users", f"{len(users)} may sign in, an admin among them.")
    else:
        yield _warn(
            "users",
            f"{len(users)} may sign in, but no admin: users are managed on this "
            "machine only. vision-o3 user add NAME --role admin adds one.",
        )


def _audit(database: Database) -> Iterator[Finding]:
    with database.read() as session:
        head = audit.find_head(session)
        last = (
            audit.hashes_between(session, head.chain, head.seq, head.seq + 1)
            if head is not None
            else {}
        )
    if head is None:
        yield _warn(
            "audit",
            "Where the audit trail ends is not noted: run 'vision-o3 admin audit "
            "verify'.",
        )
    elif last != ({} if head.seq == 0 else {head.seq: head.hash}) or (
        head.seq == 0 and head.hash != FIRST
    ):
        yield _fail(
            "audit",
            "The last event of the audit trail is not the one that is noted: it was "
            "tampered with. Run 'vision-o3 admin audit verify'.",
        )
    else:
        yield _ok(
            "audit",
            f"It ends with event {head.seq} of {head.chain}; 'vision-o3 admin audit "
            "verify' looks at all.",
        )


_CHECKS: tuple[tuple[str, Callable[[Settings], Iterator[Finding]]], ...] = (
    ("keys", _keys),
    ("tls", _tls),
    ("tracing", _tracing),
    ("descriptors", _descriptors),
    ("spool", _spool),
    ("cache", _cache),
    ("store", _store),
    ("second store", _second_store),
    ("migrations", _migrations),
)
_DATABASE_CHECKS: tuple[tuple[str, Callable[[Database], Iterator[Finding]]], ...] = (
    ("database", _database),
    ("clock", _clock),
    ("users", _users),
    ("audit", _audit),
)


def _ok(check: str, sentence: str) -> Finding:
    return Finding(check, Status.OK, sentence)


def _warn(check: str, sentence: str) -> Finding:
    return Finding(check, Status.WARN, sentence)


def _fail(check: str, sentence: str) -> Finding:
    return Finding(check, Status.FAIL, sentence)


def _line(finding: Finding) -> str:
    status = str(finding.status)
    return textwrap.fill(
        finding.sentence,
        width=_WIDTH,
        initial_indent=f"{status.upper() if status == 'fail' else status:<5} "
        f"{finding.check}".ljust(_COLUMN),
        subsequent_indent=" " * _COLUMN,
        break_long_words=False,
        break_on_hyphens=False,
    )
