"""Values in pickles that stand for what unpickling would make, and what was found.

Values from a file may be nested without bound and contain themselves: never hash,
compare or print one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from vision_o3.formats.bounded import LISTED, clean

MOST_FINDINGS = 50
_MOST_CLEANED = 10_000
"""Texts that are looked at to be listed."""


@dataclass(slots=True, eq=False)
class Import:
    """A class or function by name. ``allowed``: it is on the importer's list."""

    module: str
    name: str
    allowed: bool

    @property
    def path(self) -> str:
        """The name as it is shown, such as ``os.system``."""
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Items:
    """A dict or one of its kind, in the order of insertion; keys may repeat."""

    kind: str = "dict"
    pairs: list[tuple[object, object]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Members:
    """A set, frozen or not; members may repeat."""

    members: list[object] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Made:
    """A stand-in for what cannot be known: an instance, or what a call returned."""

    origin: str
    parts: list[object] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Report:
    """What unpickling would import, and what of it could do harm.

    ``imports`` are in order, the first ``LISTED``; ``calls`` counts those of functions
    and classes that are not allowed.
    """

    imports: dict[str, None] = field(default_factory=dict)
    findings: dict[str, None] = field(default_factory=dict)
    unsafe: bool = False
    calls: int = 0
    opcodes: int = 0
    cleaned: int = 0

    def find(self, text: str) -> None:
        """Note what could do harm, once."""
        self.unsafe = True
        self._keep(text, self.findings, MOST_FINDINGS)

    def note(self, found: Import) -> None:
        """Note an import, once."""
        path = found.path
        self._keep(path, self.imports, LISTED)
        if not found.allowed:
            self.find(path)

    def _keep(self, text: str, kept: dict[str, None], most: int) -> None:
        # Cleaning is slow, and many long texts may be the same once they are cut.
        if len(kept) < most and text not in kept and self.cleaned < _MOST_CLEANED:
            self.cleaned += 1
            kept[clean(text)] = None


class Importer(Protocol):
    """Knows the imports that are harmless, and what they make."""

    def allows(self, module: str, name: str) -> bool:
        """Say whether importing this exact pair is harmless."""

    def call(self, function: Import, arguments: tuple[object, ...]) -> object:
        """Return what an allowed import makes of arguments.

        Raises:
            HarmfulCallError: It is not known to be harmless with these.
            ValueError: They are not what it can be called with.
        """

    def persistent(self, identity: object) -> object:
        """Return what a persistent id stands for.

        Raises:
            ValueError: It is none.
        """


class CutShortError(ValueError):
    """The bytes end before the pickle does."""


class HarmfulCallError(Exception):
    """A call of an allowed import that could do harm; the text is the finding."""
