from __future__ import annotations

import json
from typing import Dict, Optional, Type

import pytest

from tests.fakes.fake_gateway import Answer, _InMemoryResponse, drop, problem
from vision_o3 import errors
from vision_o3.sdk.problems import problem_error


def error_of(
    answer: Answer, headers: Optional[Dict[str, str]] = None
) -> errors.VisionO3Error:
    answer.headers.update(headers or {})
    return problem_error(_InMemoryResponse(answer), now=1_000_000_000.0)


@pytest.mark.parametrize(
    "cls",
    [errors.CIDMismatchError, errors.UploadInProgressError, errors.IntegrityError],
)
def test_code_becomes_its_class(cls: Type[errors.VisionO3Error]) -> None:
    error = error_of(problem(409, cls.code, expected="a", size=3))
    assert type(error) is cls
    assert error.message == f"It was {cls.code}."
    assert error.values == {
        "expected": "a", "size": 3, "status": 409, "request_id": "r-1"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "cls", "retryable"),
    [
        (400, errors.InputError, False),
        (401, errors.UnauthenticatedError, False),
        (403, errors.PermissionDeniedError, False),
        (404, errors.NotFoundError, False),
        (410, errors.NotFoundError, False),
        (413, errors.LimitExceededError, False),
        (416, errors.InvalidRangeError, False),
        (429, errors.RateLimitedError, True),
        (500, errors.VisionO3Error, False),
        (502, errors.TransportError, True),
        (503, errors.TransportError, True),
        (504, errors.TransportError, True),
        (507, errors.StorageFullError, False),
    ],
)
@pytest.mark.parametrize("code", ["who_knows", "internal", None])
def test_without_a_known_code_the_status_decides(
    status: int,
    cls: Type[errors.VisionO3Error],
    retryable: bool,
    code: Optional[str],
) -> None:
    page = Answer(status, {"Content-Type": "text/html"}, b"<p>")
    answer = page if code is None else problem(status, code)
    error = error_of(answer)
    assert type(error) is cls
    assert error.retryable is retryable
    assert str(error)


@pytest.mark.parametrize(
    "document", [b"[]", b"no", b"\xff", b"{" * 100_000, b'{"detail": 5, "code": 7}']
)
def test_a_broken_document_is_as_none(document: bytes) -> None:
    answer = Answer(404, {"Content-Type": "application/problem+json"}, document)
    error = error_of(answer)
    assert type(error) is errors.NotFoundError
    assert "404" in error.message


def test_a_document_that_breaks_off_is_as_none() -> None:
    answer = problem(404, "not_found")
    drop(5)(answer)
    assert type(error_of(answer)) is errors.NotFoundError


def test_document_cannot_change_what_an_error_is() -> None:
    hostile = {"args": "x", "code": "not_found", "retryable": 1, "__class__": "x"}
    hostile.update({"message": "x", "values": "y", "with_traceback": "z", "a b": "c"})
    hostile.update({"detail": "No."})
    kind = {"Content-Type": "application/json; charset=utf-8"}
    error = error_of(Answer(404, kind, json.dumps(hostile).encode()))
    assert (error.args, error.retryable, str(error)) == (("No.",), False, "No.")
    assert error.values == {"status": 404}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3", 3),
        ("0", 0),
        ("99999999999999999999", 3600),
        ("Sun, 09 Sep 2001 01:46:50 GMT", 10),
        ("Sun, 09 Sep 2001 01:46:30 GMT", 0),
        ("soon", None),
        ("-5", None),
        ("", None),
    ],
)
def test_retry_after(text: str, seconds: Optional[float]) -> None:
    error = error_of(problem(503, "storage_unavailable"), {"Retry-After": text})
    assert error.values.get("retry_after_s") == seconds


@pytest.mark.parametrize("code", ["cancelled", "offline", "deadline_exceeded"])
def test_a_gateway_cannot_speak_for_the_device(code: str) -> None:
    assert type(error_of(problem(400, code))) is errors.InputError


@pytest.mark.parametrize("value", [float("nan"), -5, "soon", 1e99])
def test_how_long_to_wait_is_said_by_the_header_alone(value: object) -> None:
    error = error_of(problem(503, "gateway_busy", retry_after_s=value, retryable=False))
    assert error.retryable
    assert "retry_after_s" not in error.values
