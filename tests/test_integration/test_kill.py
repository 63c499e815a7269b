"""`kill -9` of the gateway at random moments of uploads, then a restart.

Five kills in the suite; VISION_O3_TEST_KILLS=50 for the full run.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.model_files import tflite
from tests.test_integration.gateways import (
    RunningGateway,
    Site,
    get_json,
    get_token,
    start,
)
from vision_o3.content.dag import cid_of_bytes

pytestmark = pytest.mark.integration

KILLS = int(os.environ.get("VISION_O3_TEST_KILLS", "5"))
SIZE = 24 << 20
BOUNDARY = "vision-o3-test"


def upload(
    gateway: RunningGateway, token: str, content: bytes, answers: list[dict[str, Any]]
) -> None:
    """Send a form in pieces; note the answer if there is one."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="name"\r\n\r\nm\r\n'
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; '
        'filename="m.tflite"\r\n\r\n'
    ).encode()
    body = head + content + f"\r\n--{BOUNDARY}--\r\n".encode()
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    with suppress(OSError, http.client.HTTPException, ValueError):
        connection.putrequest("POST", "/models")
        connection.putheader("Authorization", f"Bearer {token}")
        connection.putheader("Content-Length", str(len(body)))
        connection.putheader(
            "Content-Type", f"multipart/form-data; boundary={BOUNDARY}"
        )
        connection.endheaders()
        for at in range(0, len(body), 1 << 20):
            connection.send(body[at : at + (1 << 20)])
        answer = connection.getresponse()
        document = json.load(answer)
        if answer.status == 201:
            answers.append(document)
    connection.close()


def test_kill_at_any_moment_of_an_upload(tmp_path: Path) -> None:
    chance = random.Random(20261124)
    site = Site(
        tmp_path,
        f"sqlite:///{tmp_path}/registry.db",
        {"VISION_O3_LEASE_S": "1", "VISION_O3_SWEEP_INTERVAL_S": "0.2"},
    )
    gateway = start(site)
    try:
        credentials = site.add_user("ann", "model:read", "model:write")
        token = get_token(gateway.url, credentials)
        answered: list[dict[str, Any]] = []
        # How long an undisturbed upload takes, so that kills spread over all of it.
        started = time.perf_counter()
        upload(gateway, token, tflite(0, SIZE), answered)
        typical_s = time.perf_counter() - started
        assert len(answered) == 1

        for seed in range(1, KILLS + 1):
            content = tflite(seed, SIZE)
            before = len(answered)
            sender = threading.Thread(
                target=upload, args=(gateway, token, content, answered)
            )
            sender.start()
            time.sleep(chance.uniform(0, 1.3 * typical_s))
            gateway.kill()
            sender.join()
            gateway = start(site)
            check_what_is_visible(gateway, token, answered)
            # The line goes on, with the next number.
            upload(gateway, token, tflite(1000 + seed, SIZE), answered)
            assert len(answered) > before, gateway.log.read_text()[-2000:]
        check_after_sweep(site, gateway, token, answered)
    finally:
        gateway.kill()


def check_what_is_visible(
    gateway: RunningGateway, token: str, answered: list[dict[str, Any]]
) -> None:
    """Nothing answered is missing, no number is skipped, all bytes are there."""
    visible = get_json(f"{gateway.url}/models/m/versions?page_size=200", token)
    versions = {item["version"]: item for item in visible["items"]}
    assert sorted(versions) == list(range(1, len(versions) + 1))
    for document in answered:
        assert versions[document["version"]]["cid"] == document["cid"]
    newest = max(versions)
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    connection.request(
        "GET",
        f"/models/m/versions/{newest}/download",
        headers={"Authorization": f"Bearer {token}"},
    )
    content = connection.getresponse().read()
    connection.close()
    assert str(cid_of_bytes(content)) == versions[newest]["cid"]


def check_after_sweep(
    site: Site,
    gateway: RunningGateway,
    token: str,
    answered: list[dict[str, Any]],
) -> None:
    """No object is left that nothing names, no upload in the spool."""
    visible = get_json(f"{gateway.url}/models/m/versions?page_size=200", token)
    expected = {
        f"models/m/v{number}.{kind}"
        for number in range(1, visible["total"] + 1)
        for kind in ("tflite", "dag.car", "record.json")
    }
    spooled: list[Path] = []
    for _ in range(200):
        left = site.keys() - expected
        spooled = [p for p in site.home.rglob("*.upload") if p.is_file()]
        if not left and not spooled:
            break
        time.sleep(0.1)
    assert site.keys() == expected
    assert not spooled
    assert visible["total"] >= len(answered)
