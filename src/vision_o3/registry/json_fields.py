"""Reading a JSON object that may be anybody's, field by field, into values."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from vision_o3.content.cid import CID
from vision_o3.db.statements import all_storable

_LARGEST = 2**63 - 1
"""What a ``BIGINT`` column holds."""


def parse_object(content: bytes) -> Fields:
    """Return the fields of a JSON object in UTF-8 that a database can hold.

    Its names are unique, its numbers finite, and its texts without NUL characters and
    lone surrogates.

    Raises:
        ValueError: It is no such object; the message is the end of a sentence.
        RecursionError: It is nested too deeply.
    """
    try:
        text = content.decode()
        document = json.loads(
            text,
            object_pairs_hook=_object,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    except UnicodeDecodeError:
        raise ValueError("it is not text in UTF-8") from None
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - of the content
    # Neither can be in a text of UTF-8 and JSON but as an escape, which is rare.
    if "\\u" in text and not all_storable(document):
        raise ValueError("it has a text with a character that no database holds")
    return Fields(document)


class Fields:
    """The fields of a JSON object, each read as one type.

    Each method raises ``ValueError``, with the end of a sentence, for a field that is
    absent or of another type.
    """

    def __init__(self, values: dict[str, Any], within: str = "") -> None:
        self._values = values
        self._within = within

    def text(self, name: str, *, shortest: int = 1, longest: int | None = None) -> str:
        """Return a text, of so many characters if ``longest`` is given."""
        value = self._values.get(name)
        if not isinstance(value, str):
            raise self._fault(name, "not a text")
        if longest is not None and not shortest <= len(value) <= longest:
            raise self._fault(name, f"not of {shortest} to {longest} characters")
        return value

    def text_or_none(self, name: str, *, longest: int | None = None) -> str | None:
        """Return a text, which may be empty; ``None`` where it is null or absent."""
        if self._values.get(name) is None:
            return None
        return self.text(name, shortest=0, longest=longest)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts."""
        value = self._values.get(name)
        if not isinstance(value, list) or not all(
            isinstance(each, str) for each in value
        ):
            raise self._fault(name, "not a list of texts")
        return tuple(value)

    def number(self, name: str, *, at_least: int = 0) -> int:
        """Return a whole number that a ``BIGINT`` holds."""
        value = self._values.get(name)
        if type(value) is not int or not at_least <= value <= _LARGEST:
            raise self._fault(name, f"not a whole number from {at_least} up")
        return value

    def flag(self, name: str) -> bool:
        """Return true or false."""
        value = self._values.get(name)
        if not isinstance(value, bool):
            raise self._fault(name, "neither true nor false")
        return value

    def number_or_none(self, name: str) -> int | None:
        """Return such a number; ``None`` where it is null or absent."""
        return None if self._values.get(name) is None else self.number(name)

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an object as it is."""
        value = self._values.get(name)
        if not isinstance(value, dict):
            raise self._fault(name, "not an object")
        return value

    def inner(self, name: str) -> Fields:
        """Return the fields of an object."""
        return Fields(self.mapping(name), f"{self._within}{name}.")

    def inner_or_none(self, name: str) -> Fields | None:
        """Return the fields of an object; ``None`` where it is null or absent."""
        return None if self._values.get(name) is None else self.inner(name)

    def inners(self, name: str) -> list[Fields]:
        """Return the fields of each object in a list."""
        value = self._values.get(name)
        if not isinstance(value, list) or not all(
            isinstance(each, dict) for each in value
        ):
            raise self._fault(name, "not a list of objects")
        within = f"{self._within}{name}."
        return [Fields(each, within) for each in value]

    def time_or_none(self, name: str) -> datetime | None:
        """Return a time; ``None`` where it is null or absent."""
        return None if self._values.get(name) is None else self.time(name)

    def cid_or_none(self, name: str) -> CID | None:
        """Return a CID; ``None`` where it is null or absent.

        Raises:
            InvalidCIDError: It is none, and not null.
        """
        text = self.text_or_none(name)
        return None if text is None else CID.parse(text)

    def uuid(self, name: str) -> UUID:
        """Return a UUID, as ``str`` writes it."""
        text = self.text(name)
        try:
            value = UUID(text)
        except ValueError:
            value = None
        if value is None or str(value) != text:
            raise self._fault(name, "not a UUID")
        return value

    def time(self, name: str) -> datetime:
        """Return a time in UTC, as ``isoformat`` writes it."""
        text = self.text(name)
        try:
            value = datetime.fromisoformat(text)
        except ValueError:
            value = None
        if (
            value is None
            or value.utcoffset() != timedelta(0)
            or value.isoformat() != text
        ):
            raise self._fault(name, "not a time in UTC")
        return value.astimezone(UTC)

    def _fault(self, name: str, what: str) -> ValueError:
        return ValueError(f"its {self._within}{name} is {what}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object in which no name occurs twice."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name occurs twice in it")
    return made


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("it has a number that is not finite")
    return value
