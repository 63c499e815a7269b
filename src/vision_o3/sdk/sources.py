"""Where an artifact's bytes can be had: from mirrors, from the gateway.

None of them is trusted: what they give is checked against the CID. The gateway alone
gets the token.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, ContextManager, Iterator, List, NamedTuple, Optional
from urllib.parse import quote, urlsplit

from vision_o3.errors import (
    InputError,
    IntegrityError,
    LengthMismatchError,
    MalformedBlockError,
    TransportError,
)
from vision_o3.sdk.session import read_body
from vision_o3.sdk.transport import origin_of, shown

if TYPE_CHECKING:
    from typing import Dict, Protocol, Sequence

    from vision_o3.sdk.session import Session
    from vision_o3.sdk.transport import Response
    from vision_o3.sdk.versions import VersionInfo

    class Source(Protocol):
        """One place that has an artifact."""

        @property
        def name(self) -> str:
            """Where it is, for people."""
            ...

        def ask(self, headers: Dict[str, str]) -> ContextManager[Response]:
            """Return the answer to one request for the bytes, once it is a success.

            Raises:
                VisionO3Error: It was none.
            """
            ...

        def sidecar(self, max_size: int) -> Optional[bytes]:
            """Return the sidecar, not verified; ``None`` where none is to be had.

            Raises:
                VisionO3Error: There was no answer, or a refusal, or a longer one.
            """
            ...


_OK = 200
_PARTIAL = 206
_TEMPLATE = "{cid}"
_PIECE_SIZE = 1 << 20


class Mirror:
    """Another server that has artifacts, and how to find one there.

    Args:
        url: Of a store's root, whose layout it follows
            (``<url>/models/<name>/v<N>.<ext>``), or with ``{cid}`` where the CID
            belongs.

    Raises:
        InputError: Not such a URL.
    """

    def __init__(self, url: str) -> None:
        origin_of(url)
        parts = urlsplit(url)
        self._is_template = _TEMPLATE in url
        if parts.fragment or (parts.query and not self._is_template):
            raise InputError(
                f"{shown(url)} is not a mirror: give the URL of a store's root, "
                "without query and fragment, or one with {cid} in it."
            )
        if _TEMPLATE in parts.netloc:
            raise InputError(
                f"{shown(url)} has {{cid}} in its host: only later parts may."
            )
        self._url = url.rstrip("/") if not self._is_template else url

    def source(self, session: Session, info: VersionInfo) -> Source:
        """Return where a version lies on it."""
        if self._is_template:
            return _MirrorSource(session, self._url.replace(_TEMPLATE, info.cid), None)
        base = f"{self._url}/{info.collection}/{quote(info.name)}/v{info.version}"
        artifact = f"{base}.{info.extension}"
        return _MirrorSource(session, artifact, f"{base}.dag.car")


class _MirrorSource:
    def __init__(
        self, session: Session, artifact_url: str, sidecar_url: Optional[str]
    ) -> None:
        self._session = session
        self._artifact_url = artifact_url
        self._sidecar_url = sidecar_url
        self.name = origin_of(artifact_url)[1]

    def ask(self, headers: Dict[str, str]) -> ContextManager[Response]:
        return self._session.exchange_elsewhere(self._artifact_url, headers)

    def sidecar(self, max_size: int) -> Optional[bytes]:
        if self._sidecar_url is None:
            return None
        with self._session.exchange_elsewhere(self._sidecar_url) as response:
            return read_body(response, max_size, MalformedBlockError)


class GatewaySource:
    """Bytes from the gateway, or from the store that it points to.

    Where it pointed is asked again, without a detour, as long as that works: a signed
    URL serves for many ranges.

    Args:
        session: Whom to ask.
        path: Where the gateway serves the bytes.
        sidecar_path: Where it serves the sidecar, if it does.
    """

    name = "the gateway"

    def __init__(
        self, session: Session, path: str, sidecar_path: Optional[str] = None
    ) -> None:
        self._session = session
        self._path = path
        self._sidecar_path = sidecar_path
        self._moved_to: Optional[str] = None

    @contextmanager
    def ask(self, headers: Dict[str, str]) -> Iterator[Response]:
        """Yield the answer to one request for the bytes, once it is a success.

        Raises:
            VisionO3Error: It was none.
        """
        with ExitStack() as stack:
            response = self._ask_directly(stack, headers)
            if response is None:
                exchange = self._session.locate("GET", self._path, headers)
                response, self._moved_to = stack.enter_context(exchange)
            try:
                yield response
            except (IntegrityError, TransportError):  # it may point elsewhere next time
                self._moved_to = None
                raise

    def _ask_directly(
        self, stack: ExitStack, headers: Dict[str, str]
    ) -> Optional[Response]:
        """Return the answer of where the gateway pointed before, if there is one."""
        url = self._moved_to
        if url is None:
            return None
        try:
            return stack.enter_context(self._session.exchange_elsewhere(url, headers))
        except TransportError:  # such as a signature that has expired
            self._moved_to = None
            return None

    def sidecar(self, max_size: int) -> Optional[bytes]:
        """Return the sidecar, not verified; ``None`` where none is to be had.

        Raises:
            VisionO3Error: There was no answer, or a refusal, or a longer one.
        """
        if self._sidecar_path is None:
            return None
        with self._session.exchange("GET", self._sidecar_path) as response:
            return read_body(response, max_size, MalformedBlockError)


def sources_of(
    session: Session,
    info: VersionInfo,
    mirrors: Sequence[Mirror],
    *,
    allow_blocked: bool = False,
) -> List[Source]:
    """Return where a version's bytes can be had, in the order in which to ask.

    Args:
        session: Of the gateway, which is asked last.
        info: The version.
        mirrors: Asked before.
        allow_blocked: Tell the gateway to serve it also if it is blocked.
    """
    path = f"/{info.collection}/cid/{info.cid}"
    query = blocked_query(allow_blocked)
    gateway = GatewaySource(session, f"{path}/download{query}", f"{path}/dag{query}")
    return [*(mirror.source(session, info) for mirror in mirrors), gateway]


def blocked_query(allow_blocked: bool) -> str:
    """Return what a path ends with, so that the gateway serves what is blocked."""
    return "?allow_blocked=true" if allow_blocked else ""


class Opened(NamedTuple):
    """An answer, and where in the file its bytes begin and end."""

    response: Response
    begins: int
    ends: int


@contextmanager
def open_range(source: Source, start: int, end: int, size: int) -> Iterator[Opened]:
    """Yield an answer with the bytes ``[start, end)`` of a file.

    A server that knows no ranges answers with the whole file.

    Args:
        source: Whom to ask.
        start: The first byte.
        end: The one after the last.
        size: The file's length, which the answer must agree to.

    Raises:
        LengthMismatchError: The answer announces other bytes.
        TransportError: The status is neither of the two that have the bytes.
        VisionO3Error: As ``Source.ask`` says.
    """
    whole = end - start == size
    headers = {} if whole else {"Range": f"bytes={start}-{end - 1}"}
    with source.ask(headers) as response:
        if response.status == _PARTIAL and not whole:
            _expect(response, "content-range", f"bytes {start}-{end - 1}/{size}")
        elif response.status == _OK:
            start, end = 0, size
        else:
            raise TransportError(
                f"The answer to a download was {response.status}.", retryable=False
            )
        if "content-length" in response.headers:
            _expect(response, "content-length", str(end - start))
        yield Opened(response, start, end)


def _expect(response: Response, header: str, expected: str) -> None:
    actual = response.headers.get(header, "").strip()
    if actual != expected:
        raise LengthMismatchError(
            f"The answer has {header.title()} {actual[:64]!r}, not {expected!r}.",
            expected=expected,
            actual=actual,
        )


def fill(response: Response, buffer: memoryview) -> None:
    """Fill the whole buffer with the next bytes of an answer.

    Raises:
        TransportError: It ended before.
    """
    filled = 0
    while filled < len(buffer):
        count = response.readinto(buffer[filled:])
        if not count:
            raise TransportError("The connection ended before the file did.")
        filled += count


def skip(response: Response, count: int) -> None:
    """Drop the next bytes of an answer.

    Raises:
        TransportError: It ended before.
    """
    buffer = memoryview(bytearray(min(count, _PIECE_SIZE)))
    while count:
        part = buffer[:count]
        fill(response, part)
        count -= len(part)
