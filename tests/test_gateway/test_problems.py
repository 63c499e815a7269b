from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, cast

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from tests.test_gateway.running import Running, problem
from vision_o3 import errors
from vision_o3.errors import VisionO3Error
from vision_o3.gateway import problems
from vision_o3.gateway.middleware import EarlyEnd, RequestLog

EXPECTED = {
    "internal": 500,
    "invalid_input": 422,
    "invalid_cid": 422,
    "invalid_name": 422,
    "invalid_version": 422,
    "invalid_path": 422,
    "gateway_busy": 503,
    "invalid_range": 416,
    "format_mismatch": 422,
    "unsafe_content": 422,
    "cid_mismatch": 422,
    "incomplete_upload": 400,
    "too_large": 413,
    "malformed_request": 400,
    "head_too_large": 431,
    "withdrawn": 410,
    "version_blocked": 403,
    "version_purged": 410,
    "quota_exceeded": 403,
    "rate_limited": 429,
    "sign_in_slowed": 429,
    "too_many_transfers": 429,
    "request_timeout": 408,
    "auth_error": 403,
    "unauthenticated": 401,
    "permission_denied": 403,
    "not_found": 404,
    "object_not_found": 502,
    "conflict": 409,
    "already_exists": 409,
    "content_needed": 409,
    "upload_in_progress": 409,
    "integrity_error": 502,
    "digest_mismatch": 502,
    "length_mismatch": 502,
    "malformed_block": 502,
    "missing_block": 502,
    "storage_error": 500,
    "storage_unavailable": 503,
    "storage_full": 507,
    "database_unavailable": 503,
    "cache_error": 500,
    "invalid_configuration": 500,
    "transport_error": 500,
    "offline": 500,
    "deadline_exceeded": 500,
    "cancelled": 500,
}


def classes(root: type[VisionO3Error] = VisionO3Error) -> Iterator[type[VisionO3Error]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from classes(child)


def test_every_error_has_its_status() -> None:
    assert {cls.code: problems.status_of(cls) for cls in classes()} == EXPECTED


Failing = Callable[..., httpx.Response]


@pytest.fixture
def failing() -> Iterator[Failing]:
    """Return how an app answers when a route raises an error."""
    app = FastAPI()
    raised: list[Exception] = []

    @app.get("/")
    async def fail() -> None:
        raise raised[0]

    class BreaksOff(Response):
        async def __call__(self, *arguments: Scope | Receive | Send) -> None:
            send = cast("Send", arguments[2])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise raised[0]

    @app.get("/late")
    async def fail_late() -> Response:
        return BreaksOff()

    app.add_middleware(EarlyEnd)
    problems.install(app)
    app.add_middleware(RequestLog)
    transport = httpx.ASGITransport(app)
    client = httpx.AsyncClient(transport=transport, base_url="http://x")
    with start_blocking_portal() as portal:

        def answer_to(error: Exception, path: str = "/") -> httpx.Response:
            raised[:] = [error]
            return portal.call(client.get, path)

        yield answer_to
        portal.call(client.aclose)


@pytest.mark.parametrize("cls", list(classes()), ids=lambda cls: cls.code)
def test_every_error_is_answered_as_a_problem(
    failing: Failing, cls: type[VisionO3Error]
) -> None:
    answer = failing(cls("canary?", key="models/canary", limit=3, retry_after_s=7))
    status, code = problem(answer)
    assert status == EXPECTED[cls.code]
    internal = status == 500 and cls is not errors.StorageError
    assert code == ("internal" if internal else cls.code)
    assert "models/canary" not in answer.text
    assert answer.json()["limit"] == 3
    assert answer.headers["retry-after"] == "7"
    own_words = {errors.StorageFullError, errors.GatewayBusyError}
    shown = status < 500 or cls in own_words
    assert ("canary?" in answer.text) == shown


def test_unavailable_services_say_when_to_come_again(failing: Failing) -> None:
    for cls in (errors.TransientStorageError, errors.DatabaseUnavailableError):
        assert failing(cls("down")).headers["retry-after"] == "5"


def test_unsatisfiable_range_says_the_size(failing: Failing) -> None:
    answer = failing(errors.InvalidRangeError("no", size=12))
    assert answer.headers["content-range"] == "bytes */12"
    assert answer.json()["size"] == 12


def test_unknown_error_is_logged_and_tells_nothing(failing: Failing) -> None:
    with capture_logs() as lines:
        answer = failing(RuntimeError("canary"))
    assert problem(answer) == (500, "internal")
    assert "canary" not in answer.text
    failed, answered = lines
    assert failed["event"] == "request.failed"
    assert failed["log_level"] == "error"
    assert isinstance(failed["exc_info"], RuntimeError)
    assert (answered["event"], answered["status"]) == ("request.answered", 500)


def test_unknown_error_after_the_answer_began_breaks_it_off(failing: Failing) -> None:
    with capture_logs() as lines, pytest.raises(AssertionError):  # not completed
        failing(RuntimeError("canary"), "/late")
    assert [line["event"] for line in lines] == ["request.failed", "request.broken_off"]


def test_text_of_callers_cannot_break_the_answer(failing: Failing) -> None:
    answer = failing(errors.InputError("a\ud800b\n\0"))
    assert answer.json()["detail"] == "a\ud800b\n\0"


def test_other_http_errors_are_problems_too(failing: Failing) -> None:
    assert problem(failing(HTTPException(418, "tea"))) == (418, "invalid_input")


def test_unknown_pages_and_methods_are_problems(running: Running) -> None:
    assert problem(running.get("/nothing")) == (404, "not_found")
    assert problem(running.get("/models/")) == (404, "not_found")
    for path, allowed in (
        ("/models", "GET, POST"),
        ("/models/m/download", "GET, HEAD"),
        ("/docs", "GET"),
    ):
        answer = running.request("PUT", path)
        assert problem(answer) == (405, "method_not_allowed")
        assert answer.headers["allow"] == allowed


def test_validation_errors_are_listed(running: Running) -> None:
    answer = running.get("/models", params={"page": "0", "page_size": "x"})
    assert problem(answer) == (422, "invalid_input")
    assert [error["where"] for error in answer.json()["errors"]] == [
        "query.page",
        "query.page_size",
    ]


@pytest.mark.parametrize("started", [False, True])
def test_request_that_the_ending_server_cancels_may_be_sent_again(
    started: bool,
) -> None:
    sent: list[dict[str, Any]] = []

    async def app(_: object, __: object, send: Any) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise asyncio.CancelledError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def run() -> None:
        scope = {"type": "http", "method": "POST", "headers": [], "state": {}}
        with pytest.raises(asyncio.CancelledError):
            await problems.LastResort(app)(scope, None, send)  # type: ignore[arg-type]  # not asked for

    asyncio.run(run())
    assert sent[0]["status"] == (200 if started else 503)
    if not started:
        assert (b"retry-after", b"5") in sent[0]["headers"]
        assert b'"code": "gateway_busy"' in sent[1]["body"]
