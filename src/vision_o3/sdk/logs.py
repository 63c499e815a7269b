"""Loggers that cost nothing until something is logged: devices start often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import logging


def logger(name: str) -> logging.Logger:
    """Return the logger of a name; ``logging`` is loaded when it is first used."""
    return cast("logging.Logger", _Logger(name))


class _Logger:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        import logging  # noqa: PLC0415 - a tenth of the client's start

        return getattr(logging.getLogger(self._name), attribute)
