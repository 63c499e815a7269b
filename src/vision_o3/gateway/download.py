"""Answer with bytes, verified before they are sent (RFC 9110)."""

from __future__ import annotations

import asyncio
import base64
import re
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import structlog
from starlette.responses import Response

from vision_o3.errors import IntegrityError, InvalidRangeError, VisionO3Error
from vision_o3.gateway.turns import Courtesy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from starlette.types import Message, Receive, Scope, Send

    from vision_o3.content.cid import CID
    from vision_o3.registry.values import Version

IMMUTABLE = "private, max-age=31536000, immutable"
LATEST = "private, no-cache"
"""A copy may be kept, but the gateway is asked whether it is still the latest."""

NOT_KEPT = "private, no-store"

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.IGNORECASE)
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._ ()+,=@-]")
_ETAG = re.compile(r'(?:W/)?("[^"]*")')
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """What to answer: a status, headers, and which bytes ``[start, end)``."""

    status: int
    headers: dict[str, str]
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes that can be asked for: a version's file, or one in its archive."""

    version: Version
    """What they belong to."""
    cid: CID
    """What they are."""
    size: int
    filename: str
    media_type: str = "application/octet-stream"

    @classmethod
    def of(cls, version: Version) -> Content:
        """Return a version's file."""
        filename = f"{version.name}-v{version.version}.{version.file_format}"
        return cls(version, version.cid, version.file_size, filename)

    def headers(self, cache_control: str) -> dict[str, str]:
        """Return the headers that every answer about the bytes carries."""
        return content_headers(self.version, str(self.cid), self.size, cache_control)


def content_headers(
    version: Version, cid: str, size: int, cache_control: str
) -> dict[str, str]:
    """Return the headers that say what bytes are, and what they belong to."""
    withdrawal = version.withdrawal
    deprecation = {}
    if withdrawal is not None and version.is_deprecated:
        deprecation = {"Deprecation": f"@{int(withdrawal.at.timestamp())}"}  # RFC 9745
    return {
        **deprecation,
        "ETag": f'"{cid}"',
        "Cache-Control": NOT_KEPT if version.is_blocked else cache_control,
        "X-Vision-O3-CID": cid,
        "X-Vision-O3-Name": version.name,
        "X-Vision-O3-Version": str(version.version),
        "X-Vision-O3-Size": str(size),
    }


def plan_reply(
    content: Content, method: str, asked: Mapping[str, str], cache_control: str
) -> Reply:
    """Decide how to answer a request for bytes.

    One range is honoured; several at once are answered with the whole file, as
    RFC 9110 allows.

    Args:
        content: What is asked for.
        method: ``GET`` or ``HEAD``.
        asked: The request's headers.
        cache_control: What a cache may do with the answer.

    Raises:
        InvalidRangeError: The range lies outside the file.
    """
    headers = content.headers(cache_control)
    etag, size = headers["ETag"], content.size
    if names(asked.get("if-none-match", ""), etag):
        return Reply(304, headers)
    headers |= {
        "Accept-Ranges": "bytes",
        "Content-Disposition": _attachment(content.filename),
        "Content-Type": content.media_type,
    }
    if content.cid.is_raw:  # its digest is that of the file's bytes
        digest = base64.b64encode(content.cid.digest).decode()
        headers["Repr-Digest"] = f"sha-256=:{digest}:"
    span = None
    if method == "GET" and asked.get("if-range", etag) == etag:
        span = parse_range(asked.get("range", ""), size)
    if span is None:
        return Reply(200, headers | {"Content-Length": str(size)}, 0, size)
    start, end = span
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    return Reply(206, headers, start, end)


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Return the bytes ``[start, end)`` that a Range header asks for.

    Returns:
        ``None`` to ignore the header: it is absent, malformed, or of several ranges.

    Raises:
        InvalidRangeError: No byte of the range exists.
    """
    match = _RANGE.fullmatch(text)
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        start, end = max(0, size - int(last)), size
    elif last == "":
        start, end = int(first), size
    elif int(last) < int(first):
        return None
    else:
        start, end = int(first), min(int(last) + 1, size)
    if start >= end:
        raise InvalidRangeError(
            f"There are no such bytes: the file has {size}, counted from 0.",
            size=size,
        )
    return start, end


def _attachment(filename: str) -> str:
    """Return the Content-Disposition of a file (RFC 6266, names by RFC 8187)."""
    plain = _NOT_PLAIN.sub("_", filename)
    disposition = f'attachment; filename="{plain}"'
    if plain == filename:
        return disposition
    return f"{disposition}; filename*=UTF-8''{quote(filename, safe='')}"


def names(if_none_match: str, etag: str) -> bool:
    """Say whether an If-None-Match header names an entity."""
    text = if_none_match.strip()
    return text == "*" or etag in _ETAG.findall(text)


class Download(Response):
    """Sends planned bytes, verified, and nothing that is not.

    If the first leaf is wrong, the error is answered. If a later one is, the answer
    cannot be taken back: the connection is broken before a wrong byte is sent.
    """

    def __init__(
        self,
        content: Content,
        reply: Reply,
        stream: Callable[[int, int], AsyncGenerator[memoryview]],
        *,
        stall_timeout_s: float,
    ) -> None:
        super().__init__(status_code=reply.status, headers=reply.headers)
        self._content = content
        self._reply = reply
        self._stream = stream
        self._stall_timeout_s = stall_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        reply = self._reply
        if scope["method"] == "HEAD" or reply.start == reply.end:
            await super().__call__(scope, receive, send)
            return
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            async with aclosing(self._stream(reply.start, reply.end)) as pieces:
                # An error up to here is still answered as such.
                first = await _unless(gone, anext(pieces))
                if first is not None:
                    await self._send_all(first, pieces, gone, Courtesy(scope), send)
        finally:
            gone.cancel()

    async def _send_all(
        self,
        piece: memoryview,
        pieces: AsyncGenerator[memoryview],
        gone: asyncio.Future[None],
        courtesy: Courtesy,
        send: Send,
    ) -> None:
        left = self._reply.end - self._reply.start
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                await send(
                    {
                        "type": "http.response.start",
                        "status": self._reply.status,
                        "headers": self.raw_headers,
                    }
                )
            while not gone.done():
                left -= len(piece)
                async with asyncio.timeout(self._stall_timeout_s):
                    await send(_body(piece, more=left > 0))
                    if left <= 0:
                        break
                    del piece
                    # The server takes a piece at once and lets the next one wait until
                    # most of it is sent. Wait before the next one takes up memory.
                    await send(_body(b"", more=True))
                await courtesy.give_way()
                piece = await anext(pieces)
        except VisionO3Error as error:
            self._report(error)  # ends without the rest: the connection breaks
        except TimeoutError:
            _log.warning("download.stalled", cid=str(self._content.cid))

    def _report(self, error: VisionO3Error) -> None:
        corrupt = isinstance(error, IntegrityError)
        _log.error(
            "artifact.corrupt" if corrupt else "artifact.unreadable",
            cid=str(self._content.cid),
            key=self._content.version.object_key,
            code=error.code,
            reason=error.message,
        )


def _body(content: bytes | memoryview, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


async def _disconnected(receive: Receive) -> None:
    """Return when the caller is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless(
    gone: asyncio.Future[None], work: Awaitable[memoryview]
) -> memoryview | None:
    """Return what the work gives, or ``None``, the work ended, if the caller is gone.

    The first piece may take long: what is before it in a compressed file is unpacked.
    """
    task = asyncio.ensure_future(work)
    both: set[asyncio.Future[Any]] = {task, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        if task.cancel():
            await asyncio.wait({task})
