"""Try the HTTP API with valid and invalid requests made from its OpenAPI document.

    python fuzz/http_api.py                        # 5,000 cases an operation
    python fuzz/http_api.py --max-examples 30      # as in CI

A real gateway is started (SQLite, a local store), with models, a dataset and users.
Schemathesis, from ``.venv/contracts``, makes the requests, as somebody with every scope
and as somebody without a token, and holds each answer to the document: no 5xx, no
status, content type, header or body that is not declared, no invalid request that is
accepted, no valid one that is refused, no route that opens without a token. What it
finds is printed with a command that repeats it, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

sys.path.insert(0, str(Path(__file__).parent.parent))

from fuzz.seeds import seeds_of
from tests.fakes.model_files import onnx, tflite
from tests.test_integration.gateways import RunningGateway, Site, start
from vision_o3.content.dag import cid_of_stream
from vision_o3.registry.permissions import SCOPES
from vision_o3.sdk import VisionO3Client

REPOSITORY = Path(__file__).parent.parent
SCHEMATHESIS = REPOSITORY / ".venv" / "contracts" / "bin" / "schemathesis"
RUNNER = "fuzz-runner"
NAMES = ["yolov11", "plates", "a", "0.9_b-c"]
LEAF = 1 << 20
SETTINGS = {
    # What is tried here is the answers: nobody is to be told to wait.
    "VISION_O3_MAX_REQUESTS_PER_MINUTE": "0",
    "VISION_O3_MAX_SIGN_INS_PER_MINUTE": "0",
    "VISION_O3_MAX_FAILED_SIGN_INS": str(1 << 30),
    "VISION_O3_MAX_DOWNLOADS_PER_USER": "0",
    "VISION_O3_MAX_UPLOADS_PER_USER": "0",
    "VISION_O3_MAX_PARTIAL_UPLOADS_PER_USER": "0",
    "VISION_O3_MAX_VERSIONS_PER_USER": "0",
    "VISION_O3_MAX_BYTES_PER_USER": "0",
    "VISION_O3_MIN_FREE_BYTES": "0",
    "VISION_O3_TOKEN_TTL_S": str(30 * 86_400),
    "VISION_O3_PUBLISH_TO": "any",
    "VISION_O3_LOG_LEVEL": "WARNING",
}
REFUSING = [400, 401, 403, 404, 405, 409, 410, 413, 416, 422, 429, 431]
"""Statuses that refuse an invalid request."""
REFUSED = ["2xx", 400, 401, 403, 404, 409, 410, 413, 416, 422]
"""Statuses of valid requests whose content or aim a document cannot describe."""
CONTENT_DECIDES = {
    "models_publish", "datasets_publish", "uploads_begin", "uploads_send",
    "uploads_read", "sign_in", "users_add", "users_change", "users_add_secret",
    "datasets_file_get", "datasets_file_head",
}  # fmt: skip
"""Operations whose requests may be valid by the document, and refused with 4xx: bytes
are not of the format, an offset lies beyond the file, a permission names no scope, a
path leads out of the archive."""


def files() -> dict[str, list[tuple[str, bytes]]]:
    """Return small good files of both collections."""
    return {
        "models": [("m.tflite", tflite()), ("m.onnx", onnx())],
        "datasets": [
            (f"d.{kind}", seeds_of(kind)[0]) for kind in ("zip", "tar.gz", "json")
        ],
    }


def seed_gateway(gateway: RunningGateway, secret: str) -> dict[str, Any]:
    """Publish something to find; return what requests can be made of it."""
    cids = []
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        with VisionO3Client(
            gateway.url, credentials=(RUNNER, secret), cache_dir=home / "cache"
        ) as client:
            for number, name in enumerate(NAMES):
                for kind, found in files().items():
                    publish = getattr(client, f"upload_{kind.removesuffix('s')}")
                    for filename, content in found:
                        path = home / filename
                        path.write_bytes(_varied(filename, content, number))
                        cids.append(str(publish(path, name).cid))
    uploads = []
    for number in range(4):
        content = bytes([number]) * (LEAF + 100 + number)
        dag = cid_of_stream(io.BytesIO(content))
        uploads.append(
            {
                "cid": str(dag.root),
                "sidecar": _text(dag.sidecar() or b""),
                "offset": LEAF,
                "leaf": _text(content[LEAF:]),
            }
        )
    return {
        "runner": RUNNER,
        "names": NAMES,
        "cids": sorted(set(cids)) + [each["cid"] for each in uploads],
        "uploads": uploads,
        "files": {
            kind: [(name, _text(content)) for name, content in found]
            for kind, found in files().items()
        },
    }


def _varied(filename: str, content: bytes, number: int) -> bytes:
    return tflite(number) if filename.endswith("tflite") else content


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def configuration(seeds: dict[str, Any], max_examples: int) -> str:
    """Return Schemathesis's configuration (TOML)."""
    dictionaries = {
        "names": seeds["names"],
        "cids": seeds["cids"],
        "versions": ["1", "2", "3"],
        "users": ["nobody", "device-1", "device-2"],
        "paths": ["images/a.jpg", "a.txt", "%2e%2e/a"],
    }
    bound = {
        "path.name": "names",
        "path.cid": "cids",
        "path.version": "versions",
        "path.user": "users",
        "path.path": "paths",
        "query.from": "versions",
        "query.to": "versions",
        "query.version": "versions",
    }
    lines = [
        "[checks.negative_data_rejection]",
        f"expected-statuses = {json.dumps(REFUSING)}",
        "[generation]",
        'mode = "all"',
        f"max-examples = {max_examples}",
        'database = "none"',
        "[phases.stateful]",
        f"generation.max-examples = {max(1, max_examples // 10)}",
    ]
    for name, values in dictionaries.items():
        lines += [f"[dictionaries.{name}]", f"values = {json.dumps(values)}"]
    lines.append("[parameters]")
    lines += [
        f'"{place}" = {{dictionary = "{name}", probability = 0.4}}'
        for place, name in bound.items()
    ]
    lines += [
        "[[operations]]",
        f"include-operation-id = {json.dumps(sorted(CONTENT_DECIDES))}",
        "[operations.checks.positive_data_acceptance]",
        f"expected-statuses = {json.dumps(REFUSED)}",
    ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Runs:
    """What all runs of Schemathesis share."""

    gateway: RunningGateway
    home: Path
    seeds: dict[str, Any]
    tokens: dict[str, str | None]
    """Of those who ask, by a word for each; ``None``: without a token."""

    def run(
        self, operations: Sequence[str], who: str, most: int, phases: str
    ) -> tuple[int, bool]:
        """Try some operations; print what is found.

        Returns:
            How many cases there were, and whether all answers were right.
        """
        with tempfile.TemporaryDirectory(dir=self.home) as directory:
            here = Path(directory)
            (here / "schemathesis.toml").write_text(configuration(self.seeds, most))
            (here / "seeds.json").write_text(json.dumps(self.seeds))
            command = [str(SCHEMATHESIS), "--config-file", "schemathesis.toml", "run"]
            # One worker, as Hypothesis in threads meets a fault of CPython's parser.
            command += ["--workers", "1", "--seed", str(self.seeds["seed"])]
            command += ["--checks", "all", "--phases", phases, "--continue-on-failure"]
            command += ["--suppress-health-check", "all", "--request-timeout", "60"]
            command += ["--no-color", "--warnings", "off"]
            command += ["--report", "json", "--report-json-path", "report.json"]
            if (token := self.tokens[who]) is not None:
                command += ["--header", f"Authorization: Bearer {token}"]
            for operation in operations:
                command += ["--include-operation-id", operation]
            done = subprocess.run(
                [*command, f"{self.gateway.url}/openapi.json"],
                env={
                    **os.environ,
                    "SCHEMATHESIS_HOOKS": "fuzz.http_hooks",
                    "PYTHONPATH": str(REPOSITORY),
                    "VISION_O3_FUZZ_SEEDS": str(here / "seeds.json"),
                },
                cwd=here,
                check=False,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            report = here / "report.json"
            if done.returncode or not report.exists():
                print(f"As {who}: {done.stdout}", flush=True)
                return 0, False
            cases = json.loads(report.read_text())["test_cases"]["generated"]
        if token is not None and not self._lets_in(token):
            print(f"{RUNNER} lost their permission by one of {', '.join(operations)}.")
            return cases, False
        return cases, True

    def _lets_in(self, token: str) -> bool:
        """Say whether the token still holds: else all was refused for that alone."""
        request = urllib.request.Request(
            f"{self.gateway.url}/auth/me", headers={"Authorization": f"Bearer {token}"}
        )
        try:
            with urllib.request.urlopen(request) as answer:
                return set(json.load(answer)["permissions"]) == set(SCOPES)
        except urllib.error.HTTPError:
            return False


def operations_of(gateway: RunningGateway) -> list[str]:
    """Return the ids of all operations that the gateway has."""
    with urllib.request.urlopen(f"{gateway.url}/openapi.json") as answer:
        document = json.load(answer)
    return [
        operation["operationId"]
        for methods in document["paths"].values()
        for operation in methods.values()
    ]


def token_of(gateway: RunningGateway, secret: str) -> str:
    """Return a token with every scope."""
    form = {
        "grant_type": "client_credentials",
        "client_id": RUNNER,
        "client_secret": secret,
    }
    request = urllib.request.Request(
        f"{gateway.url}/auth/token", urllib.parse.urlencode(form).encode()
    )
    with urllib.request.urlopen(request) as answer:
        token: str = json.load(answer)["access_token"]
    return token


def main() -> int:
    """Return 0 if every answer was as the document says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-examples", type=int, default=5000, metavar="N")
    parser.add_argument("--jobs", type=int, default=2, help="processes; default: 2")
    parser.add_argument(
        "--table",
        action="store_true",
        help="try the operations one by one, and tell how many cases each had",
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument(
        "operations", nargs="*", help="operation ids, as models_list; default: all"
    )
    options = parser.parse_args()
    if not SCHEMATHESIS.exists():
        parser.error(f"{SCHEMATHESIS} is not there: .ci/run shows how to make it.")
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        site = Site(home, f"sqlite:///{home}/registry.db", SETTINGS)
        site.run("admin", "migrate")
        _, secret = site.add_user(RUNNER, *SCOPES)
        for name in ("device-1", "device-2"):
            site.add_user(name, "model:read")
        gateway = start(site)
        try:
            seeds = seed_gateway(gateway, secret) | {"seed": options.seed}
            tokens = {RUNNER: token_of(gateway, secret), "nobody": None}
            right = try_all(Runs(gateway, home, seeds, tokens), options)
            alive = gateway.process.poll() is None
        finally:
            gateway.process.terminate()
            gateway.process.wait(timeout=60)
        failed = [line for line in gateway.log.read_text().splitlines() if _bad(line)]
    for line in failed[:20]:
        print(f"The gateway logged: {line}")
    if not alive:
        print("The gateway ended.")
    return int(not right or not alive or bool(failed))


def try_all(runs: Runs, options: argparse.Namespace) -> bool:
    """Try all operations; say whether every answer was right."""
    chosen = options.operations or operations_of(runs.gateway)
    groups = [[one] for one in chosen]
    if not options.table:
        groups = [
            group
            for job in range(options.jobs)
            if (group := chosen[job :: options.jobs])
        ]
    most, fewer = options.max_examples, max(1, options.max_examples // 10)
    # One request after the other, then such as follow from earlier answers.
    plans = [(group, RUNNER, most, "examples,coverage,fuzzing") for group in groups]
    plans += [(group, "nobody", fewer, "fuzzing") for group in groups]
    if not options.operations:
        plans.append((chosen, RUNNER, most, "stateful"))
    total, right = 0, True
    with ThreadPoolExecutor(options.jobs) as pool:
        for plan, (cases, fine) in zip(
            plans, pool.map(lambda plan: runs.run(*plan), plans), strict=True
        ):
            total, right = total + cases, right and fine
            if options.table:
                group, who, _, phases = plan
                name = group[0] if len(group) == 1 else "all"
                told = f"{cases:>8,}" if fine else "  FAILED"
                print(f"{told}  {name} as {who} ({phases})", flush=True)
    print(f"{total:,} cases: {'every answer was right' if right else 'FAILED'}")
    return right


def _bad(line: str) -> bool:
    """Say whether a log line tells that something failed inside."""
    return '"level": "error"' in line or "Traceback" in line


if __name__ == "__main__":
    sys.exit(main())
