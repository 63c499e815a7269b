"""The OpenAPI document says of every answer what it may be, and answers keep to it.

The check that is tested here surrounds every gateway of this folder's tests
(``conftest.py``).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Response

from tests.test_gateway.contract import Contract, ContractCheck
from tests.test_gateway.running import OpenGateway, Serve
from vision_o3 import errors
from vision_o3.gateway import problems
from vision_o3.gateway.contract import codes_of
from vision_o3.gateway.main import create_app
from vision_o3.gateway.middleware import RequestLog, SafeHeaders
from vision_o3.gateway.problems import describe, status_of
from vision_o3.schemas.problems import MEDIA_TYPE
from vision_o3.settings import Settings

DOCUMENT = create_app(Settings(jwt_secret="x" * 40)).openapi()


def responses() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            for status, response in operation["responses"].items():
                yield f"{method.upper()} {path} {status}", response


def checked_app(*, safe_headers: bool = True) -> ContractCheck:
    """Return an app whose route answers as its caller says, declared or not."""
    app = FastAPI()

    @app.get("/things/{name}", responses=describe(errors.VersionPurgedError))
    async def thing(
        name: str, status: int = 200, kind: str = "application/json", header: str = ""
    ) -> Response:
        if (error := errors.from_code(name)) is not None:
            raise error("no")
        headers = {"Content-Type": kind} if kind else {}
        return Response(b"{}", status, headers | ({header: "x"} if header else {}))

    problems.install(app)
    app.add_middleware(RequestLog)
    if safe_headers:
        app.add_middleware(SafeHeaders)
    return ContractCheck(app, Contract(app.openapi()))


def ask(check: ContractCheck, path: str, method: str = "GET") -> int:
    async def send() -> int:
        transport = httpx.ASGITransport(check)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as found:
            return (await found.request(method, path)).status_code

    return asyncio.run(send())


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/things/a?status=418", "answered 418 (None), which is not declared"),
        ("/things/conflict", "answered 409 (conflict), which is not declared"),
        ("/things/withdrawn", "answered 410 with the code 'withdrawn': not declared"),
        ("/things/a?kind=text/plain", "200 with the type 'text/plain': not declared"),
        ("/things/a?kind=", "200 without a content type"),
        ("/things/a?header=X-Powered-By", "not declared: ['x-powered-by']"),
    ],
)
def test_answer_that_is_not_declared_is_found(path: str, told: str) -> None:
    check = checked_app()
    ask(check, path)
    with pytest.raises(AssertionError, match=r"GET /things/\{name\}") as failed:
        check.assert_kept()
    assert told in str(failed.value)


def test_answer_without_a_header_that_all_have_is_found() -> None:
    check = checked_app(safe_headers=False)
    ask(check, "/things/a")
    with pytest.raises(AssertionError, match=r"200 without \['x-content-type-options"):
        check.assert_kept()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/things/a", 200),
        ("GET", "/things/version_purged", 410),
        ("GET", "/things/internal", 500),
        ("GET", "/things/a?status=x", 422),
        ("POST", "/things/a", 405),
        ("GET", "/elsewhere", 404),
        ("GET", "/openapi.json", 200),
    ],
)
def test_answer_that_is_declared_is_not_complained_of(
    method: str, path: str, status: int
) -> None:
    check = checked_app()
    assert ask(check, path, method) == status
    check.assert_kept()


def test_every_gateway_of_the_tests_is_held_to_its_document(
    open_gateway: OpenGateway, serve: Serve
) -> None:
    def add_route(app: FastAPI) -> None:
        app.add_api_route("/undeclared", lambda: Response("x"))

    for start in (open_gateway, serve):
        with pytest.raises(AssertionError, match="GET /undeclared, which is not"):  # noqa: PT012, SIM117 - raised when the block ends
            with start() as running:
                add_route(running.app)
                if start is serve:
                    url = f"http://127.0.0.1:{running.port}/undeclared"  # type: ignore[union-attr]  # the one served
                    assert httpx.get(url).status_code == 200
                else:
                    assert running.get("/undeclared").status_code == 200  # type: ignore[union-attr]  # the other


def test_every_problem_is_declared_with_its_code_and_an_example() -> None:
    seen = set()
    for where, response in responses():
        for code in codes_of(response):
            error_class = errors.from_code(code)
            assert error_class is not None, where
            assert where.endswith(f" {status_of(error_class)}")
            example = DOCUMENT["components"]["examples"][code]["value"]
            assert example["code"] == code
            assert example["status"] == status_of(error_class)
            assert len(example["detail"]) > 20
            seen.add(code)
        if (found := response.get("content", {}).get(MEDIA_TYPE)) is not None:
            references = found["schema"].get("oneOf", [found["schema"]])
            names = [each["$ref"].rpartition("/")[2] for each in references]
            schemas = [DOCUMENT["components"]["schemas"][name] for name in names]
            assert {
                schema["properties"]["code"]["const"] for schema in schemas
            } == codes_of(response), where
    never_sent_by_a_gateway = {
        "auth_error", "cache_error", "cancelled", "deadline_exceeded",
        "invalid_configuration", "offline", "transport_error", "withdrawn",
    }  # fmt: skip
    everything = {cls.code for cls in _tree(errors.VisionO3Error)}
    assert everything - seen == never_sent_by_a_gateway


def test_what_the_edge_answers_is_declared_of_every_route() -> None:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            found = {
                code
                for response in operation["responses"].values()
                for code in codes_of(response)
            }
            assert {
                "gateway_busy", "head_too_large", "internal", "malformed_request",
                "request_timeout", "too_large",
            } <= found, (method, path)  # fmt: skip
            if operation.get("security"):
                assert {"unauthenticated", "rate_limited"} <= found, (method, path)


def test_headers_that_tell_what_to_do_are_declared() -> None:
    for where, response in responses():
        headers = set(response.get("headers", {}))
        assert "X-Request-ID" in headers, where
        status = where.rpartition(" ")[2]
        if status in {"401", "429", "503", "416", "307", "206"}:
            assert {
                "401": "WWW-Authenticate",
                "429": "Retry-After",
                "503": "Retry-After",
                "416": "Content-Range",
                "307": "Location",
                "206": "Content-Range",
            }[status] in headers, where


def test_document_is_small_enough_to_be_read() -> None:
    assert len(json.dumps(DOCUMENT)) < 1 << 20


def _tree(root: type[errors.VisionO3Error]) -> Iterator[type[errors.VisionO3Error]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child)
