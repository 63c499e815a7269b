"""Several gateways, or several workers of one, as one registry."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import psycopg
import pytest

from tests.fakes.model_files import tflite
from tests.test_integration.gateways import (
    RunningGateway,
    Site,
    get_token,
    postgres_database,
    running,
    start,
)
from vision_o3.content.dag import cid_of_bytes
from vision_o3.db.changes import APPLICATION_NAME, CHANNEL

pytestmark = pytest.mark.integration

NEVER_S = "3600"
"""A time-to-live that no test outlives: gateways look again only when told."""
BOUNDARY = "vision-o3-test"
PATIENCE_S = 60
SIZE = 24 << 20
"""Of an artifact that no buffers on the way can hold."""


@contextmanager
def on_postgresql(
    home: Path, count: int, **settings: str
) -> Iterator[tuple[list[RunningGateway], Site, str]]:
    """Yield gateways on a database of their own, their site, and a token."""
    with postgres_database() as url:
        site = Site(home, url, {f"VISION_O3_{k}": v for k, v in settings.items()})
        with running(site, count) as gateways:
            credentials = site.add_user("ann", "model:read", "model:write")
            yield gateways, site, get_token(gateways[0].url, credentials)


def publish(
    gateway: RunningGateway, token: str, content: bytes, name: str = "m"
) -> httpx.Response:
    return httpx.post(
        f"{gateway.url}/models",
        headers=authorised(token),
        data={"name": name},
        files={"file": ("m.tflite", content)},
        timeout=PATIENCE_S,
    )


def authorised(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def latest(gateway: RunningGateway, token: str, name: str = "m") -> dict[str, Any]:
    answer = httpx.get(f"{gateway.url}/models/{name}", headers=authorised(token))
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)


@dataclass
class Watcher:
    """Asks a gateway for a line's latest again and again, until it is told to stop."""

    gateway: RunningGateway
    token: str
    numbers: list[int] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        with httpx.Client(headers=authorised(self.token)) as client:
            while not self.stop.is_set():
                answer = client.get(f"{self.gateway.url}/models/m").json()
                self.numbers.append(answer["version"])


@contextmanager
def watching(watchers: list[Watcher]) -> Iterator[None]:
    with ThreadPoolExecutor(len(watchers)) as pool:
        done = [pool.submit(watcher.watch) for watcher in watchers]
        try:
            yield
        finally:
            for watcher in watchers:
                watcher.stop.set()
    for each in done:
        each.result()


def test_what_one_publishes_the_other_shows_soon_and_never_goes_back(
    tmp_path: Path,
) -> None:
    with on_postgresql(tmp_path, 2, METADATA_TTL_S=NEVER_S) as (gateways, _, token):
        publish(gateways[0], token, tflite(0))
        watchers = [Watcher(gateway, token) for gateway in gateways * 2]
        with watching(watchers):
            for number in range(2, 32):
                here, there = gateways[number % 2], gateways[1 - number % 2]
                answer = publish(here, token, tflite(number))
                assert (answer.status_code, answer.json()["version"]) == (201, number)
                assert latest(here, token)["version"] == number
                wait_until(
                    lambda there=there, number=number: (  # type: ignore[misc]  # bound
                        latest(there, token)["version"] == number
                    ),
                    f"the other gateway shows version {number}",
                )
        for watcher in watchers:
            assert watcher.numbers == sorted(watcher.numbers)
            assert len(set(watcher.numbers)) > 1


