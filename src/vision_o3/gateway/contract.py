"""What the OpenAPI document says beyond what FastAPI finds out by itself.

For each status of a route: the codes of the problems that it may carry, each with a
schema of its own and an example, and the headers. What holds for many routes alike is
added to all of them in one place, when the document is made.
"""

from __future__ import annotations

import http
from typing import TYPE_CHECKING, Any, TypeAlias

from vision_o3 import errors
from vision_o3.gateway.problem_examples import EXAMPLES
from vision_o3.schemas.problems import MEDIA_TYPE, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from fastapi import FastAPI

    ErrorClass: TypeAlias = type[errors.VisionO3Error]
    StatusOf: TypeAlias = Callable[[ErrorClass], int]

_REQUEST_ID = "0b0e7f3c5d1e4a0f9d3a6c2b"
_EVERYWHERE: tuple[ErrorClass, ...] = (
    errors.VisionO3Error,
    errors.GatewayBusyError,
    errors.HeadTooLargeError,
    errors.LimitExceededError,
    errors.MalformedRequestError,
    errors.RequestTimeoutError,
)
"""What the edge may answer in place of any route: a request that is not one, comes too
slowly, is too large, or meets a gateway that has enough to do."""
_SIGNED_IN: tuple[ErrorClass, ...] = (
    errors.UnauthenticatedError,
    errors.RateLimitedError,
    errors.DatabaseUnavailableError,
)
"""What the check of a token may come to."""
_WAITING: tuple[ErrorClass, ...] = (
    errors.RateLimitedError,
    errors.TransientStorageError,
    errors.DatabaseUnavailableError,
    errors.GatewayBusyError,
    errors.RequestTimeoutError,
    errors.UploadInProgressError,
)
"""Errors that say when to come again."""
_TEXT = {"type": "string"}
_NUMBER = {"type": "integer", "minimum": 0}
_HEADERS: Mapping[str, tuple[dict[str, Any], str]] = {
    "Accept-Ranges": (_TEXT, "`bytes`: ranges of it can be asked for."),
    "Cache-Control": (_TEXT, "What a cache may do with the answer (RFC 9111)."),
    "Content-Disposition": (_TEXT, "A name to save the bytes under (RFC 6266)."),
    "Content-Length": (_NUMBER, "Bytes of the answer."),
    "Content-Range": (_TEXT, "Which bytes these are, and of how many (RFC 9110)."),
    "Deprecation": (
        _TEXT,
        "The second from which on another version is to be used (RFC 9745), if any.",
    ),
    "ETag": (_TEXT, 'The CID of the bytes: `"<cid>"`, for If-None-Match.'),
    "Link": (_TEXT, "Other pages: `first`, `prev`, `next`, `last` (RFC 8288)."),
    "Location": (_TEXT, "Where it is."),
    "Repr-Digest": (_TEXT, "SHA-256 of the whole file, if it is one leaf (RFC 9530)."),
    "Retry-After": (_NUMBER, "Seconds after which to try again."),
    "WWW-Authenticate": (_TEXT, "How to sign in, or with which scope (RFC 6750)."),
    "X-Content-Type-Options": (_TEXT, "`nosniff`."),
    "X-Request-ID": (_TEXT, "The request's id, which its log line has too."),
    "X-Vision-O3-CID": (_TEXT, "The CID of the bytes."),
    "X-Vision-O3-Name": (_TEXT, "The line that they are a version of."),
    "X-Vision-O3-Size": (_NUMBER, "Bytes of the whole file."),
    "X-Vision-O3-Version": (_NUMBER, "The number of the version."),
}
_ALWAYS = ("X-Request-ID", "X-Content-Type-Options")
"""Headers of every answer."""
CONTENT_HEADERS = (
    "ETag",
    "Cache-Control",
    "Deprecation",
    "X-Vision-O3-CID",
    "X-Vision-O3-Name",
    "X-Vision-O3-Version",
    "X-Vision-O3-Size",
)
"""What every answer about the bytes of a version carries."""


def with_headers(*names: str) -> dict[str, Any]:
    """Return the part of a described response that names its headers."""
    return {
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    }


def problem_response(classes: Iterable[ErrorClass]) -> dict[str, Any]:
    """Return the description of a response that carries one of some problems."""
    known = list(dict.fromkeys(classes))
    schemas = {each.code: _reference(each) for each in known}
    schema: dict[str, Any] = {"$ref": schemas[known[0].code]}
    if len(known) > 1:
        schema = {
            "oneOf": [{"$ref": reference} for reference in schemas.values()],
            "discriminator": {"propertyName": "code", "mapping": schemas},
        }
    return {
        "description": " · ".join(f"`{each.code}`" for each in known),
        "content": {
            MEDIA_TYPE: {
                "schema": schema,
                "examples": {
                    each.code: {"$ref": f"#/components/examples/{each.code}"}
                    for each in known
                },
            }
        },
        **with_headers(*_headers_of(known)),
    }


