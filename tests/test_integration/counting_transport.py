"""A transport that counts the bytes of parts, and calls back as they are sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vision_o3.sdk.transport import HTTPTransport


class CountingTransport(HTTPTransport):
    """Counts what is sent to ``…/parts/…``.

    Args:
        on_sent: Called with the bytes of parts that were sent so far.
        on_form: Called before each form is sent.
    """

    def __init__(
        self,
        on_sent: Callable[[int], None],
        on_form: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.sent = 0
        self._on_sent = on_sent
        self._on_form = on_form

    def request(
        self, method: str, url: str, headers: Any, body: Any = None, bounds: Any = None
    ) -> Any:
        if "/parts/" in url:
            body = _Counted(body, self._count)
        elif method == "POST" and "/auth/" not in url:
            self._on_form()
        return super().request(method, url, headers, body, bounds)

    def _count(self, count: int) -> None:
        self.sent += count
        self._on_sent(self.sent)


class _Counted:
    """A body in small pieces, each counted when it was sent."""

    def __init__(self, body: Any, count: Callable[[int], None]) -> None:
        self._body = body
        self._count = count

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._body:
            for at in range(0, len(piece), 65536):
                small = bytes(piece[at : at + 65536])
                yield small
                self._count(len(small))
