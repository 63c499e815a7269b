from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import structlog
from structlog.testing import capture_logs

from tests.fakes.model_files import tflite
from tests.test_gateway.running import OpenGateway, Running, add_user
from vision_o3.gateway.logs import configure_logging

Capture = pytest.CaptureFixture[str]


@contextmanager
def process_logging(secrets: Sequence[str] = ()) -> Iterator[None]:
    """Log as a process of ``serve`` does. In the test: a fixture has other streams."""
    root = logging.getLogger()
    level = root.level
    configure_logging("DEBUG", secrets)
    ours = root.handlers[:]
    clients = [logging.getLogger(name) for name in ("httpx", "httpcore", "asyncio")]
    for client in clients:  # the test's own
        client.setLevel("WARNING")
    yield
    for client in clients:
        client.setLevel("NOTSET")
    structlog.reset_defaults()
    for handler in ours:
        root.removeHandler(handler)
    root.setLevel(level)


def test_each_request_is_one_line_of_json_with_all_that_is_asked_of_it(
    open_gateway: OpenGateway, capsys: Capture
) -> None:
    with process_logging(), open_gateway() as running:
        running.publish(tflite())
        running.get("/models?q=a%0Ab")
        running.get("/nothing")
        running.get("/models", token="garbage")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    answered = [line for line in lines if line["event"] == "request.answered"]
    assert [
        (line["method"], line["route"], line["status"], line["principal"])
        for line in answered
    ] == [
        ("POST", "/models", 201, "ann"),
        ("GET", "/models", 200, "ann"),
        ("GET", None, 404, None),
        ("GET", "/models", 401, None),
    ]
    for line in answered:
        assert line["duration_s"] > 0
        assert line["bytes_sent"] > 0
        assert line["level"] == "info"
        assert len(line["request_id"]) == 24
        assert line["timestamp"].endswith("Z")
    assert answered[0]["bytes_received"] > 64
    published = next(line for line in lines if line["event"] == "version.published")
    assert published["request_id"] == answered[0]["request_id"]


def test_no_secret_is_in_any_log_line(
    open_gateway: OpenGateway, capsys: Capture
) -> None:
    key = "canary-of-the-signing-key-" * 2
    with process_logging(), open_gateway(jwt_secret=key) as running:
        secret = add_user(running.gateway, "ann", ["model:read"])
        form = {"grant_type": "password", "username": "ann", "password": secret}
        token = running.request("POST", "/auth/token", data=form).json()["access_token"]
        wrong = {**form, "password": "canary-wrong"}
        running.request("POST", "/auth/token", data=wrong)
        running.request("POST", "/auth/token", content=b"canary", token=token)
        running.get(f"/models?access_token={token}", token=token)
        running.get(f"/models/{token}", token=token)
        running.request("POST", "/models", token=token, content=b"canary-content")
        running.publish(tflite() + b"canary-content")
        running.app.state.gateway = None  # every request fails now
        running.get("/models", token=token)
        running.request("POST", "/auth/token", data=form, token=token)
    text = "".join(capsys.readouterr())
    assert "request.failed" in text
    assert '"status": 500' in text
    for hidden in (secret, token, token.split(".")[2], "canary"):
        assert hidden not in text


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-123._X", True),
        ("x" * 65, False),
        ("", False),
        ("a b", False),
        ('a"b', False),
        ("ü".encode(), False),
    ],
)
def test_callers_request_id_is_kept_if_it_is_harmless(
    running: Running,
    given: str | bytes,
    kept: bool,
) -> None:
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        answer = running.get("/models", headers={"X-Request-ID": given})
    answered = answer.headers["x-request-id"]
    assert lines[0]["request_id"] == answered
    if kept:
        assert answered == given
    else:
        assert len(answered) == 24


def test_libraries_lines_are_json_too(capsys: Capture) -> None:
    with process_logging():
        logging.getLogger("uvicorn.error").warning("two\nlines %s", 1)
        logging.getLogger("uvicorn.access").info("canary")
        logging.getLogger("python_multipart.multipart").warning("canary")
    line = json.loads(capsys.readouterr().out)
    assert line["event"] == "two\nlines 1"
    assert line["logger"] == "uvicorn.error"