def change_behind_the_back(url: str, description: str) -> None:
    """Change rows as nobody does, and tell nobody."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE model_versions SET description = %s", [description])


def wait_until_kept(gateway: RunningGateway, site: Site, token: str) -> str:
    """Return the description that a gateway answers from memory."""
    for attempt in range(2000):
        kept: str = latest(gateway, token)["description"]
        change_behind_the_back(site.database_url, f"attempt {attempt}")
        if latest(gateway, token)["description"] == kept:
            return kept
        time.sleep(0.01)
    raise AssertionError("The gateway never answers from memory.")


def test_answers_are_kept_in_memory_until_a_change_is_told(tmp_path: Path) -> None:
    with on_postgresql(tmp_path, 1, METADATA_TTL_S=NEVER_S) as (gateways, site, token):
        gateway = gateways[0]
        publish(gateway, token, tflite())
        publish(gateway, token, tflite(), name="another")
        kept = wait_until_kept(gateway, site, token)
        with psycopg.connect(site.database_url, autocommit=True) as connection:
            for line in ("models:another", "datasets:m"):
                connection.execute("SELECT pg_notify(%s, %s)", [CHANNEL, line])
            assert latest(gateway, token)["description"] == kept
            connection.execute("SELECT pg_notify(%s, %s)", [CHANNEL, "models:m"])
        wait_until(
            lambda: latest(gateway, token)["description"] != kept, "it is asked for"
        )


def test_nothing_is_kept_where_the_time_to_live_is_none(tmp_path: Path) -> None:
    with on_postgresql(tmp_path, 1, METADATA_TTL_S="0") as (gateways, site, token):
        publish(gateways[0], token, tflite())
        for attempt in range(5):
            change_behind_the_back(site.database_url, str(attempt))
            assert latest(gateways[0], token)["description"] == str(attempt)


def test_what_users_may_do_changes_at_every_gateway(tmp_path: Path) -> None:
    with on_postgresql(tmp_path, 2) as (gateways, site, token):
        publish(gateways[0], token, tflite())
        for name, words, expected in (
            ("disable", (), 401),
            ("end-tokens", (), 401),
            ("change", ("--scope", "dataset:read"), 403),
        ):
            credentials = site.add_user(f"to-{name}", "model:read")
            headers = {
                "Authorization": f"Bearer {get_token(gateways[0].url, credentials)}"
            }

            def answers(headers: dict[str, str] = headers) -> set[int]:
                return {
                    httpx.get(f"{each.url}/models/m", headers=headers).status_code
                    for each in gateways
                }

            assert answers() == {200}
            site.run("user", name, f"to-{name}", *words)
            wait_until(
                lambda answers=answers, expected=expected: (  # type: ignore[misc]  # bound
                    answers() == {expected}
                ),
                f"nobody is let in after {name}",
            )


def cut_listening_connections(site: Site) -> int:
    with psycopg.connect(site.database_url, autocommit=True) as connection:
        cut = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = %s AND datname = current_database()",
            [APPLICATION_NAME],
        )
        return len(cut.fetchall())


def test_a_gateway_that_was_cut_off_from_changes_recovers(tmp_path: Path) -> None:
    with on_postgresql(tmp_path, 2, METADATA_TTL_S=NEVER_S) as (gateways, site, token):
        here, there = gateways
        number = 1
        publish(here, token, tflite(number))
        for _ in range(4):
            wait_until_kept(there, site, token)
            assert cut_listening_connections(site)
            # Told while nobody may be listening, and again afterwards.
            for _ in range(2):
                number += 1
                assert publish(here, token, tflite(number)).status_code == 201
                wait_until(
                    lambda number=number: (  # type: ignore[misc]  # bound here
                        latest(there, token)["version"] == number
                    ),
                    f"version {number} after a cut",
                )
        wait_until_kept(there, site, token)


def test_a_line_whose_gateway_was_killed_goes_on_at_another(tmp_path: Path) -> None:
    """Killed when everything is stored and nothing is published yet."""
    settings = {"LEASE_S": "1", "METADATA_TTL_S": NEVER_S}
    with on_postgresql(tmp_path, 2, **settings) as (gateways, site, token):
        killed, other = gateways
        with psycopg.connect(site.database_url) as hindrance:
            hindrance.execute("LOCK TABLE audit_events IN EXCLUSIVE MODE")
            lost = threading.Thread(target=publish_in_vain, args=(killed, token))
            lost.start()
            wait_until(lambda: somebody_waits(site), "the upload is to be published")
            killed.kill()
            lost.join()
        assert len(site.keys()) == 2
        answer = publish(other, token, tflite(2))
        assert (answer.status_code, answer.json()["version"]) == (201, 1)
        added = start(site)
        try:
            for gateway in (other, added):
                assert latest(gateway, token)["cid"] == str(cid_of_bytes(tflite(2)))
            assert download(added, token, 1) == tflite(2)
            assert publish(added, token, tflite(3)).json()["version"] == 2
            wait_until(
                lambda: latest(other, token)["version"] == 2, "the new one tells too"
            )
        finally:
            added.process.terminate()
            added.process.wait(timeout=40)
        assert site.keys() == {
            f"models/m/v{number}.{kind}"
            for number in (1, 2)
            for kind in ("tflite", "record.json")
        }


def publish_in_vain(gateway: RunningGateway, token: str) -> None:
    with pytest.raises(httpx.TransportError):
        publish(gateway, token, tflite(1))


def somebody_waits(site: Site) -> bool:
    with psycopg.connect(site.database_url, autocommit=True) as connection:
        found = connection.execute(
            "SELECT 1 FROM pg_locks WHERE NOT granted"
            " AND relation = 'audit_events'::regclass"
        )
        return found.fetchone() is not None


def download(gateway: RunningGateway, token: str, number: int) -> bytes:
    answer = httpx.get(
        f"{gateway.url}/models/m/versions/{number}/download",
        headers=authorised(token),
        timeout=PATIENCE_S,
    )
    assert answer.status_code == 200, answer.text
    return answer.content


# ------------------------------------------------------------- being told to stop


class Exchange:
    """A request that is begun, and finished later."""

    def __init__(self, gateway: RunningGateway, token: str) -> None:
        self._token = token
        self._connection = http.client.HTTPConnection(
            "127.0.0.1", gateway.port, timeout=PATIENCE_S
        )

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def begin(self) -> None:
        raise NotImplementedError


class Upload(Exchange):
    """An upload that is sent in two halves."""

    def __init__(
        self, gateway: RunningGateway, token: str, name: str, content: bytes
    ) -> None:
        super().__init__(gateway, token)
        head = (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="name"\r\n\r\n'
            f"{name}\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; "
            'name="file"; filename="m.tflite"\r\n\r\n'
        ).encode()
        self._body = head + content + f"\r\n--{BOUNDARY}--\r\n".encode()

    def begin(self) -> None:
        self._connection.putrequest("POST", "/models")
        for header, value in {
            **authorised(self._token),
            "Content-Length": str(len(self._body)),
            "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
        }.items():
            self._connection.putheader(header, value)
        self._connection.endheaders()
        self._connection.send(self._body[: len(self._body) // 2])

    def finish(self) -> tuple[int, dict[str, Any]]:
        self._connection.send(self._body[len(self._body) // 2 :])
        with self._connection.getresponse() as answer:
            assert answer.getheader("connection") == "close"
            return answer.status, json.load(answer)


class SlowDownload(Exchange):
    """A download of which little is taken before it is finished."""

    def begin(self) -> None:
        self._connection.request(
            "GET", "/models/m/download", headers=authorised(self._token)
        )
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200
        self._taken = self._answer.read(1000)

    def finish(self) -> bytes:
        with self._answer:
            return self._taken + self._answer.read()


def is_refused(gateway: RunningGateway) -> bool:
    try:
        socket.create_connection(("127.0.0.1", gateway.port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def wait_until_upload_is_spooled(site: Site) -> None:
    wait_until(
        lambda: any(p.stat().st_size for p in site.home.rglob("*.upload")),
        "the upload's first bytes are received",
    )


def test_a_gateway_told_to_stop_finishes_what_it_began(tmp_path: Path) -> None:
    content, coming = tflite(1, SIZE), tflite(2, SIZE)
    with on_postgresql(tmp_path, 2) as (gateways, site, token):
        stopping, other = gateways
        assert publish(stopping, token, content).status_code == 201
        with (
            SlowDownload(stopping, token) as slow,
            Upload(stopping, token, "begun", coming) as upload,
        ):
            wait_until_upload_is_spooled(site)
            idle = http.client.HTTPConnection("127.0.0.1", stopping.port)
            idle.request("GET", "/health")
            idle.getresponse().read()

            stopping.process.send_signal(signal.SIGTERM)
            wait_until(lambda: is_refused(stopping), "new connections are refused")
            # Kept alive, but nobody waits for it.
            assert idle.sock is not None
            assert idle.sock.recv(1) == b""
            idle.close()
            assert stopping.process.poll() is None
            meanwhile = publish(other, token, tflite(3), name="meanwhile")
            assert meanwhile.status_code == 201

            status, document = upload.finish()
            assert (status, document["version"]) == (201, 1)
            assert slow.finish() == content
        assert stopping.process.wait(timeout=PATIENCE_S) == 0
        assert document["cid"] == str(cid_of_bytes(coming))
        assert latest(other, token, "begun")["cid"] == document["cid"]
        assert "Traceback" not in stopping.log.read_text()
        assert not [p for p in site.home.rglob("*.upload") if p.is_file()]


def test_a_transfer_that_never_ends_does_not_keep_a_gateway_from_stopping(
    tmp_path: Path,
) -> None:
    site = Site(
        tmp_path,
        f"sqlite:///{tmp_path}/registry.db",
        {"VISION_O3_SHUTDOWN_TIMEOUT_S": "1"},
    )
    content, coming = tflite(1, SIZE), tflite(2, SIZE)
    with running(site) as (gateway,):
        token = get_token(
            gateway.url, site.add_user("ann", "model:read", "model:write")
        )
        assert publish(gateway, token, content).status_code == 201
        with (
            SlowDownload(gateway, token) as slow,
            Upload(gateway, token, "begun", coming) as upload,
        ):
            wait_until_upload_is_spooled(site)
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.process.wait(timeout=PATIENCE_S) == 0
            for exchange in (slow, upload):
                with pytest.raises((http.client.HTTPException, OSError)):
                    exchange.finish()
    with running(site) as (again,):
        assert download(again, token, 1) == content
        begun = httpx.get(f"{again.url}/models/begun", headers=authorised(token))
        assert begun.status_code == 404
        assert not [p for p in site.home.rglob("*.upload") if p.is_file()]


# ------------------------------------------------------- several workers, SQLite


def test_workers_on_sqlite_are_one_registry(tmp_path: Path) -> None:
    site = Site(
        tmp_path,
        f"sqlite:///{tmp_path}/registry.db",
        {"VISION_O3_WORKERS": "2", "VISION_O3_METADATA_TTL_S": NEVER_S},
    )
    with running(site) as (gateway,):
        wait_until(lambda: said(gateway, "startup complete") == 2, "both workers serve")
        token = get_token(
            gateway.url, site.add_user("ann", "model:read", "model:write")
        )
        assert publish(gateway, token, tflite(0, 2 << 20)).status_code == 201

        def publish_and_look(seed: int) -> dict[str, Any]:
            content = tflite(seed, 2 << 20)
            answer = publish(gateway, token, content)
            assert answer.status_code == 201, answer.text
            document: dict[str, Any] = answer.json()
            # Each request may be answered by either worker.
            for _ in range(3):
                assert latest(gateway, token)["version"] >= document["version"]
                assert download(gateway, token, document["version"]) == content
            return document

        watchers = [Watcher(gateway, token) for _ in range(2)]
        with watching(watchers), ThreadPoolExecutor(4) as pool:
            documents = list(pool.map(publish_and_look, range(1, 17)))
        assert sorted(d["version"] for d in documents) == list(range(2, 18))
        for watcher in watchers:
            assert watcher.numbers == sorted(watcher.numbers)
        assert len(site.keys()) == 3 * 17

        with Upload(gateway, token, "begun", tflite(99, SIZE)) as upload:
            wait_until_upload_is_spooled(site)
            gateway.process.send_signal(signal.SIGTERM)
            wait_until(lambda: said(gateway, '"Shutting down"') == 2, "both are told")
            status, document = upload.finish()
        assert (status, document["version"]) == (201, 1)
        assert gateway.process.wait(timeout=PATIENCE_S) == 0
    with running(site) as (again,):
        wait_until(lambda: said(again, "startup complete") == 2, "both workers serve")
        assert latest(again, token, "begun")["cid"] == document["cid"]


def said(gateway: RunningGateway, words: str) -> int:
    """Return how often a gateway's log has the words."""
    return gateway.log.read_text().count(words)
