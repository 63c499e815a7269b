from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.fakes.model_files import onnx, tflite
from vision_o3.errors import (
    FormatError,
    GatewayBusyError,
    LimitExceededError,
    StorageError,
    UnsafeContentError,
)
from vision_o3.formats import worker
from vision_o3.formats.limits import Limits
from vision_o3.registry import inspecting
from vision_o3.registry.inspecting import WORKER, Inspector
from vision_o3.registry.spool import Spool


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool", max_size=1 << 30, min_free=0)
    yield spool
    spool.close()
    assert not list((tmp_path / "spool").iterdir()), "a spool file was left behind"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.write_bytes(tflite())
    return path


def inspect(spool: Spool, path: Path, script: str, **limits: Any) -> dict[str, Any]:
    """Inspect by a process that runs a script of Python."""
    command = (sys.executable, "-S", "-c", script)
    inspector = Inspector(spool, replace(Limits(), **limits), command=command)
    try:
        with inspector.inspect(path, "tflite") as inspected:
            return inspected.facts
    finally:
        inspector.close()


def test_file_is_inspected_in_another_process_many_times(
    spool: Spool, model: Path
) -> None:
    inspector = Inspector(spool, Limits())
    for _ in range(3):
        with inspector.inspect(model, "tflite") as inspected:
            assert inspected.file_format == "tflite"
            assert inspected.facts["kind"] == "tflite"
            assert inspected.manifest is None
    with (
        pytest.raises(FormatError, match="it is a TFLite model") as caught,
        inspector.inspect(model, "onnx"),
    ):
        pass
    assert caught.value.values == {"declared": "onnx", "detected": "a TFLite model"}
    inspector.close()
    inspector.close()


