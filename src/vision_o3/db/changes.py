"""Gateways on one PostgreSQL tell each other which lines they changed.

The message goes out in the transaction that makes the change (``NOTIFY``), and is
delivered when that is committed. It only ever says "look again": a message that is lost
costs a reader a while, never a wrong answer for ever (``registry/resolving.py``).
SQLite has no such thing: whoever keeps answers of it asks, before each, whether
anything was committed since, which takes microseconds.
"""

from __future__ import annotations

import math
import random
import secrets
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import func, select

from vision_o3.db.engine import parse_url
from vision_o3.db.statements import is_sqlite
from vision_o3.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection
    from sqlalchemy.orm import Session

CHANNEL = "vision_o3_changes"
APPLICATION_NAME = "vision-o3 changes"
"""What the listening connection is called in ``pg_stat_activity``."""

_SLICE_S = 0.25
"""How long the thread waits at a stretch: so long ``close`` may take."""
_IDLE_S = 1.0
"""Silence after which the listener tells itself something, to hear whether it hears."""
_ECHO_S = 2.0
"""How long that may take; it takes a millisecond."""
_ECHO = "echo"
"""Stands in such a message where others name a collection."""
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
_CLOSE_S = 2.0
_LIBPQ = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "tcp_user_timeout": "3000",
    "fallback_application_name": APPLICATION_NAME,
}
"""Parameters that find a dead server out; what the URL says goes before."""

_log = structlog.get_logger(__name__)


def notify_change(session: Session, collection: str, line: str) -> None:
    """Tell all listeners of a change to a line, once this transaction is committed.

    Does nothing on SQLite. On PostgreSQL, transactions with messages are committed one
    after the other.
    """
    if not is_sqlite(session):
        session.execute(select(func.pg_notify(CHANNEL, f"{collection}:{line}")))


class CommitCounter:
    """Tells whether anything was committed to a SQLite database, by any process.

    Safe in one thread at a time. See https://sqlite.org/pragma.html#pragma_data_version.

    Args:
        url: A SQLite database that exists, as for ``Database``.
    """

    def __init__(self, url: str) -> None:
        path = parse_url(url).database
        if path is None:
            raise ConfigurationError("The SQLite URL must name a file.")
        self._connection = sqlite3.connect(path, check_same_thread=False, timeout=0)
        self._failures = 0

    def __call__(self) -> int:
        """Return a number, another one than before if there was a commit."""
        try:
            (number,) = self._connection.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:  # busy, as while a crash is being recovered from
            self._failures += 1
            return -self._failures - 1
        return int(number)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class ChangeListener:
    """Listens for changes in a thread of its own, from now until closed.

    Holds one connection beside the pool's, and makes a new one when that is lost. The
    connection must be PostgreSQL's own or a pooler's in session mode: in transaction
    mode a pooler takes ``LISTEN`` and delivers nothing. So the listener is only taken
    to listen once it has heard itself, and tells itself something whenever it is quiet.

    Args:
        url: A PostgreSQL database, as for ``Database``.
        on_change: Called with a collection's name and a line's name.
        on_reset: Called with true when listening has begun, and with false when it
            has ended: what was changed before, or from then on, is not told.

    Both are called by the thread, one at a time, and must neither block nor raise.

    Raises:
        ConfigurationError: The URL is not usable, or the driver is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        on_change: Callable[[str, str], None],
        on_reset: Callable[[bool], None],
    ) -> None:
        self._parameters = _parameters(url)
        self._on_change = on_change
        self._on_reset = on_reset
        self._live = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="changes", daemon=True)
        self._thread.start()

    @property
    def live(self) -> bool:
        """Whether changes are being told, as far as is known."""
        return self._live

    def close(self) -> None:
        """Stop listening. Returns soon, also while a connection is being made."""
        self._closed.set()
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        """Listen; connect again for as long as it takes."""
        import psycopg  # noqa: PLC0415 - an extra, not needed for SQLite

        pause_s = _FIRST_PAUSE_S
        while not self._closed.is_set():
            try:
                with psycopg.connect(**self._parameters, autocommit=True) as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    self._follow(connection)
            except psycopg.Error as error:
                # libpq's text names host and user at most.
                _log.warning("changes.lost", reason=str(error).strip())
            except Exception:  # noqa: BLE001 - the edge of a thread that must not die
                _log.exception("changes.failed")
            finally:
                if self._live:
                    self._set_live(live=False)
                    pause_s = _FIRST_PAUSE_S
            self._closed.wait(pause_s * random.uniform(0.5, 1))  # noqa: S311 - jitter
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _set_live(self, *, live: bool) -> None:
        self._live = live
        self._on_reset(live)
        if live:
            _log.info("changes.followed")

    def _follow(self, connection: Connection[Any]) -> None:
        """Pass messages on until closed, or nothing is heard any more."""
        own = f"{_ECHO}:{secrets.token_hex(8)}"
        told_at: float | None = None
        heard_at = -math.inf
        while not self._closed.is_set():
            now = time.monotonic()
            if told_at is None and now - heard_at >= _IDLE_S:
                connection.execute("SELECT pg_notify(%s, %s)", [CHANNEL, own])
                told_at = now
            elif told_at is not None and now - told_at >= _ECHO_S:
                _log.warning("changes.lost", reason="messages are not delivered")
                return
            for message in connection.notifies(timeout=_SLICE_S, stop_after=1):
                heard_at = time.monotonic()
                if message.payload == own:
                    told_at = None
                    if not self._live:
                        self._set_live(live=True)
                elif not message.payload.startswith(f"{_ECHO}:"):
                    self._pass_on(message.payload)

    def _pass_on(self, payload: str) -> None:
        collection, separator, line = payload.partition(":")
        if separator and collection and line:
            self._on_change(collection, line)
        else:
            # Of a newer version of this software, perhaps: anything may have changed.
            self._on_reset(True)


def _parameters(url: str) -> dict[str, Any]:
    """Return what ``psycopg.connect`` takes, from a URL as ``Database`` takes it."""
    parsed = parse_url(url)
    if parsed.get_backend_name() != "postgresql":
        raise ConfigurationError("Only PostgreSQL tells of changes.")
    try:
        import psycopg  # noqa: F401, PLC0415 - found missing here, not in the thread
    except ImportError as exc:
        raise ConfigurationError(
            "PostgreSQL needs its driver: pip install 'vision-o3[gateway,postgres]'."
        ) from exc
    _, parameters = parsed.get_dialect()().create_connect_args(parsed)
    return {**_LIBPQ, **parameters}
