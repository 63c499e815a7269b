"""What an operator sees of real processes: metrics, traces, and an orderly end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.model_files import tflite
from tests.fakes.otlp import collector
from tests.test_integration.gateways import RunningGateway, Site, get_token, running

pytestmark = pytest.mark.integration

SCRAPER = "token-of-the-scraper"
PATIENCE_S = 60


def site_at(home: Path, **settings: str) -> Site:
    extra = {f"VISION_O3_{name}": value for name, value in settings.items()}
    temporary = home / "temporary"
    temporary.mkdir()
    extra |= {"VISION_O3_METRICS_TOKEN": SCRAPER, "TMPDIR": str(temporary)}
    return Site(home, f"sqlite:///{home}/registry.db", extra)


def scrape(gateway: RunningGateway) -> dict[str, dict[tuple[str, ...], float]]:
    """Return each metric's samples, by the values of their labels."""
    answer = httpx.get(
        f"{gateway.url}/metrics", headers={"Authorization": f"Bearer {SCRAPER}"}
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            values = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[values] = sample.value
    return found


def workers_of(gateway: RunningGateway) -> set[int]:
    memory = scrape(gateway)["process_resident_memory_bytes"]
    return {int(pid) for (pid,) in memory}


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with suppress(httpx.TransportError):
            if true():
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def asked(gateway: RunningGateway) -> float:
    requests = scrape(gateway)["vision_o3_requests_total"]
    return requests.get(("GET", "/health", "200"), 0)


def ask(gateway: RunningGateway, times: int) -> None:
    for _ in range(times):  # each on a connection of its own: of either worker
        assert httpx.get(f"{gateway.url}/health").status_code == 200


def test_metrics_of_several_workers_are_one_sum_that_never_falls(
    tmp_path: Path,
) -> None:
    site = site_at(tmp_path, WORKERS="2")
    with running(site) as (gateway,):
        wait_until(lambda: len(workers_of(gateway)) == 2)
        ask(gateway, 40)
        for _ in range(10):  # whichever is scraped says the same
            assert asked(gateway) == 40
        assert sum(scrape(gateway)["vision_o3_workers"].values()) == 2
        [directory] = (tmp_path / "temporary").glob("vision-o3-metrics-*")
        for _ in range(2):
            before = workers_of(gateway)
            killed = min(before)
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda killed=killed: len(workers_of(gateway) - {killed}) == 2)  # type: ignore[misc]  # a lambda's default
            assert asked(gateway) == 40
            assert sum(scrape(gateway)["vision_o3_workers"].values()) == 2
        numbers = {path.stem.rpartition("_")[2] for path in directory.glob("*.db")}
        assert numbers == {str(pid) for pid in workers_of(gateway)} | {"0"}
        ask(gateway, 5)
        assert asked(gateway) == 45
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(timeout=PATIENCE_S) == 0
    assert not list((tmp_path / "temporary").iterdir())
    assert "Traceback" not in gateway.log.read_text()


def test_last_spans_are_sent_when_a_gateway_is_stopped(tmp_path: Path) -> None:
    with collector() as (url, received):
        site = site_at(tmp_path, TRACING="true")
        site.extra["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = url
        site.extra["OTEL_BSP_SCHEDULE_DELAY"] = "3600000"
        with running(site) as (gateway,):
            token = get_token(gateway.url, site.add_user("ann", "model:write"))
            published = httpx.post(
                f"{gateway.url}/models",
                data={"name": "m"},
                files={"file": ("m.tflite", tflite())},
                headers={"Authorization": f"Bearer {token}"},
                timeout=PATIENCE_S,
            )
            assert published.status_code == 201
            assert not received
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.process.wait(timeout=PATIENCE_S) == 0
        names = {
            span.name
            for request in received
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }
    assert {"POST /models", "publish.inspect", "store.put"} <= names


def test_collector_that_is_down_does_not_keep_a_gateway_from_stopping(
    tmp_path: Path,
) -> None:
    site = site_at(tmp_path, TRACING="true")
    site.extra["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = "http://127.0.0.1:9/v1/traces"
    with running(site) as (gateway,):
        ask(gateway, 3)
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(timeout=PATIENCE_S) == 0
