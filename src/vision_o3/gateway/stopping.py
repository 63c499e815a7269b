"""Knows when the gateway is being stopped, so that it can say that it is not ready."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """Whether the process was told to end. For one event loop."""

    def __init__(self) -> None:
        self.begun = False

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Notice the signals that end the server, which handles them as before.

        Does nothing outside of the main thread, where a server gets no signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}

        def notice(number: int, frame: FrameType | None) -> None:
            self.begun = True
            handler = before[signal.Signals(number)]
            if callable(handler):
                handler(number, frame)

        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, notice)
        try:
            yield
        finally:
            for number, handler in before.items():
                if callable(handler):
                    signal.signal(number, handler)
