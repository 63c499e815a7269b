"""What several commands open, each closed at the end of a block."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from vision_o3.db.engine import Database
from vision_o3.gateway.main import check_migrated
from vision_o3.registry.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vision_o3.settings import Settings


@contextmanager
def open_database(settings: Settings) -> Iterator[Database]:
    """Yield the database that the settings name.

    Raises:
        ConfigurationError: It has not this version's tables.
        DatabaseUnavailableError: It cannot be reached.
    """
    check_migrated(settings)
    database = Database(settings.database_url.get_secret_value())
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
