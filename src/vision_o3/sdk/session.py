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
)
from urllib.parse import quote, urlencode, urljoin, urlsplit

from vision_o3 import __version__
from vision_o3.errors import InputError, TransportError, UnauthenticatedError
from vision_o3.sdk.problems import not_understood, problem_error
from vision_o3.sdk.retry import Attempts, RetryPolicy
from vision_o3.sdk.transport import HTTPTransport, origin_of

if TYPE_CHECKING:
    from vision_o3.sdk.retry import Clock
    from vision_o3.sdk.transport import Body, Origin, Response, Transport

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


class Session:
    """Sends requests to one gateway. Safe for several threads.

    Args:
        gateway_url: ``http`` or ``https``; may have a path.
        api_token: A token, which is not renewed.
        credentials: Client id and secret, to get tokens with; not with ``api_token``.
        transport: Default: ``HTTPTransport``.
        policy: When to try again.
        clock: Default: the ``time`` module.

    Raises:
        InputError: Not a gateway's URL, or both token and credentials.
    """

    def __init__(
        self,
        gateway_url: str,
        *,
        api_token: Optional[str] = None,
        credentials: Optional[Tuple[str, str]] = None,
        transport: Optional[Transport] = None,
        policy: Optional[RetryPolicy] = None,
        clock: Optional[Clock] = None,
    ) -> None:
        self._origin = origin_of(gateway_url)
        if urlsplit(gateway_url).query or urlsplit(gateway_url).fragment:
            raise InputError(f"{gateway_url!r} has a query or fragment: leave it out.")
        if api_token is not None and credentials is not None:
            raise InputError("Give api_token or credentials, not both.")
        self.url = gateway_url.rstrip("/")
        self._transport = transport or HTTPTransport()
        self._policy = policy or RetryPolicy()
        self._clock = clock or time
        self._credentials = credentials
        self._token = api_token
        self._token_ends: Optional[float] = None
        self._token_lock = threading.Lock()

    def attempts(self) -> Attempts:
        """Return a counter of attempts for one piece of work."""
        return Attempts(self._policy, self._clock)

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
        response = self._authorised(method, path, headers or {}, body)
        try:
            encoding = response.headers.get("content-encoding", "identity")
            if encoding.strip().lower() not in ("identity", ""):
                raise TransportError(
                    f"The answer has Content-Encoding {encoding[:32]!r}, which was "
                    "not asked for. Turn compression off on the way to the gateway.",
                    retryable=False,
                )
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
    ) -> Response:
        """Return a successful answer."""
        token = self._current_token()
        response, origin = self._follow(method, path, headers, body, token)
        if response.status == _UNAUTHORIZED and self._renewed(token):
            response.close()
            token = self._current_token()
            response, origin = self._follow(method, path, headers, body, token)
        if response.status < _FIRST_FAILURE:
            return response
        try:
            if origin == self._origin:
                raise problem_error(response, self._clock.time())
            # Not our gateway's words. A new signed URL may serve next time.
            raise TransportError(
                f"{origin[1]}, where the gateway pointed, answered {response.status}."
            )
        finally:
            response.close()

    def _follow(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Optional[Body],
        token: Optional[str],
    ) -> Tuple[Response, Origin]:
        """Return the answer at the end of all redirects, and who gave it."""
        url, origin = self.url + path, self._origin
        for _ in range(_MAX_REDIRECTS + 1):
            sent = {"User-Agent": f"vision-o3/{__version__}", **headers}
            if token is not None and origin == self._origin:
                sent["Authorization"] = f"Bearer {token}"
            response = self._transport.request(method, url, sent, body)
            if response.status not in _REDIRECTS:
                return response, origin
            response.close()
            location = response.headers.get("location", "")
            if method != "GET":
                raise _refused(f"a {method} to {location[:200]!r}")
            # Quotes what no URL may hold, and leaves what is quoted.
            location = quote(location, safe="%/:=&?~#+!$,;'@()*[]")
            try:
                url = urljoin(url, location)
                next_origin = origin_of(url)
            except (InputError, ValueError) as error:
                raise _refused(f"to {location[:200]!r}") from error
            if origin[0] == "https" and next_origin[0] != "https":
                raise _refused("from https to http")
            origin = next_origin
        raise _refused("in circles")

    def _current_token(self) -> Optional[str]:
        if self._credentials is None:
            return self._token
        with self._token_lock:
            ends = self._token_ends
            if ends is None or self._clock.monotonic() >= ends:
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
        client_id, secret = self._credentials
        form = {
            "grant_type": "client_credentials",
            "client_id": client_id,
            "client_secret": secret,
        }
        response, _ = self._follow(
            "POST",
            "/auth/token",
            {"Content-Type": "application/x-www-form-urlencoded"},
            urlencode(form).encode(),
            None,
        )
        try:
            if response.status >= _FIRST_FAILURE:
                raise problem_error(response, self._clock.time())
            answer = read_object(response)
        finally:
            response.close()
        token, lasts_s = answer.get("access_token"), answer.get("expires_in", 0)
        if not isinstance(token, str) or not isinstance(lasts_s, (int, float)):
            raise not_understood("it has no token")
        self._token = token
        # Even one that ends at once is used for a second: no sign-in per request.
        margin_s = min(_RENEW_BEFORE_S, lasts_s / 2)
        self._token_ends = self._clock.monotonic() + max(1.0, lasts_s - margin_s)
        return SignIn(token, lasts_s, str(answer.get("scope", "")))


def read_object(response: Response) -> Dict[str, Any]:
    """Return the JSON object that is an answer's body.

    Raises:
        TransportError: It is not one, or it is too long, or it was cut short.
    """
    body = read_body(response, MAX_DOCUMENT_SIZE, not_understood)
    try:
        document = json.loads(body.decode())
    except ValueError as error:
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
    if announced.isdigit() and int(announced) != len(body):
        raise TransportError(f"The answer ended after {len(body)} of {announced} B.")
    return bytes(body)


def _refused(what: str) -> TransportError:
    return TransportError(
        f"The gateway redirects {what}; this is not followed. "
        "Use the gateway's own URL.",
        retryable=False,
    )