def codes_of(response: Mapping[str, Any]) -> set[str]:
    """Return the codes that a described response may carry."""
    content = response.get("content", {}).get(MEDIA_TYPE, {})
    return set(content.get("examples", {}))


def problem_responses(
    classes: Iterable[ErrorClass], status_of: StatusOf
) -> dict[int, dict[str, Any]]:
    """Return the descriptions of all statuses that errors are answered with."""
    by_status: dict[int, list[ErrorClass]] = {}
    for error_class in classes:
        by_status.setdefault(status_of(error_class), []).append(error_class)
    return {
        status: problem_response(found) for status, found in sorted(by_status.items())
    }


def complete(app: FastAPI, status_of: StatusOf) -> None:
    """Let the app's OpenAPI document say what holds for many routes alike.

    Args:
        app: All its routes were added.
        status_of: Tells the status that an error is answered with.
    """
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(make(), status_of)
        return make()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's way to extend it


def _complete(document: dict[str, Any], status_of: StatusOf) -> None:
    used: set[ErrorClass] = set()
    for operation in _operations(document):
        responses = operation["responses"]
        classes = {
            found
            for response in responses.values()
            for code in codes_of(response)
            if (found := errors.from_code(code)) is not None
        }
        classes.update(_EVERYWHERE)
        if security := operation.get("security"):
            classes.update(_SIGNED_IN)
            if any(scopes for way in security for scopes in way.values()):
                classes.add(errors.PermissionDeniedError)
        if operation.get("parameters"):
            classes.add(errors.InputError)
        used |= classes
        in_order = sorted(classes, key=lambda each: each.code)
        for status, described in problem_responses(in_order, status_of).items():
            _merge(responses.setdefault(str(status), {}), described)
        for response in responses.values():
            common = with_headers(*_ALWAYS)
            response.setdefault("headers", {}).update(common["headers"])
        operation["responses"] = dict(sorted(responses.items()))
    components = document.setdefault("components", {})
    components["headers"] = {
        name: {
            "description": description,
            "schema": schema,
            "required": name in _ALWAYS,
        }
        for name, (schema, description) in _HEADERS.items()
    }
    components["examples"] = {
        each.code: _example(status_of(each), each)
        for each in sorted(used, key=lambda each: each.code)
    }
    schemas = components.setdefault("schemas", {})
    base = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(base.pop("$defs"))
    schemas["Problem"] = base
    for each in sorted(used, key=lambda each: each.code):
        schemas[_schema_name(each)] = _schema(base, each, status_of(each))


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for methods in document["paths"].values():
        yield from methods.values()


def _merge(response: dict[str, Any], described: dict[str, Any]) -> None:
    """Add a described problem to a response that may have an answer of its own."""
    other = set(response.get("content", {})) - {MEDIA_TYPE}
    if other:  # as /health/ready has, which answers 503 in its own words
        described = {
            **described,
            "description": f"{response['description']} · {described['description']}",
        }
    content = {**response.get("content", {}), **described["content"]}
    headers = {**response.get("headers", {}), **described["headers"]}
    response.update(described, content=content, headers=headers)


def _headers_of(classes: Iterable[ErrorClass]) -> list[str]:
    found = []
    if any(issubclass(each, _WAITING) for each in classes):
        found.append("Retry-After")
    if any(issubclass(each, errors.AuthError) for each in classes):
        found.append("WWW-Authenticate")
    if any(issubclass(each, errors.InvalidRangeError) for each in classes):
        found.append("Content-Range")
    return found


def _promise(error_class: ErrorClass) -> str:
    return (error_class.__doc__ or "").splitlines()[0].replace("``", "`")


def _schema_name(error_class: ErrorClass) -> str:
    if error_class is errors.VisionO3Error:
        return "InternalProblem"
    return error_class.__name__.removesuffix("Error") + "Problem"


def _reference(error_class: ErrorClass) -> str:
    return f"#/components/schemas/{_schema_name(error_class)}"


def _schema(
    base: dict[str, Any], error_class: ErrorClass, status: int
) -> dict[str, Any]:
    """Return the schema of the problems of one code."""
    properties = {
        **base["properties"],
        "status": {**base["properties"]["status"], "const": status},
        "code": {**base["properties"]["code"], "const": error_class.code},
    }
    if error_class is not errors.InputError:
        del properties["errors"]
    return {
        **base,
        "title": _schema_name(error_class),
        "description": _promise(error_class),
        "properties": properties,
    }


def _example(status: int, error_class: ErrorClass) -> dict[str, Any]:
    example = EXAMPLES[error_class]
    document = Problem(
        title=http.HTTPStatus(status).phrase,
        status=status,
        detail=example.detail,
        code=error_class.code,
        request_id=_REQUEST_ID,
        **example.facts,
    )
    return {
        "summary": _promise(error_class),
        "value": document.model_dump(mode="json", exclude_none=True),
    }
