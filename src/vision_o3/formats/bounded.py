"""Bounds on what is read from hostile files and kept as facts."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, BinaryIO

from vision_o3.errors import LimitExceededError

if TYPE_CHECKING:
    from collections.abc import Mapping

LISTED = 200
"""Most items of a list or table in the facts of a version; counts tell of the rest."""
LISTED_CLASSES = 1500
"""Most classes in the facts: ImageNet has 1,000, LVIS 1,203."""
LONGEST_TEXT = 200
"""Most characters of a text in the facts."""


def clean(text: str, longest: int = LONGEST_TEXT) -> str:
    """Return a text from a file as it may be kept and shown: short, one line.

    Control characters and lone surrogates are left out; a cut is marked by ``…``.
    """
    kept = "".join(
        character
        for character in text[: 4 * longest]
        if unicodedata.category(character) not in {"Cc", "Cs"}
    )
    return kept if len(kept) <= longest else kept[: longest - 1] + "…"


def most(counts: Mapping[str, int], listed: int = LISTED) -> dict[str, int]:
    """Return the largest counts under clean names, the largest first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept: dict[str, int] = {}
    for name, count in ranked[:listed]:
        cleaned = clean(name)
        kept[cleaned] = kept.get(cleaned, 0) + count
    return kept


def read_exactly(file: BinaryIO, count: int) -> bytes:
    """Return the next ``count`` bytes.

    Raises:
        ValueError: The file ends before.
    """
    content = file.read(count)
    if len(content) != count:
        raise ValueError("it is cut short")
    return content


def over_limit(what: str, limit: float, setting: str) -> LimitExceededError:
    """Return the error for a bound that a file exceeds.

    Args:
        what: The start of the sentence, such as ``"The archive has too many files"``.
        limit: The bound.
        setting: The environment variable that the operator can raise.
    """
    return LimitExceededError(
        f"{what}: this gateway accepts at most {limit:g} ({setting}).", limit=limit
    )
