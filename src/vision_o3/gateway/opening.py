"""What the gateway and its commands open, each closed at the end of a block."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from vision_o3.db.engine import Database
from vision_o3.db.migrate import is_current
from vision_o3.errors import ConfigurationError
from vision_o3.registry.claims import Timing
from vision_o3.registry.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vision_o3.settings import Settings


def check_migrated(settings: Settings) -> None:
    """Raise unless the database has this version's schema.

    Raises:
        ConfigurationError: It has not; the message says what to do.
        DatabaseUnavailableError: It cannot be reached.
    """
    if not is_current(settings.database_url.get_secret_value()):
        raise ConfigurationError(
            "The database's tables are not those of this version. Run 'vision-o3 "
            "admin migrate', or start with 'vision-o3 serve --migrate'.",
        )


def timing_of(settings: Settings) -> Timing:
    """Return how long claims last and are waited for."""
    return Timing(
        lease=timedelta(seconds=settings.lease_s), claim_wait_s=settings.claim_wait_s
    )


@contextmanager
def open_database(
    settings: Settings, on_failure: Callable[[], None] | None = None
) -> Iterator[Database]:
    """Yield the database that the settings name.

    Args:
        settings: All settings.
        on_failure: As for ``Database``.

    Raises:
        ConfigurationError: It has not this version's tables.
        DatabaseUnavailableError: It cannot be reached.
    """
    check_migrated(settings)
    database = Database(settings.database_url.get_secret_value(), on_failure=on_failure)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def open_spool(settings: Settings) -> Iterator[Spool]:
    """Yield the spool, for scratch files and to be swept."""
    spool = Spool(
        settings.spool_directory,
        max_size=settings.max_upload_bytes,
        min_free=settings.min_free_bytes,
    )
    try:
        yield spool
    finally:
        spool.close()
