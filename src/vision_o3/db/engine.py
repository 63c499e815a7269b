"""One database: its URL, its connections, its transactions."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from vision_o3.errors import ConfigurationError, DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

Dialect = Literal["sqlite", "postgresql"]

_ACCEPTED = (
    "Use sqlite:///relative/path.db, sqlite:////absolute/path.db or "
    "postgresql://user:password@host:5432/database."
)
_DRIVERS = {
    "sqlite": "sqlite+pysqlite",
    "sqlite+pysqlite": "sqlite+pysqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_POOL_SIZE = 10
"""Connections kept; as many again are opened under load."""
_WAIT_S = 30.0
"""For a lock or a connection. All transactions are short."""
_IDLE_S = 120
"""How long a gateway that hangs may keep its locks on PostgreSQL."""
BEGIN = "vision_o3_begin"
"""Execution option: the statements that begin a transaction on SQLite."""
_MISSING_TABLE = {"42P01", "42703", "3F000"}
"""PostgreSQL's SQLSTATEs undefined table, undefined column, no schema."""


class Database:
    """A metadata database. Safe in any thread; make one for each process.

    Nothing is connected before the first transaction.

    Args:
        url: ``sqlite:///path`` or ``postgresql://…``.
        echo: Log every statement (without its values).
        wait_s: How long to wait for a lock or a free connection.
        on_failure: Called when a transaction has failed by the database's fault.

    Raises:
        ConfigurationError: The URL is not of these, or its driver is not installed.
            The message never shows a password.
    """

    def __init__(
        self,
        url: str,
        *,
        echo: bool = False,
        wait_s: float = _WAIT_S,
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        self._wait_s = wait_s
        self._on_failure = on_failure
        self._engine = make_engine(url, echo=echo, wait_s=wait_s)
        self.dialect = cast("Dialect", self._engine.dialect.name)
        if self.dialect == "sqlite":
            self._reader: Engine = self._engine.execution_options(
                **{BEGIN: ("PRAGMA query_only=ON", "BEGIN")}
            )
            self._writer: Engine = self._engine.execution_options(
                **{BEGIN: ("PRAGMA query_only=OFF", "BEGIN IMMEDIATE")}
            )
        else:
            self._reader = self._engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            self._writer = self._engine
        # SQLite lets waiting writers poll, and starves some. Here they queue.
        at_once = 1 if self.dialect == "sqlite" else 2 * _POOL_SIZE
        self._turn = threading.Semaphore(at_once)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a read-only transaction on one snapshot. Rows stay usable after it.

        Raises:
            DatabaseUnavailableError: The database did not answer.
            ConfigurationError: Its tables are missing or too old.
        """
        with (
            self._failures(),
            _our_errors(),
            Session(self._reader, expire_on_commit=False) as session,
        ):
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a transaction; commit it at the end, or roll it back on an error.

        On SQLite it holds the write lock from the start, on PostgreSQL it is READ
        COMMITTED. Committed means on disk. Keep it short, and do not nest it.

        Raises:
            DatabaseUnavailableError: The database did not answer. If that was on
                commit, nobody knows whether it was done: read back.
            ConfigurationError: Its tables are missing or too old.
        """
        with (
            self._failures(),
            self._own_turn(),
            _our_errors(),
            Session(self._writer, expire_on_commit=False) as session,
        ):
            yield session
            session.commit()

    def close(self) -> None:
        """Close all idle connections."""
        self._engine.dispose()

    @contextmanager
    def _own_turn(self) -> Iterator[None]:
        if not self._turn.acquire(timeout=self._wait_s):
            raise DatabaseUnavailableError("The database is busy. Try again.")
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except DatabaseUnavailableError:
            if self._on_failure is not None:
                self._on_failure()
            raise


def make_engine(url: str, *, echo: bool = False, wait_s: float = _WAIT_S) -> Engine:
    """Return an engine for one of our two databases; see ``Database``."""
    parsed = parse_url(url)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    try:
        engine = create_engine(
            parsed,
            echo=echo,
            hide_parameters=True,
            json_serializer=partial(json.dumps, allow_nan=False),
            pool_size=_POOL_SIZE,
            max_overflow=_POOL_SIZE,
            pool_timeout=wait_s,
            pool_pre_ping=not is_sqlite,
            connect_args={"timeout": wait_s} if is_sqlite else _libpq(parsed, wait_s),
        )
    except ImportError as exc:
        raise ConfigurationError(
            "PostgreSQL needs its driver: pip install 'vision-o3[gateway,postgres]'."
        ) from exc
    if is_sqlite:
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def parse_url(url: str) -> URL:
    """Return the URL with its driver.

    Raises:
        ConfigurationError: Not the URL of a database that is supported.
    """
    try:
        parsed = make_url(url)
        driver = _DRIVERS[parsed.drivername]
    except (ArgumentError, KeyError, ValueError):
        # The cause could hold the password.
        raise ConfigurationError(
            f"The database URL is not usable. {_ACCEPTED}"
        ) from None
    if driver.startswith("sqlite") and (
        not parsed.database
        or parsed.database.startswith((":memory:", "file:"))
        or parsed.host
        or parsed.query
    ):
        raise ConfigurationError(f"The SQLite URL must name a file. {_ACCEPTED}")
    if "@" in (parsed.host or ""):
        raise ConfigurationError(
            "The database URL has '@' in its password. Write it there as %40."
        )
    return parsed.set(drivername=driver)


def _libpq(url: URL, wait_s: float) -> dict[str, Any]:
    """Return connection parameters that find a dead server or a stuck lock out.

    What the URL says goes before.
    """
    wait_ms = round(wait_s * 1000)
    options = (
        f"-c statement_timeout={wait_ms} -c lock_timeout={wait_ms}"
        f" -c idle_in_transaction_session_timeout={_IDLE_S * 1000}"
    )
    return {
        "connect_timeout": "10",
        "keepalives_idle": "30",
        "tcp_user_timeout": "30000",
        **url.query,
        "options": f"{options} {url.query.get('options', '')}",
    }


def _set_up_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions begin as _begin_sqlite says
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # an answered commit survives power loss
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    for statement in connection.get_execution_options().get(BEGIN, ("BEGIN",)):
        connection.exec_driver_sql(statement)


@contextmanager
def _our_errors() -> Iterator[None]:
    """Let a lost or busy database, or missing tables, out as our errors."""
    try:
        yield
    except PoolTimeoutError as exc:
        raise DatabaseUnavailableError("The database is busy. Try again.") from exc
    except DBAPIError as exc:
        if _lacks_tables(exc):
            raise ConfigurationError(
                "The database's tables are missing or too old. "
                "Run 'vision-o3 admin migrate'."
            ) from exc
        if _is_lost(exc):
            raise DatabaseUnavailableError(
                "The database did not answer. Try again in a moment."
            ) from exc
        raise


def _is_lost(error: DBAPIError) -> bool:
    # SQLite's code 1 is for statements that are wrong: our mistake, not its state.
    code = getattr(error.orig, "sqlite_errorcode", None)
    return error.connection_invalidated or (
        isinstance(error, OperationalError | InterfaceError)
        and code != sqlite3.SQLITE_ERROR
    )


def _lacks_tables(error: DBAPIError) -> bool:
    if getattr(error.orig, "sqlstate", None) in _MISSING_TABLE:
        return True
    return str(error.orig).startswith(("no such table", "no such column"))
