"""What a line may be called and how its versions are numbered, on both sides.

Pure, and for Python 3.8: the gateway refuses other names, and the device never
builds a path from one.
"""

from __future__ import annotations

import re

from vision_o3.errors import InvalidNameError, InvalidVersionError

MAX_NAME_LENGTH = 128
MAX_VERSION = 2**31 - 1
"""The largest version number: what an ``INTEGER`` column of PostgreSQL holds."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_RESERVED = frozenset({"cid"})
_SHOWN = 60


def parse_name(text: str) -> str:
    """Return ``text`` if it is a valid name of a model or dataset.

    A name is 1 to 128 characters of ``a-z 0-9 . _ -``, starts with a letter or
    digit, and is not ``cid``, which is a word of the API's paths.

    Raises:
        InvalidNameError: It is not; the message says what to change.
    """
    if _NAME.fullmatch(text) and text not in _RESERVED:
        return text
    if text in _RESERVED:
        reason = "is reserved"
    elif not text:
        reason = "is empty"
    elif len(text) > MAX_NAME_LENGTH:
        reason = f"has {len(text)} characters"
    else:
        reason = "has characters that are not allowed"
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    raise InvalidNameError(
        f"The name {shown!r} {reason}. Use 1 to {MAX_NAME_LENGTH} characters of "
        "a-z, 0-9, '.', '_' and '-', starting with a letter or digit, "
        "for example 'yolov11-nano'.",
        name=shown,
    )


def parse_version(value: int | str) -> int:
    """Return the version number that ``value`` states, from 1 up.

    Raises:
        InvalidVersionError: Not a whole number from 1 to ``MAX_VERSION``.
    """
    text = str(value)
    if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_VERSION)):
        number = int(text)
        if 1 <= number <= MAX_VERSION:
            return number
    raise InvalidVersionError(
        f"{text[:_SHOWN]!r} is not a version number. "
        f"Versions are whole numbers from 1 to {MAX_VERSION}.",
    )
