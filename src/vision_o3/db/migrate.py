"""Bring a database's tables to the form that this code needs."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from vision_o3.db.audit import append_event
from vision_o3.db.engine import BEGIN, make_engine, parse_url
from vision_o3.errors import ConfigurationError, DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Connection
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

_LOCK = 0x56_4F_33
"""PostgreSQL's advisory lock: any number that nothing else in the database takes."""
_WAIT_S = 600
"""For another process that is migrating."""


def migrate(url: str) -> None:
    """Bring the database to the newest revision; make SQLite's file if need be.

    All or nothing, and safe in several processes at once: the later ones wait and
    find nothing to do. Keeps all rows. That tables which were there were changed is in
    the audit trail.

    Raises:
        ConfigurationError: The URL is unusable, or the database newer than this code.
        DatabaseUnavailableError: The database cannot be reached or written.
    """
    _run(url, _upgrade, "head")


def downgrade(url: str, revision: str) -> None:
    """Bring the database back to an older revision; ``"base"`` drops all tables.

    Raises:
        ConfigurationError, DatabaseUnavailableError: As for ``migrate``.
    """
    _run(url, command.downgrade, revision)


def current_revision(url: str) -> str | None:
    """Return the database's revision; ``None`` while it has no tables.

    Raises:
        ConfigurationError, DatabaseUnavailableError: As for ``migrate``.
    """
    parsed = parse_url(url)
    if (
        parsed.get_backend_name() == "sqlite"
        and not Path(str(parsed.database)).exists()
    ):
        return None  # looking would make it
    with _connection(url) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def is_current(url: str) -> bool:
    """Say whether the database is at the revision that this code needs.

    Raises:
        ConfigurationError, DatabaseUnavailableError: As for ``migrate``.
    """
    head = ScriptDirectory.from_config(_config()).get_current_head()
    return current_revision(url) == head


def _upgrade(config: Config, revision: str) -> None:
    connection: Connection = config.attributes["connection"]
    before = MigrationContext.configure(connection).get_current_revision()
    command.upgrade(config, revision)
    after = MigrationContext.configure(connection).get_current_revision()
    if before is None or before == after:
        return
    with Session(connection, join_transaction_mode="rollback_only") as session:
        append_event(
            session,
            at=datetime.now(UTC),
            principal="operator",
            action="database.migrated",
            subject="database",
            detail={"before": before, "after": after},
        )
        session.commit()


def _run(url: str, change: Callable[[Config, str], None], revision: str) -> None:
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        directory = Path(str(parsed.database)).parent
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigurationError(
                f"The database's directory {directory} cannot be made: {exc.strerror}."
            ) from exc
    config = _config()
    with _connection(url) as connection, _exclusive(connection):
        config.attributes["connection"] = connection
        try:
            change(config, revision)
        except CommandError as exc:
            raise ConfigurationError(
                f"The database was made by another Vision-O3, perhaps a newer one "
                f"({exc}). Install that, or restore a copy."
            ) from exc


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "vision_o3.db:migrations")
    return config


@contextmanager
def _connection(url: str) -> Iterator[Connection]:
    engine = make_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _relax_sqlite)
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as exc:
        where = f"{engine.url.host or ''}/{engine.url.database}".lstrip("/")
        kind = (
            DatabaseUnavailableError
            if isinstance(exc, OperationalError)
            else ConfigurationError
        )
        raise kind(f"The database {where} cannot be used: {exc.orig}") from exc
    finally:
        engine.dispose()


def _relax_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={_WAIT_S * 1000}")
    # A table that is rebuilt is dropped on the way, and must not take others along.
    cursor.execute("PRAGMA foreign_keys=OFF")
    cursor.close()


@contextmanager
def _exclusive(connection: Connection) -> Iterator[None]:
    """Run one transaction, alone among those that migrate."""
    if connection.dialect.name == "sqlite":
        connection = connection.execution_options(**{BEGIN: ("BEGIN IMMEDIATE",)})
    with connection.begin():
        if connection.dialect.name == "postgresql":
            for statement in (
                "SET LOCAL statement_timeout = 0",
                f"SET LOCAL lock_timeout = '{_WAIT_S}s'",
                f"SELECT pg_advisory_xact_lock({_LOCK})",
            ):
                connection.execute(text(statement))
        yield
        if connection.dialect.name == "sqlite" and (
            connection.execute(text("PRAGMA foreign_key_check")).first()
        ):
            raise ConfigurationError("Migrating would break links between tables.")
