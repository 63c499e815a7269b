"""What commands show: values for programs, lines for people."""

from __future__ import annotations

import json
from typing import Iterable, Iterator, List, NamedTuple, Sequence, Tuple


class Shown(NamedTuple):
    """What a command shows.

    Attributes:
        document: JSON values, for ``--json``; ``None`` if nothing is to be shown.
        lines: For people.
        code: The exit code.
    """

    document: object
    lines: Iterable[str] = ()
    code: int = 0


def printed(shown: Shown, *, as_json: bool) -> Iterator[str]:
    """Yield the lines to print.

    Of what comes from a gateway or an archive nothing reaches the terminal that could
    steer it: control characters are replaced, and JSON escapes them.
    """
    if shown.document is None:
        return
    if as_json:
        yield json.dumps(shown.document, indent=2)
    else:
        yield from map(printable, shown.lines)


def printable(line: str) -> str:
    """Return a line in which characters that are not printable are replaced."""
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else "�" for c in line)


def table(rows: Sequence[Tuple[str, ...]]) -> Iterator[str]:
    """Yield rows with their columns aligned; the first one has the headings."""
    widths: List[int] = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        yield "   ".join(map(str.ljust, row, widths)).rstrip()
