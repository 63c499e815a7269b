"""Stopping a bad version while several gateways serve it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.fakes.model_files import tflite
from tests.test_integration.gateways import RunningGateway, Site
from tests.test_integration.test_several_gateways import (
    NEVER_S,
    authorised,
    on_postgresql,
    publish,
    wait_until,
)

pytestmark = pytest.mark.integration

BAD = tflite(2, 3 << 20)


@contextmanager
def serving_bad(
    tmp_path: Path,
) -> Iterator[tuple[list[RunningGateway], Site, str, str]]:
    """Yield two gateways that keep what they answer, a token, and the bad CID."""
    with on_postgresql(tmp_path, 2, METADATA_TTL_S=NEVER_S) as (gateways, site, token):
        assert publish(gateways[0], token, tflite(1)).status_code == 201
        cid = publish(gateways[0], token, BAD).json()["cid"]
        for gateway in gateways:
            for path in paths(cid):
                assert ask(gateway, token, path) == (200, "")
        yield gateways, site, token, cid


def paths(cid: str) -> tuple[str, ...]:
    return ("versions/2/download", f"../cid/{cid}/download", f"../cid/{cid}/dag")


def ask(gateway: RunningGateway, token: str, path: str) -> tuple[int, str]:
    """Return the status, and the code of the problem if there is one."""
    url = httpx.URL(f"{gateway.url}/models/m/").join(path)
    answer = httpx.get(url, headers=authorised(token))
    return answer.status_code, answer.json()["code"] if answer.is_error else ""


def latest(gateway: RunningGateway, token: str) -> int:
    answer = httpx.get(f"{gateway.url}/models/m", headers=authorised(token))
    number: int = answer.json()["version"]
    return number


def test_all_gateways_stop_serving_what_one_blocks(tmp_path: Path) -> None:
    with serving_bad(tmp_path) as (gateways, site, token, cid):
        here, there = gateways
        url = f"{here.url}/models/m/versions/2/withdrawal"
        body = {"state": "blocked", "reason": "It sees ghosts."}
        answer = httpx.put(url, headers=authorised(token), json=body)
        assert answer.status_code == 200
        refused = (403, "version_blocked")
        assert latest(here, token) == 1
        assert [ask(here, token, path) for path in paths(cid)] == [refused] * 3
        wait_until(lambda: latest(there, token) == 1, "it is told of the block")
        assert [ask(there, token, path) for path in paths(cid)] == [refused] * 3
        # And by a command, beside them.
        site.run("admin", "unblock", "models/m", "2")
        for gateway in gateways:
            wait_until(
                lambda gateway=gateway: latest(gateway, token) == 2,  # type: ignore[misc]  # bound
                "it is told that it may be used",
            )
            assert [ask(gateway, token, path) for path in paths(cid)] == [(200, "")] * 3


def test_nothing_is_served_of_what_is_purged_beside_them(tmp_path: Path) -> None:
    with serving_bad(tmp_path) as (gateways, site, token, cid):
        done = site.run(
            "admin", "purge", "models/m", "2", "--reason", "A court.", "--yes", "--json"
        )
        assert json.loads(done.stdout)["versions"][0]["cid"] == cid
        for gateway in gateways:
            wait_until(
                lambda gateway=gateway: latest(gateway, token) == 1,  # type: ignore[misc]  # bound
                "it is told of the purge",
            )
            gone = (410, "version_purged")
            assert [ask(gateway, token, path) for path in paths(cid)] == [gone] * 3
        assert site.keys() == {
            "models/m/v1.tflite",
            "models/m/v1.record.json",
            "models/m/v2.record.json",
            "models/m/v2.withdrawal-1.json",
        }
        assert publish(gateways[1], token, BAD).status_code == 410
        assert publish(gateways[1], token, tflite(3)).json()["version"] == 3