ANSWERS = {
    "dies": "import os; os.kill(os.getpid(), 11)",
    "dies before it reads": "raise SystemExit(3)",
    "closes its input": "import os, time; os.close(0); time.sleep(0.2); print('x')",
    "answers and stays": "input(); print('{', flush=True); import os; os.close(1);"
    " import time; time.sleep(60)",
    "says nothing": "input()",
    "says no JSON": "input(); print('{')",
    "says a list": "input(); print('[]')",
    "says facts of no kind": "input(); print('{\"facts\": {}}')",
    "says too much": "input(); print('{\"facts\": \"' + 'x' * (5 << 20) + '\"}')",
    "says an error of its own": 'input(); print(\'{"error": "internal"}\')',
    "failed": 'input(); print(\'{"failure": "Traceback"}\')',
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_process_that_breaks_costs_one_request(
    spool: Spool, model: Path, kind: str
) -> None:
    with capture_logs() as logs, pytest.raises(FormatError, match="looking into it"):
        inspect(spool, model, ANSWERS[kind])
    assert [line["event"] for line in logs] == ["inspection.failed"]


def test_publisher_behind_slow_files_is_told_to_come_back(
    spool: Spool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspecting, "_LONGEST_WAIT_S", 0.05)
    script = "input(); import time; time.sleep(600)"
    command = (sys.executable, "-S", "-c", script)
    inspector = Inspector(spool, Limits(), concurrent=1, command=command)
    slow = threading.Thread(target=refused_as_busy, args=(inspector, model))
    slow.start()
    while not inspector._busy:
        assert slow.is_alive()
    refused_as_busy(inspector, model)
    inspector.close()  # ends what is being inspected
    slow.join()
    refused_as_busy(inspector, model)
    assert not inspector._busy


def refused_as_busy(inspector: Inspector, model: Path) -> None:
    with (
        pytest.raises(GatewayBusyError) as caught,
        inspector.inspect(model, "tflite"),
    ):
        pass
    assert caught.value.values["retry_after_s"] > 0


def test_process_ends_with_its_gateway(tmp_path: Path) -> None:
    """Killed while a file is read, here a pipe that nobody writes to."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    line = json.dumps({**job(tmp_path, b"", "onnx"), "path": str(pipe)}).encode()
    worker = subprocess.Popen(WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdin
    assert worker.stdout
    worker.stdin.write(line + b"\n")
    worker.stdin.flush()
    assert worker.poll() is None
    worker.stdin.close()
    assert worker.wait(timeout=60) == 1
    worker.stdout.close()


def test_process_that_hangs_is_ended(spool: Spool, model: Path) -> None:
    script = "input(); import time; time.sleep(600)"
    with pytest.raises(LimitExceededError, match="INSPECT_TIMEOUT_S") as caught:
        inspect(spool, model, script, time_s=0.5)
    assert caught.value.values == {"limit": 0.5}


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("unsafe_content", UnsafeContentError),
        ("too_large", LimitExceededError),
        ("format_mismatch", FormatError),
    ],
)
def test_refusals_keep_their_kind(
    spool: Spool, model: Path, code: str, error: type[Exception]
) -> None:
    answer = json.dumps({"error": code, "message": "Because.", "values": {"limit": 1}})
    with pytest.raises(error, match="Because"):
        inspect(spool, model, f"input(); print({answer!r})")


def test_process_has_no_secrets(
    spool: Spool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISION_O3_JWT_SECRET", "s3cret")
    script = (
        "import os, json; input(); print(json.dumps({'error': 'too_large',"
        " 'message': repr(sorted(os.environ)), 'values': {}}))"
    )
    with pytest.raises(LimitExceededError) as caught:
        inspect(spool, model, script)
    assert "PYTHONPATH" in caught.value.message
    assert "SECRET" not in caught.value.message


def test_process_that_cannot_start_is_the_storages_failure(spool: Spool) -> None:
    with pytest.raises(StorageError, match="cannot start"):
        Inspector(spool, Limits(), command=("/nowhere/python",))


def test_process_that_is_not_needed_ends() -> None:
    done = subprocess.run(WORKER, input=b"", capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")


def test_process_bounds_its_memory_and_files() -> None:
    script = (
        "from vision_o3.formats import worker; from vision_o3.formats.limits import"
        " Limits; worker.bound_process(Limits(memory_bytes=300 << 20))\n"
        "try: bytearray(400 << 20)\n"
        "except MemoryError: print('memory')\n"
        "try: [open('/dev/null') for _ in range(100)]\n"
        "except OSError: print('files')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["memory", "files"]


def job(tmp_path: Path, content: bytes, declared: str) -> dict[str, Any]:
    path = tmp_path / "file"
    path.write_bytes(content)
    return {
        "path": str(path),
        "declared": declared,
        "manifest": str(tmp_path / "manifest"),
        "index": str(tmp_path / "index"),
        "limits": asdict(Limits()),
    }


def test_job_is_answered_with_facts_or_a_refusal(tmp_path: Path) -> None:
    good = worker.work(job(tmp_path, onnx(), "onnx"), Limits())
    assert good["file_format"] == "onnx"
    assert good["listed"] is False
    bad = worker.work(job(tmp_path, b"text", "onnx"), Limits())
    assert bad["error"] == "format_mismatch"
    assert bad["values"] == {"declared": "onnx", "detected": "text"}


def test_job_that_fails_unforeseen_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("unforeseen")

    def exhaust(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(worker, "inspect", fail)
    assert "unforeseen" in worker.work(job(tmp_path, b"", "onnx"), Limits())["failure"]
    monkeypatch.setattr(worker, "inspect", exhaust)
    answer = worker.work(job(tmp_path, b"", "onnx"), Limits())
    assert answer["error"] == "too_large"


def test_worker_reads_one_job_and_writes_one_answer(tmp_path: Path) -> None:
    line = json.dumps(job(tmp_path, onnx(), "onnx")).encode() + b"\n"
    with subprocess.Popen(
        [sys.executable, "-m", "vision_o3.formats.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(os.environ),
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(line)
        process.stdin.flush()
        answer = process.stdout.read()
    assert json.loads(answer)["facts"]["kind"] == "onnx"
