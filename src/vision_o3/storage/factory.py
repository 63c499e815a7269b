"""From the setting that names a store to the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vision_o3.errors import ConfigurationError
from vision_o3.storage.local import LocalStore

if TYPE_CHECKING:
    from vision_o3.storage.base import ObjectStore


def open_store(location: str) -> ObjectStore:
    """Return the store at a location, which is a directory for now.

    Raises:
        ConfigurationError: No adapter for a location of this form.
        StorageError: The directory cannot be made or written.
    """
    scheme, separator, _ = location.partition("://")
    if separator:
        raise ConfigurationError(
            f"VISION_O3_STORE={scheme}://… is of a kind that this version cannot use. "
            "Name a directory, for example ./vision-o3/objects.",
        )
    if not location:
        raise ConfigurationError(
            "VISION_O3_STORE is empty. "
            "Name a directory, for example ./vision-o3/objects.",
        )
    return LocalStore(Path(location).expanduser())
