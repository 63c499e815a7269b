"""The handle on one gateway: URLs, tokens, redirects, errors, attempts.

The token goes to the gateway's own origin and nowhere else, also when it redirects.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterator,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)
from urllib.parse import quote, urlencode, urljoin, urlsplit

from vision_o3 import __version__
from vision_o3.errors import (
    InputError,
    OfflineError,
    TransportError,
    UnauthenticatedError,
)
from vision_o3.sdk.bounds import Bounds
from vision_o3.sdk.problems import not_understood, problem_error, status_error
from vision_o3.sdk.retry import Attempts, RetryPolicy
from vision_o3.sdk.transport import HTTPTransport, origin_of, shown

if TYPE_CHECKING:
    from vision_o3.sdk.retry import Clock
    from vision_o3.sdk.transport import Body, Origin, Response, Transport

Credentials = Union[Tuple[str, str], Callable[[], Union[str, Tuple[str, str]]]]
"""Client id and secret, or what returns them or a token each time one is needed."""

MAX_DOCUMENT_SIZE = 16 << 20
"""Bytes of a JSON answer that are read at most."""
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_UNAUTHORIZED = 401
_FIRST_FAILURE = 300
_RENEW_BEFORE_S = 30.0
"""A token that ends within this time is renewed before it is used."""
_READ_SIZE = 1 << 16


class SignIn(NamedTuple):
    """A token, as ``POST /auth/token`` gave it."""

    token: str
    expires_in_s: float
    scope: str


class Located(NamedTuple):
    """An answer, and the URL that gave it if it was not the one that was asked."""

    response: Response
    moved_to: Optional[str]


class Session:
    """Sends requests to one gateway. Safe for several threads.

    Args:
        gateway_url: ``http`` or ``https``; may have a path.
        api_token: A token, which is not renewed.
        credentials: To get tokens with; not with ``api_token``.
        transport: Default: ``HTTPTransport``.
        policy: When to try again.
        clock: Default: the ``time`` module.
        offline: Refuse to use the network.

    Raises:
        InputError: Not a gateway's URL, or both token and credentials.
    """

    def __init__(
        self,
        gateway_url: str,
        *,
        api_token: Optional[str] = None,
        credentials: Optional[Credentials] = None,
        transport: Optional[Transport] = None,
        policy: Optional[RetryPolicy] = None,
        clock: Optional[Clock] = None,
        offline: bool = False,
    ) -> None:
        self._origin = origin_of(gateway_url)
        if urlsplit(gateway_url).query or urlsplit(gateway_url).fragment:
            raise InputError(
                f"{shown(gateway_url)} has a query or fragment: leave it out."
            )
        if api_token is not None and credentials is not None:
            raise InputError("Give api_token or credentials, not both.")
        self.url = gateway_url.rstrip("/")
        self._transport = transport or HTTPTransport()
        self.policy = policy or RetryPolicy()
        self.clock = clock or time
        self.offline = offline
        self._bounds = threading.local()
        self._credentials = credentials
        self._token = api_token
        self._token_ends: Optional[float] = None
        self._token_lock = threading.Lock()

    @property
    def bounds(self) -> Bounds:
        """Those of the call that this thread works for."""
        bounds: Optional[Bounds] = getattr(self._bounds, "current", None)
        return bounds or Bounds(self.clock)

    @property
    def is_bounded(self) -> bool:
        """Whether this thread works for a call that has bounds."""
        return getattr(self._bounds, "current", None) is not None

    @contextmanager
    def bounded(self, bounds: Bounds) -> Iterator[None]:
        """Hold what this thread sends in the block to these bounds."""
        before = getattr(self._bounds, "current", None)
        self._bounds.current = bounds
        try:
            yield
        finally:
            self._bounds.current = before

    def attempts(self) -> Attempts:
        """Return a counter of attempts for one piece of work."""
        return Attempts(self.policy, self.clock, bounds=self.bounds)

    def get_object(
        self, path: str, query: Sequence[Tuple[str, str]] = ()
    ) -> Dict[str, Any]:
        """Return the JSON object at a path of the gateway.

        Raises:
            VisionO3Error: As ``exchange`` says, after all attempts.
        """
        if query:
            path += f"?{urlencode(query)}"
        return self.send_for_object("GET", path)

    def send_for_object(
        self,
        method: str,
        path: str,
        headers: Optional[Mapping[str, str]] = None,
        body: Optional[Body] = None,
    ) -> Dict[str, Any]:
        """Send a request that may safely be sent again; return the JSON object.

        Raises:
            VisionO3Error: As ``exchange`` says, after all attempts.
        """

        def once() -> Dict[str, Any]:
            with self.exchange(method, path, headers, body) as response:
                return read_object(response)

        return self.attempts().call(once)

    @contextmanager
    def exchange(
        self,
        method: str,
        path: str,
        headers: Optional[Mapping[str, str]] = None,
        body: Optional[Body] = None,
    ) -> Iterator[Response]:
        """Yield the answer to one request, once it is a success; close it at the end.

        One attempt, in which redirects are followed and a token renewed once.

        Args:
            method: Of HTTP.
            path: Below the gateway's URL, quoted.
            headers: Beside those that every request has.
            body: As for ``Transport.request``.

        Raises:
            TransportError: No answer came, or one that must not be followed.
            VisionO3Error: The gateway refused; the class of the code that it gave.
        """
        with self.locate(method, path, headers, body) as located:
            yield located.response

    @contextmanager
    def locate(
        self,
        method: str,
        path: str,
        headers: Optional[Mapping[str, str]] = None,
        body: Optional[Body] = None,
    ) -> Iterator[Located]:
        """Yield the answer as ``exchange`` does, and where it came from.

        Raises:
            VisionO3Error: As ``exchange`` says.
        """
        response, moved_to = self._authorised(method, path, headers or {}, body)
        try:
            _refuse_encoding(response)
            yield Located(response, moved_to)
        finally:
            response.close()

    @contextmanager
    def exchange_elsewhere(
        self, url: str, headers: Optional[Mapping[str, str]] = None
    ) -> Iterator[Response]:
        """Yield the answer of another server to a GET; it does not get the token.

        Raises:
            TransportError: As for ``exchange``; ``status`` is what it answered.
        """
        response, _, _ = self._follow("GET", url, headers or {}, None, None)
        try:
            if response.status >= _FIRST_FAILURE:
                raise status_error(response, origin_of(url)[1], self.clock.time())
            _refuse_encoding(response)
            yield response
        finally:
            response.close()

    def sign_in(self) -> SignIn:
        """Get a token for the credentials; it is used from now on.

        Raises:
            UnauthenticatedError: There are no credentials, or they are refused.
            VisionO3Error: As for any request, after all attempts.
        """

        def once() -> SignIn:
            with self._token_lock:
                return self._sign_in()

        return self.attempts().call(once)

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def _authorised(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Optional[Body],
    ) -> Located:
        """Return a successful answer, and the URL if it is another than asked for."""
        url = self.url + path
        token = self._current_token()
        answer = self._follow(method, url, headers, body, token)
        if answer[0].status == _UNAUTHORIZED and self._renewed(token):
            answer[0].close()
            token = self._current_token()
            answer = self._follow(method, url, headers, body, token)
        response, origin, came_from = answer
        if response.status < _FIRST_FAILURE:
            return Located(response, None if origin == self._origin else came_from)
        try:
            if origin == self._origin:
                raise problem_error(response, self.clock.time())
            # Not our gateway's words. A new signed URL may serve next time.
            error = status_error(response, origin[1], self.clock.time())
            error.retryable = True
            raise error
        finally:
            response.close()

    def _follow(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Optional[Body],
        token: Optional[str],
    ) -> Tuple[Response, Origin, str]:
        """Return the answer at the end of all redirects, who gave it, and where."""
        if self.offline:
            raise OfflineError(
                f"{origin_of(url)[1]} would have to be asked, and the client was told "
                "to stay offline."
            )
        bounds, origin = self.bounds, origin_of(url)
        for _ in range(_MAX_REDIRECTS + 1):
            sent = {"User-Agent": f"vision-o3/{__version__}", **headers}
            if token is not None and origin == self._origin:
                sent["Authorization"] = f"Bearer {token}"
            response = self._transport.request(method, url, sent, body, bounds)
            if response.status not in _REDIRECTS:
                return response, origin, url
            response.close()
            location = response.headers.get("location", "")
            if method != "GET":
                raise _refused(f"a {method} to {shown(location)}")
            # Quotes what no URL may hold, and leaves what is quoted.
            location = quote(location, safe="%/:=&?~#+!$,;'@()*[]")
            try:
                url = urljoin(url, location)
                next_origin = origin_of(url)
            except (InputError, ValueError) as error:
                raise _refused(f"to {shown(location)}") from error
            if origin[0] == "https" and next_origin[0] != "https":
                raise _refused("from https to http")
            origin = next_origin
        raise _refused("in circles")

    def _current_token(self) -> Optional[str]:
        if self._credentials is None:
            return self._token
        with self._token_lock:
            ends = self._token_ends
            if ends is None or self.clock.monotonic() >= ends:
                self._sign_in()
            return self._token

    def _renewed(self, refused: Optional[str]) -> bool:
        """Get a new token in the place of a refused one, once for all threads."""
        if self._credentials is None:
            return False
        with self._token_lock:
            if self._token == refused:
                self._sign_in()
            return True

    def _sign_in(self) -> SignIn:
        if self._credentials is None:
            raise UnauthenticatedError("There is no client id and secret to sign in.")
        source = self._credentials
        given = source() if callable(source) else source
        if isinstance(given, str):
            self._token, self._token_ends = given, float("inf")
            return SignIn(given, float("inf"), "")
        client_id, secret = given
        form = {
            "grant_type": "client_credentials",
            "client_id": client_id,
            "client_secret": secret,
        }
        response, _, _ = self._follow(
            "POST",
            f"{self.url}/auth/token",
            {"Content-Type": "application/x-www-form-urlencoded"},
            urlencode(form).encode(),
            None,
        )
        try:
            if response.status >= _FIRST_FAILURE:
                raise problem_error(response, self.clock.time())
            answer = read_object(response)
        finally:
            response.close()
        token, lasts_s = answer.get("access_token"), answer.get("expires_in", 0)
        if not isinstance(token, str) or not isinstance(lasts_s, (int, float)):
            raise not_understood("it has no token")
        self._token = token
        # Even one that ends at once is used for a second: no sign-in per request.
        margin_s = min(_RENEW_BEFORE_S, lasts_s / 2)
        self._token_ends = self.clock.monotonic() + max(1.0, lasts_s - margin_s)
        return SignIn(token, lasts_s, str(answer.get("scope", "")))


def read_object(response: Response) -> Dict[str, Any]:
    """Return the JSON object that is an answer's body.

    Raises:
        TransportError: It is not one, or it is too long, or it was cut short.
    """
    body = read_body(response, MAX_DOCUMENT_SIZE, not_understood)
    try:
        document = json.loads(body.decode())
    except (ValueError, RecursionError) as error:  # the latter: brackets without end
        raise not_understood("it is not JSON") from error
    if not isinstance(document, dict):
        raise not_understood("it is not an object")
    return document


def read_body(
    response: Response, max_size: int, too_long: Callable[[str], Exception]
) -> bytes:
    """Return a short body, whole.

    Raises:
        TransportError: It was cut short.
        Exception: What ``too_long`` makes of a message, if it is over ``max_size``.
    """
    body = bytearray()
    buffer = memoryview(bytearray(_READ_SIZE))
    while True:
        count = response.readinto(buffer)
        if not count:
            break
        body += buffer[:count]
        if len(body) > max_size:
            raise too_long(f"The answer is longer than {max_size} bytes.")
    announced = response.headers.get("content-length", "")
    if announced.isdigit() and announced != str(len(body)):
        raise TransportError(f"The answer ended after {len(body)} of {announced} B.")
    return bytes(body)


def _refuse_encoding(response: Response) -> None:
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("identity", ""):
        raise TransportError(
            f"The answer has Content-Encoding {encoding[:32]!r}, which was not asked "
            "for. Turn compression off on the way to the gateway.",
            retryable=False,
        )


def _refused(what: str) -> TransportError:
    return TransportError(
        f"The server redirects {what}; this is not followed. "
        "Use the URL that it is to be found at.",
        retryable=False,
    )
