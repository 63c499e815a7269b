"""The only place where a version becomes object keys.

::

    models/<name>/v<N>.<ext>            the artifact, exactly as uploaded
                  v<N>.dag.car          its sidecar
                  v<N>.record.json      its version record
    datasets/<name>/v<N>.<ext> …        likewise, and v<N>.manifest.json for archives
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vision_o3.naming import parse_name, parse_version

_COLLECTIONS = frozenset({"models", "datasets"})
_EXTENSION = re.compile(r"[a-z0-9]{1,8}(\.[a-z0-9]{1,8})?")
_KEY = re.compile(r"(models|datasets)/([^/]+)/v([0-9]+)\.[a-z0-9.]+")


@dataclass(frozen=True, slots=True)
class VersionKeys:
    """Where the objects of one version lie."""

    artifact: str
    sidecar: str
    manifest: str
    record: str


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """The version that a key belongs to."""

    collection: str
    name: str
    version: int


def version_prefix(collection: str, name: str, version: int) -> str:
    """Return how the keys of one version, and no other, begin.

    Raises:
        InvalidNameError, InvalidVersionError: Not a name or number.
        ValueError: No such collection.
    """
    if collection not in _COLLECTIONS:
        raise ValueError(f"There is no collection {collection!r}.")
    return f"{collection}/{parse_name(name)}/v{parse_version(version)}."


def version_keys(
    collection: str, name: str, version: int, extension: str
) -> VersionKeys:
    """Return the keys of one version.

    Raises:
        InvalidNameError, InvalidVersionError: Not a name or number.
        ValueError: No such collection, or not an extension.
    """
    prefix = version_prefix(collection, name, version)
    if not _EXTENSION.fullmatch(extension):
        raise ValueError(f"{extension!r} is not an extension.")
    return VersionKeys(
        artifact=prefix + extension,
        sidecar=prefix + "dag.car",
        manifest=prefix + "manifest.json",
        record=prefix + "record.json",
    )


def parse_key(key: str) -> ParsedKey | None:
    """Return which version a key belongs to; ``None`` if it is not one of ours."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    collection, name, number = match.groups()
    return ParsedKey(collection, name, int(number))
