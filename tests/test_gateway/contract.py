"""Holds every answer of a gateway to what its OpenAPI document declares."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vision_o3.gateway.contract import codes_of
from vision_o3.gateway.main import create_app
from vision_o3.schemas.problems import MEDIA_TYPE
from vision_o3.settings import Settings

TRANSPORT_HEADERS = frozenset({
    "connection",
    "content-length",
    "content-type",
    "date",
    "server",
    "strict-transport-security",
    "transfer-encoding",
})  # fmt: skip
"""What HTTP itself puts around an answer."""
PAGES = frozenset({"/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc"})
"""Served beside the API, by FastAPI."""


@dataclass(frozen=True)
class Declared:
    """What the document says of one status of one route."""

    media: frozenset[str]
    codes: frozenset[str]
    headers: frozenset[str]
    always: frozenset[str]
    """Headers that the answer must have."""


@dataclass(frozen=True)
class Operation:
    """A route and method."""

    path: str
    pattern: re.Pattern[str]
    method: str
    answers: Mapping[int, Declared]


@dataclass(frozen=True)
class Answer:
    """What was answered, as far as the document speaks of it."""

    method: str
    path: str
    status: int
    headers: Mapping[str, str]
    code: str | None
    """Of a problem."""

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip()


class Contract:
    """An OpenAPI document, made ready to look answers up in."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.operations = list(_operations(document))

    def violation(self, answer: Answer) -> str | None:
        """Return what the document does not declare of an answer, if anything."""
        if answer.path in PAGES:
            return None
        fitting = [one for one in self.operations if one.pattern.fullmatch(answer.path)]
        for operation in fitting:
            if operation.method == answer.method:
                wrong = _violation(operation, answer)
                where = f"{operation.method} {operation.path}"
                return wrong and f"{where} answered {wrong}"
        expected = (405, "method_not_allowed") if fitting else (404, "not_found")
        # What is no request, or too large, is answered whatever its path.
        if (answer.status, answer.code) == expected or answer.status in {400, 408, 413}:
            return None
        where = f"{answer.method} {answer.path}"
        return f"{where}, which is not declared, answered {answer.status} {answer.code}"


class ContractCheck:
    """Surrounds an application, and notes what it answers against its contract."""

    def __init__(self, app: ASGIApp, contract: Contract) -> None:
        self._app = app
        self._contract = contract
        self.violations: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, as the application does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start: Message = {}
        body = b""

        async def send_noted(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
            elif start["status"] >= 400:
                body += message.get("body", b"")
            await send(message)

        await self._app(scope, receive, send_noted)
        if start:
            wrong = self._contract.violation(_answer(scope, start, body))
            if wrong is not None:
                self.violations.append(wrong)

    def assert_kept(self) -> None:
        """Fail if there was an answer that the document does not declare."""
        assert not self.violations, "\n".join(dict.fromkeys(self.violations))


@functools.cache
def gateway_contract() -> Contract:
    """Return the gateway's contract; it is the same whatever the settings."""
    return Contract(create_app(Settings(jwt_secret=SecretStr("x" * 40))).openapi())


def _answer(scope: Scope, start: Message, body: bytes) -> Answer:
    headers = {
        name.decode().lower(): value.decode("latin-1")
        for name, value in start["headers"]
    }
    is_problem = headers.get("content-type") == MEDIA_TYPE
    code = json.loads(body)["code"] if is_problem and body else None  # HEAD has none
    return Answer(scope["method"], scope["path"], start["status"], headers, code)


def _operations(document: Mapping[str, Any]) -> Iterator[Operation]:
    for path, methods in document["paths"].items():
        # Only a file's path in an archive has slashes.
        pattern = re.escape(path).replace(r"\{path\}", ".*")
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", pattern)
        for method, operation in methods.items():
            answers = {
                int(status): Declared(
                    frozenset(
                        kind.partition(";")[0] for kind in found.get("content", {})
                    ),
                    frozenset(codes_of(found)),
                    frozenset(name.lower() for name in found.get("headers", {})),
                    frozenset(
                        name.lower()
                        for name in found.get("headers", {})
                        if document["components"]["headers"][name]["required"]
                    ),
                )
                for status, found in operation["responses"].items()
            }
            yield Operation(
                path, re.compile(pattern, re.DOTALL), method.upper(), answers
            )


def _violation(operation: Operation, answer: Answer) -> str | None:
    declared = operation.answers.get(answer.status)
    if declared is None:
        return f"{answer.status} ({answer.code}), which is not declared"
    if answer.code is not None and answer.code not in declared.codes:
        return f"{answer.status} with the code {answer.code!r}: not declared"
    kinds = {answer.media_type, "*/*"} if answer.media_type else set()
    if kinds and not kinds & declared.media:
        return f"{answer.status} with the type {answer.media_type!r}: not declared"
    if not kinds and declared.media and answer.method != "HEAD":
        return f"{answer.status} without a content type"
    extra = set(answer.headers) - declared.headers - TRANSPORT_HEADERS
    if extra:
        return f"{answer.status} with headers that are not declared: {sorted(extra)}"
    absent = declared.always - set(answer.headers)
    return f"{answer.status} without {sorted(absent)}" if absent else None
