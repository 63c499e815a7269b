"""From the text that names a store to the store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vision_o3.errors import ConfigurationError
from vision_o3.storage.keys import is_key
from vision_o3.storage.local import LocalStore

if TYPE_CHECKING:
    from vision_o3.storage.base import ObjectStore
    from vision_o3.storage.s3 import S3Options

_EXAMPLES = "Name a directory, as ./vision-o3/objects, or s3://BUCKET/PREFIX."
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ADDRESS = re.compile(r"[0-9]+(\.[0-9]+){3}")
_LONGEST_PREFIX = 512
"""Bytes; leaves our own keys room enough in the 1,024 of S3."""


@dataclass(frozen=True, slots=True)
class LocalLocation:
    """A directory of this machine."""

    directory: Path


@dataclass(frozen=True, slots=True)
class S3Location:
    """A bucket, and how all keys in it begin (``""``: nothing in common)."""

    bucket: str
    prefix: str


def parse_location(location: str) -> LocalLocation | S3Location:
    """Return what a location names: a directory, or ``s3://BUCKET[/PREFIX]``.

    Raises:
        ConfigurationError: It is neither. The message does not show it: somebody may
            have written a password into it.
    """
    if not location:
        raise ConfigurationError(f"The store's location is empty. {_EXAMPLES}")
    scheme, separator, rest = location.partition("://")
    if not separator:
        return LocalLocation(Path(location).expanduser())
    if scheme != "s3":
        raise ConfigurationError(
            f"The store's location is of a kind that this version cannot use. "
            f"{_EXAMPLES}",
        )
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket:
        raise ConfigurationError(
            "The store's location holds keys or a user before an '@'. Name the bucket "
            "alone, as s3://BUCKET/PREFIX; keys have variables of their own.",
        )
    if not _BUCKET.fullmatch(bucket) or ".." in bucket or _ADDRESS.fullmatch(bucket):
        raise ConfigurationError(
            "The store's location, s3://BUCKET/PREFIX, has no valid bucket: 3 to 63 "
            "characters of a-z, 0-9, '-' and '.', which begin and end with a letter "
            "or digit. The endpoint's host belongs into the setting for the endpoint.",
        )
    prefix = prefix.removesuffix("/")
    if prefix and not (is_key(prefix) and len(prefix) <= _LONGEST_PREFIX):
        raise ConfigurationError(
            "The store's location, s3://BUCKET/PREFIX, has no valid prefix: parts of "
            "a-z, 0-9, '.', '_' and '-' joined by '/', none of which begins with "
            f"another sign than a letter or digit, {_LONGEST_PREFIX} in all at most.",
        )
    return S3Location(bucket, prefix)


def open_store(location: str, options: S3Options | None = None) -> ObjectStore:
    """Return the store at a location.

    Args:
        location: A directory, or ``s3://BUCKET[/PREFIX]``.
        options: How the S3 API is reached; not looked at for a directory.

    Raises:
        ConfigurationError: Not a location, or options are needed and absent.
        StorageError: The directory cannot be made or written; the S3 API cannot be
            reached, or refuses the keys.
    """
    place = parse_location(location)
    if isinstance(place, LocalLocation):
        return LocalStore(place.directory)
    if options is None:
        raise ConfigurationError(
            "A store at s3://… needs an endpoint, a region and keys.",
        )
    from vision_o3.storage.s3 import S3Store  # noqa: PLC0415 - a local store needs none

    return S3Store(place.bucket, place.prefix, options)
