"""Answer with an artifact's bytes, each leaf verified before it is sent (RFC 9110)."""

from __future__ import annotations

import asyncio
import base64
import re
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from starlette.responses import Response

from vision_o3.errors import IntegrityError, InvalidRangeError, VisionO3Error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Scope, Send

    from vision_o3.registry.services import ArtifactService
    from vision_o3.registry.values import Version

IMMUTABLE = "private, max-age=31536000, immutable"
LATEST = "private, no-cache"
"""A copy may be kept, but the gateway is asked whether it is still the latest."""

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.IGNORECASE)
_ETAG = re.compile(r'(?:W/)?("[^"]*")')
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """What to answer: a status, headers, and which bytes ``[start, end)``."""

    status: int
    headers: dict[str, str]
    start: int = 0
    end: int = 0


def version_headers(version: Version, cache_control: str) -> dict[str, str]:
    """Return the headers that every answer about a version's bytes carries."""
    return {
        "ETag": f'"{version.cid}"',
        "Cache-Control": cache_control,
        "X-Vision-O3-CID": str(version.cid),
        "X-Vision-O3-Name": version.name,
        "X-Vision-O3-Version": str(version.version),
        "X-Vision-O3-Size": str(version.file_size),
    }


def plan_reply(
    version: Version, method: str, asked: Mapping[str, str], cache_control: str
) -> Reply:
    """Decide how to answer a request for a version's bytes.

    One range is honoured; several at once are answered with the whole file, as
    RFC 9110 allows.

    Args:
        version: What is asked for.
        method: ``GET`` or ``HEAD``.
        asked: The request's headers.
        cache_control: What a cache may do with the answer.

    Raises:
        InvalidRangeError: The range lies outside the file.
    """
    headers = version_headers(version, cache_control)
    etag, size = headers["ETag"], version.file_size
    if _names(asked.get("if-none-match", ""), etag):
        return Reply(304, headers)
    headers |= {
        "Accept-Ranges": "bytes",
        "Content-Disposition": "attachment; "
        f'filename="{version.name}-v{version.version}.{version.file_format}"',
        "Content-Type": "application/octet-stream",
        "X-Content-Type-Options": "nosniff",
    }
    if version.cid.is_raw:  # its digest is that of the file's bytes
        digest = base64.b64encode(version.cid.digest).decode()
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


def _names(if_none_match: str, etag: str) -> bool:
    text = if_none_match.strip()
    return text == "*" or etag in _ETAG.findall(text)


class Download(Response):
    """Sends planned bytes of a version, verified, and nothing that is not.

    If the first leaf is wrong, the error is answered. If a later one is, the answer
    cannot be taken back: the connection is broken before a wrong byte is sent.
    """

    def __init__(
        self,
        service: ArtifactService,
        version: Version,
        reply: Reply,
        *,
        stall_timeout_s: float,
    ) -> None:
        super().__init__(status_code=reply.status, headers=reply.headers)
        self._service = service
        self._version = version
        self._reply = reply
        self._stall_timeout_s = stall_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        reply = self._reply
        if scope["method"] == "HEAD" or reply.start == reply.end:
            await super().__call__(scope, receive, send)
            return
        stream = self._service.stream(self._version, reply.start, reply.end)
        async with aclosing(stream) as pieces:
            piece = await anext(pieces)  # an error here is still answered as such
            gone = asyncio.ensure_future(_disconnected(receive))
            try:
                await send(
                    {
                        "type": "http.response.start",
                        "status": reply.status,
                        "headers": self.raw_headers,
                    }
                )
                left = reply.end - reply.start
                while not gone.done():
                    left -= len(piece)
                    async with asyncio.timeout(self._stall_timeout_s):
                        await send(
                            {
                                "type": "http.response.body",
                                "body": piece,
                                "more_body": left > 0,
                            }
                        )
                    if left <= 0:
                        break
                    piece = await anext(pieces)
            except VisionO3Error as error:
                self._report(error)  # ends without the rest: the connection breaks
            except TimeoutError:
                _log.warning("download.stalled", cid=str(self._version.cid))
            finally:
                gone.cancel()

    def _report(self, error: VisionO3Error) -> None:
        corrupt = isinstance(error, IntegrityError)
        _log.error(
            "artifact.corrupt" if corrupt else "artifact.unreadable",
            cid=str(self._version.cid),
            key=self._version.object_key,
            code=error.code,
            reason=error.message,
        )


async def _disconnected(receive: Receive) -> None:
    """Return when the caller is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
