"""What holds for every route that the app has, found by asking the app.

Who may use which is in ``test_permission_matrix.py``, what they answer in
``test_contract.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import SecretStr

from tests.test_gateway.running import Running
from vision_o3.gateway.main import create_app
from vision_o3.settings import Settings

PUBLIC = {
    "/.well-known/jwks.json",
    "/auth/revoke",
    "/auth/token",
    "/health",
    "/health/ready",
}
APP = create_app(Settings(jwt_secret=SecretStr("x" * 40)))


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in APP.openapi()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


OPERATIONS = [(method, path) for method, path, _ in operations()]


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
        assert operation["tags"], where
        assert any(status.startswith("2") for status in responses), where
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
