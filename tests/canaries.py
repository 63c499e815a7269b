"""Secrets of the tests, which must never be seen where anybody looks.

Whatever a test lets the code say (log lines of every logger, heads and documents of
answers, metrics, spans, rows of the audit trail, ``repr`` of settings) is gathered by
``see``, and searched when the test ends for each value that was ``add``-ed, and for
what looks like a token or a user's secret. A test that leaks fails.

Standard library only: the edge side's tests have it too.
"""

from __future__ import annotations

import logging
import re
import traceback
from typing import Any, Dict, List, Tuple

_MOST = 8 << 20
"""Characters that are gathered before they are searched."""
_SHORTEST = 12
"""Of a canary: a shorter one might be there by chance."""
_SHAPES = {
    "a user's secret": re.compile(r"vo3_[A-Za-z0-9]+_[A-Za-z0-9_-]{20,}"),
    "a token": re.compile(r"\bey[\w-]{10,}\.ey[\w-]{10,}\.[\w-]{20,}"),
    "a presigned URL": re.compile(r"X-Amz-Signature=[0-9a-f]{16,}"),
}
_QUIET = {
    # As the gateway's own configuration has them, at the level DEBUG too.
    "botocore": "INFO",
    "urllib3": "INFO",
    "python_multipart": "ERROR",
    "alembic": "WARNING",
    # The tests' own client, and tools.
    "httpx": "WARNING",
    "httpcore": "WARNING",
    "asyncio": "WARNING",
    "hypothesis": "WARNING",
}


class Canaries:
    """What is secret, and what was seen since the last check."""

    def __init__(self) -> None:
        self._always: Dict[str, str] = {}
        self._added: Dict[str, str] = {}
        self._seen: List[Tuple[str, str]] = []
        self._size = 0
        self._leaks: List[str] = []

    def add(self, value: str, name: str, *, always: bool = False) -> str:
        """Take a value for a secret until the next check, or always; return it."""
        if len(value) < _SHORTEST:
            raise ValueError(f"{name} is too short for a canary.")
        (self._always if always else self._added)[value] = name
        return value

    def see(self, where: str, text: str) -> None:
        """Take note of what anybody might read."""
        self._seen.append((where, text))
        self._size += len(text)
        if self._size > _MOST:
            self._search()

    def check(self) -> List[str]:
        """Return a sentence for each leak since the last check; begin anew."""
        self._search()
        leaks, self._leaks = self._leaks, []
        self._added.clear()
        return leaks

    def _search(self) -> None:
        seen, self._seen, self._size = self._seen, [], 0
        everything = "\n".join(text for _, text in seen)
        for name in self._found_in(everything):
            places = {where for where, text in seen if name in self._found_in(text)}
            self._leaks.append(f"{name} was seen in {', '.join(sorted(places))}")

    def _found_in(self, text: str) -> Dict[str, None]:
        known = {**self._always, **self._added}
        found = {known[value]: None for value in known if value in text}
        for name, shape in _SHAPES.items():
            if shape.search(text):
                found[name] = None
        return found


CANARIES = Canaries()


class CanaryHandler(logging.Handler):
    """Sees every record of the standard library's loggers."""

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if record.exc_info:
            said += "".join(traceback.format_exception(*record.exc_info))
        CANARIES.see(f"a log line of {record.name}", said)


def _see_event(event: str, context: Dict[str, Any], said: Dict[str, Any]) -> None:
    text = repr((event, context, said))
    error = said.get("exc_info")
    if error is True:
        text += traceback.format_exc()
    elif isinstance(error, BaseException):
        text += "".join(
            traceback.format_exception(type(error), error, error.__traceback__)
        )
    CANARIES.see(f"the log line {event!r}", text)


def watch_logs() -> None:
    """See all log lines from now on, from DEBUG up. May be called again."""
    root = logging.getLogger()
    if not any(isinstance(each, CanaryHandler) for each in root.handlers):
        root.addHandler(CanaryHandler(logging.DEBUG))
    root.setLevel(logging.DEBUG)
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)
    try:
        import structlog  # noqa: PLC0415 - the edge side has none
    except ImportError:
        return

    class Watched(structlog.make_filtering_bound_logger(0)):  # type: ignore[misc]
        """What every structlog logger is bound to."""

        def _proxy_to_logger(
            self, method_name: str, event: Any = None, *_: Any, **said: Any
        ) -> Any:
            _see_event(str(event), dict(self._context), said)
            return super()._proxy_to_logger(method_name, event, **said)

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["level", "event"]),
        ],
        wrapper_class=Watched,
    )
