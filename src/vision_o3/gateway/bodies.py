"""Bodies of requests: small ones bounded for all routes, others taken as they come.

A route that says nothing gets a body of ``SMALL_BODY`` bytes at most, in a bounded
time, so no route needs to think of it. One that streams its own body takes it by an
``Incoming``, which lifts that limit and sees to a rate instead.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from vision_o3.errors import (
    IncompleteUploadError,
    LimitExceededError,
    RequestTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SMALL_BODY = 64 << 10
"""Bytes of a body that a route has not asked to stream."""
MIN_RATE = 512
"""Bytes a second that a body must come at, over any stall timeout; and an answer be
taken at. As the SDK asks of a gateway."""
_LONGEST_NUMBER = 20
"""Digits of a Content-Length; more than any size has."""
_BOUNDED = "small_body"


class SmallBodies:
    """Lets a route have a small body alone, unless it streams it by ``Incoming``.

    FastAPI reads the JSON of a route whole, before it looks who sends it.

    Args:
        app: What comes next.
        timeout_s: In which the whole of a small body must come.
    """

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. A ``GET`` has no body that any route would read."""
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD"}:
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state[_BOUNDED] = True
        received, ended, until = 0, False, 0.0

        async def receive_bounded() -> Message:
            nonlocal received, ended, until
            if ended or not state[_BOUNDED]:
                return await receive()
            if not until:
                until = time.monotonic() + self._timeout_s
                _check_size(_announced(scope))
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise RequestTimeoutError(
                    f"The body did not come within {self._timeout_s:g} s."
                ) from None
            received += len(message.get("body", b""))
            _check_size(received)
            ended = not message.get("more_body", False)
            return message

        await self._app(scope, receive_bounded, send)


class Incoming:
    """The bytes of a body that a route streams, as they come, not too slowly.

    Args:
        request: Its body must not have been read.
        timeout_s: Longest wait for the next bytes, and the time over which fewer than
            ``MIN_RATE`` bytes a second are too few. Only waiting counts, not what is
            done with the bytes.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        request: Request,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        request.scope.setdefault("state", {})[_BOUNDED] = False
        self._request = request
        self._timeout_s = timeout_s
        self._clock = clock
        self._waited_s = 0.0
        self._came = 0

    @property
    def announced(self) -> int | None:
        """How many bytes the body says to have, if it says that."""
        return _announced(self._request.scope)

    async def next_piece(self) -> tuple[bytes, bool]:
        """Return the next bytes, and whether they are the last.

        Raises:
            IncompleteUploadError: The connection was lost, or no bytes came in time,
                or too few.
        """
        began = self._clock()
        try:
            async with asyncio.timeout(self._timeout_s):
                message = await self._request.receive()
        except TimeoutError:
            raise IncompleteUploadError(
                f"No bytes came for {self._timeout_s:g} s."
            ) from None
        if message["type"] == "http.disconnect":
            raise IncompleteUploadError("The connection was lost.")
        piece: bytes = message.get("body", b"")
        ended = not message.get("more_body", False)
        self._came += len(piece)
        self._waited_s += self._clock() - began
        if self._waited_s >= self._timeout_s:
            if not ended and self._came < MIN_RATE * self._waited_s:
                raise IncompleteUploadError(
                    f"Fewer than {MIN_RATE} bytes a second came for "
                    f"{self._timeout_s:g} s."
                )
            self._waited_s, self._came = 0.0, 0
        return piece, ended


def _announced(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value[:_LONGEST_NUMBER]) if value.isdigit() else None
    return None


def _check_size(size: int | None) -> None:
    if size is not None and size > SMALL_BODY:
        raise LimitExceededError(
            f"The body has more than the {SMALL_BODY} bytes that this page takes.",
            limit=SMALL_BODY,
        )
