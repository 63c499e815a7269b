"""The only place where a version becomes object keys.

::

    models/<name>/v<N>.<ext>            the artifact, exactly as uploaded
                  v<N>.dag.car          its sidecar
                  v<N>.record.json      its version record
                  v<N>.withdrawal-<K>.json  a change of whether it may be used
    datasets/<name>/v<N>.<ext> …        likewise, and for archives
                    v<N>.manifest.json  the list of its files
                    v<N>.members.idx    where each of them lies in it
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vision_o3.errors import InvalidNameError, InvalidVersionError
from vision_o3.naming import parse_name, parse_version

EXTENSIONS = {
    "models": frozenset({"pt", "onnx", "tflite", "h5"}),
    "datasets": frozenset({"zip", "tar.gz", "json", "xml"}),
}
"""What artifacts may be, by collection: the formats that ``formats`` knows."""
_SIDECAR, _RECORD = "dag.car", "record.json"
_MANIFEST, _INDEX = "manifest.json", "members.idx"
_WITHDRAWAL = re.compile(r"withdrawal-([1-9][0-9]{0,8})\.json")
_MOST_WITHDRAWALS = 999_999_999
_LONGEST_KEY = 1024
"""Bytes; the limit of S3."""

_PART = "[a-z0-9][a-z0-9._-]{0,254}"
_SYNTAX = re.compile(rf"{_PART}(/{_PART})*")
_KEY = re.compile(r"([a-z]+)/([^/]+)/v([1-9][0-9]*)\.([a-z0-9.-]+)")


@dataclass(frozen=True, slots=True)
class VersionKeys:
    """Where the objects of one version lie."""

    artifact: str
    sidecar: str
    record: str
    manifest: str
    index: str


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """The version that a key belongs to."""

    collection: str
    name: str
    version: int
    withdrawal: int = 0
    """Which withdrawal of the version lies there; 0: it is another object."""


def is_key(text: str) -> bool:
    """Say whether text may be a key: parts of ``a-z 0-9 . _ -`` joined by ``/``.

    No part is empty, starts with a dot or is over 255 bytes, so that a key is a
    relative path on any file system and safe as it is in a URL.
    """
    return len(text) <= _LONGEST_KEY and _SYNTAX.fullmatch(text) is not None


def line_prefix(collection: str, name: str) -> str:
    """Return how the keys of one line, and no other, begin.

    Raises:
        InvalidNameError: Not a name.
        ValueError: No such collection.
    """
    if collection not in EXTENSIONS:
        raise ValueError(f"There is no collection {collection!r}.")
    return f"{collection}/{parse_name(name)}/"


def version_prefix(collection: str, name: str, version: int) -> str:
    """Return how the keys of one version, and no other, begin.

    Raises:
        InvalidNameError, InvalidVersionError: Not a name or number.
        ValueError: No such collection.
    """
    return f"{line_prefix(collection, name)}v{parse_version(version)}."


def version_keys(
    collection: str, name: str, version: int, extension: str
) -> VersionKeys:
    """Return the keys of one version.

    Raises:
        InvalidNameError, InvalidVersionError: Not a name or number.
        ValueError: No such collection, or not an extension of its artifacts.
    """
    prefix = version_prefix(collection, name, version)
    if extension not in EXTENSIONS[collection]:
        raise ValueError(f"{extension!r} is not an extension of {collection}.")
    return VersionKeys(
        artifact=prefix + extension,
        sidecar=prefix + _SIDECAR,
        record=prefix + _RECORD,
        manifest=prefix + _MANIFEST,
        index=prefix + _INDEX,
    )


def withdrawal_prefix(collection: str, name: str, version: int) -> str:
    """Return how the keys of one version's withdrawals, and of nothing else, begin.

    Raises:
        InvalidNameError, InvalidVersionError: Not a name or number.
        ValueError: No such collection.
    """
    return f"{version_prefix(collection, name, version)}withdrawal-"


def withdrawal_key(collection: str, name: str, version: int, number: int) -> str:
    """Return where a withdrawal of a version lies; ``number`` counts from 1.

    Raises:
        InvalidNameError, InvalidVersionError: Not a name or number of a version.
        ValueError: No such collection, or not such a number.
    """
    if not 1 <= number <= _MOST_WITHDRAWALS:
        raise ValueError(f"{number} is not the number of a withdrawal.")
    return f"{withdrawal_prefix(collection, name, version)}{number}.json"


def parse_key(key: str) -> ParsedKey | None:
    """Return which version a key belongs to; ``None`` if to none of ours."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    collection, name, number, suffix = match.groups()
    known = EXTENSIONS.get(collection, frozenset()) | {
        _SIDECAR,
        _RECORD,
        _MANIFEST,
        _INDEX,
    }
    withdrawal = _WITHDRAWAL.fullmatch(suffix)
    if collection not in EXTENSIONS or (suffix not in known and withdrawal is None):
        return None
    try:
        return ParsedKey(
            collection,
            parse_name(name),
            parse_version(number),
            0 if withdrawal is None else int(withdrawal[1]),
        )
    except (InvalidNameError, InvalidVersionError):
        return None
