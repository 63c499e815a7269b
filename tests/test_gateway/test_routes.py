"""What holds for every route that the app has, found by asking the app."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from pydantic import SecretStr

from tests.test_gateway.running import Running
from vision_o3.gateway.auth import SCOPES
from vision_o3.gateway.main import create_app
from vision_o3.gateway.problems import MEDIA_TYPE
from vision_o3.settings import Settings

PUBLIC = {"/auth/token", "/health", "/health/ready"}
APP = create_app(Settings(jwt_secret=SecretStr("x" * 40)))


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in APP.openapi()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


OPERATIONS = [(method, path) for method, path, _ in operations()]


def needed_scopes(path: str, method: str) -> set[str]:
    """Return the scopes of which any opens a route."""
    kind = path.split("/")[1].removesuffix("s")
    if kind == "upload":
        return {"model:write", "dataset:write"}
    return {f"{kind}:{'write' if method == 'POST' else 'read'}"}


def call(running: Running, method: str, path: str, token: str | None) -> Any:
    path = path.format(name="m", version="1", cid="b" * 59, path="a.jpg", offset="0")
    return running.request(method, path, token=token)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_route_opens_for_its_scope_and_no_other(
    running: Running, method: str, path: str
) -> None:
    if path in PUBLIC:
        assert call(running, method, path, None).status_code != 401
        return
    refused = call(running, method, path, None)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert call(running, method, path, "garbage").status_code == 401
    for scope in SCOPES:
        answer = call(running, method, path, running.token(scope))
        if scope in needed_scopes(path, method):
            assert answer.status_code not in {401, 403}
        else:
            assert answer.status_code == 403
            told = answer.headers["www-authenticate"].partition('scope="')[2]
            assert told.removesuffix('"') in needed_scopes(path, method)


def test_no_other_page_is_there() -> None:
    documented = {path for _, path in OPERATIONS}
    found = {getattr(route, "path_format", None) for route in APP.routes}
    pages = {"/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc"}
    assert found - pages - {None, ""} <= documented


def test_openapi_describes_every_operation() -> None:
    document = APP.openapi()
    seen = set()
    for method, path, operation in operations():
        where = f"{method} {path}"
        assert operation["summary"], where
        assert operation["description"], where
        assert operation["operationId"] not in seen
        seen.add(operation["operationId"])
        assert bool(operation.get("security")) == (path not in PUBLIC), where
        responses = operation["responses"]
        if path not in {"/health", "/health/ready"}:
            assert {"422", "500"} <= set(responses), where
        for status, response in responses.items():
            if int(status) >= 400 and path != "/health/ready":
                content = response["content"][MEDIA_TYPE]
                assert content["schema"]["$ref"] == "#/components/schemas/Problem"
                assert content["example"]["status"] == int(status)
    assert "HTTPValidationError" not in json.dumps(document)


def test_openapi_has_no_dangling_reference() -> None:
    document = APP.openapi()

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    for reference in references(document):
        found = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
        assert found
    assert document["openapi"].startswith("3.1")
    schemes = document["components"]["securitySchemes"]
    assert set(schemes["credentials"]["flows"]) == {"clientCredentials", "password"}
    assert schemes["token"]["scheme"] == "bearer"
    assert APP.openapi() is document


def test_documentation_is_served(running: Running) -> None:
    assert running.get("/docs", token=None).status_code == 200
    document = running.get("/openapi.json", token=None).json()
    assert document["info"]["title"] == "Vision-O3"
    example = document["components"]["schemas"]["ModelVersionRead"]["examples"][0]
    assert set(example) == set(
        document["components"]["schemas"]["ModelVersionRead"]["properties"]
    )


def test_every_route_names_who_may_use_it() -> None:
    def routes(found: Any) -> Iterator[APIRoute]:
        for route in found:
            if isinstance(route, APIRoute):
                yield route
            elif (inner := getattr(route, "original_router", None)) is not None:
                yield from routes(inner.routes)

    def called(dependant: Any) -> set[str]:
        return {getattr(dependant.call, "__name__", "")}.union(
            *(called(found) for found in dependant.dependencies)
        )

    seen = list(routes(APP.routes))
    assert len(seen) == len(OPERATIONS)
    for route in seen:
        names = called(route.dependant)
        assert names & {"_public", "_authenticated"}, route.path
