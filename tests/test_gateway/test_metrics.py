from __future__ import annotations

import asyncio
import io
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from tests.fakes.model_files import tflite
from tests.fakes.scripted_store import ScriptedStore
from tests.test_gateway.running import (
    MIB,
    OpenGateway,
    Running,
    add_user,
    flip_bit,
    problem,
)
from vision_o3 import __version__
from vision_o3.content.dag import cid_of_stream
from vision_o3.db.engine import Database
from vision_o3.errors import (
    AlreadyExistsError,
    DatabaseUnavailableError,
    ObjectNotFoundError,
    TransientStorageError,
)
from vision_o3.gateway.measured_store import MeasuredStore, measured
from vision_o3.gateway.metrics import REFUSALS, Metrics
from vision_o3.registry.maintenance import Swept
from vision_o3.registry.watching import Event, Step
from vision_o3.storage.base import KeepsHistory
from vision_o3.storage.memory import MemoryStore

SCRAPER = "canary-of-the-scraper's-token"
Numbers = dict[str, float]


def numbers_in(text: str) -> Numbers:
    """Return each sample by its name and labels, as they are written."""
    return {
        sample.name
        + "".join(
            f" {name}={value}" for name, value in sorted(sample.labels.items())
        ): (sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(running: Running) -> Numbers:
    answer = running.get("/metrics")
    assert answer.status_code == 200
    return numbers_in(answer.text)


def told(metrics: Metrics) -> Numbers:
    return numbers_in(metrics.text().decode())


def test_requests_are_counted_by_route_method_and_status(running: Running) -> None:
    running.publish(tflite())
    running.get("/models/m")
    running.get("/models/m")
    running.get("/models/other")
    running.get("/nowhere/at/all")
    found = scrape(running)
    name = "vision_o3_requests_total"
    assert found[f"{name} method=POST route=/models status=201"] == 1
    assert found[f"{name} method=GET route=/models/{{name}} status=200"] == 2
    assert found[f"{name} method=GET route=/models/{{name}} status=404"] == 1
    assert found[f"{name} method=GET route=other status=404"] == 1
    assert found["vision_o3_request_seconds_count route=/models/{name}"] == 3
    assert found["vision_o3_received_bytes_total route=/models"] > len(tflite())
    assert found["vision_o3_sent_bytes_total route=/models/{name}"] > 100
    assert found["vision_o3_problems_total code=not_found"] == 2
    assert found["vision_o3_requests_in_work"] == 1  # the scrape itself
    assert found[f"vision_o3_workers version={__version__}"] == 1


def test_publishing_is_counted_and_timed_step_by_step(running: Running) -> None:
    content = tflite()
    running.publish(content)
    running.publish(content)
    running.publish(b"no model")
    running.publish(b"no dataset", "d.zip", "datasets", name="d")
    found = scrape(running)
    publishes = "vision_o3_publishes_total"
    assert found[f"{publishes} collection=models outcome=created"] == 1
    assert found[f"{publishes} collection=models outcome=unchanged"] == 1
    assert found[f"{publishes} collection=models outcome=format_mismatch"] == 1
    assert found[f"{publishes} collection=datasets outcome=format_mismatch"] == 1
    steps = "vision_o3_publishing_steps_total"
    assert found[f"{steps} outcome=ok step=inspect"] == 2
    assert found[f"{steps} outcome=format_mismatch step=inspect"] == 2
    assert found[f"{steps} outcome=ok step=claim"] == 2
    for step in ("store", "publish"):
        assert found[f"{steps} outcome=ok step={step}"] == 1
    assert found["vision_o3_publishing_step_seconds_count step=receive"] == 4
    assert found["vision_o3_leases_begun_total"] == 1
    assert found["vision_o3_leases_held"] == 0


def test_uploads_in_parts_are_counted_by_what_becomes_of_them(
    running: Running,
) -> None:
    content = tflite() + bytes(2 * MIB)
    dag = cid_of_stream(io.BytesIO(content))
    for _ in range(2):
        running.request("PUT", f"/uploads/{dag.root}", content=dag.sidecar())
    running.request("DELETE", f"/uploads/{dag.root}")
    running.request("DELETE", f"/uploads/{dag.root}")
    found = scrape(running)
    uploads = "vision_o3_partial_uploads_total outcome="
    counts = {name: count for name, count in found.items() if uploads in name}
    assert counts == {
        f"{uploads}begun": 1,
        f"{uploads}resumed": 1,
        f"{uploads}forgotten": 1,
    }


def test_sign_ins_are_counted_by_outcome(open_gateway: OpenGateway) -> None:
    with open_gateway(max_failed_sign_ins=2) as running:
        secret = add_user(running.gateway, "bea", ["model:read"])
        form = {"grant_type": "password", "username": "bea", "password": secret}
        wrong = {**form, "password": "wrong"}
        running.request("POST", "/auth/token", token=None, data=form)
        for _ in range(3):
            running.request("POST", "/auth/token", token=None, data=wrong)
        running.request("POST", "/auth/token", token=None, data={"grant_type": "x"})
        found = scrape(running)
    assert found["vision_o3_sign_ins_total outcome=ok"] == 1
    assert found["vision_o3_sign_ins_total outcome=failed"] == 2
    assert found["vision_o3_sign_ins_total outcome=slowed"] == 1
    assert found["vision_o3_sign_ins_total outcome=invalid_input"] == 1


def test_refused_tokens_are_counted_by_reason(open_gateway: OpenGateway) -> None:
    with open_gateway() as running:
        running.get("/models", token=None)
        running.get("/models", token="garbage")
        running.get("/models", token="garbage")
        found = scrape(running)
    reasons = "vision_o3_tokens_refused_total reason="
    assert found[f"{reasons}missing"] == 1
    assert found[f"{reasons}invalid"] == 2
    assert {f"{reasons}{reason}" for reason in REFUSALS} <= set(found)


def test_store_is_counted_by_operation_and_outcome() -> None:
    metrics = Metrics()
    store = MeasuredStore(ScriptedStore("OOTC", MemoryStore()), metrics)
    store.put("a", b"x" * 10)
    with pytest.raises(AlreadyExistsError):
        store.put("a", b"x" * 10)
    with pytest.raises(TransientStorageError):
        store.get("a", max_size=10)
    assert len(store.get("a", max_size=10)) == 10
    assert [found.key for found in store.list()] == ["a"]
    found = told(metrics)
    operations = "vision_o3_store_operations_total operation="
    assert found[f"{operations}put outcome=ok"] == 1
    assert found[f"{operations}put outcome=already_exists"] == 1
    assert found[f"{operations}get outcome=storage_unavailable"] == 1
    assert found[f"{operations}get outcome=ok"] == 1
    assert found[f"{operations}list outcome=ok"] == 1
    assert found["vision_o3_store_operation_seconds_count operation=get"] == 2
    assert found["vision_o3_store_written_bytes_total"] == 10
    assert found["vision_o3_store_read_bytes_total"] == 10


class History(MemoryStore):
    """Keeps history, and is rid of it."""

    def erase_history(self, prefix: str) -> int:
        return len(prefix)


def test_what_a_store_can_do_beside_is_kept() -> None:
    metrics = Metrics()
    assert not isinstance(measured(MemoryStore(), metrics), KeepsHistory)
    store = measured(History(), metrics)
    assert isinstance(store, KeepsHistory)
    assert store.erase_history("abc") == 3
    name = "vision_o3_store_operations_total operation=erase_history outcome=ok"
    assert told(metrics)[name] == 1


def read_all(store: MeasuredStore, key: str, size: int, most: int | None = None) -> int:
    """Read a stream, or leave it early; return the bytes that came."""

    async def read() -> int:
        seen = 0
        stream = store.stream(key, 0, size)
        async for piece in stream:
            seen += len(piece)
            if most is not None and seen >= most:
                break
        await stream.aclose()
        return seen

    return asyncio.run(read())


def test_stream_is_one_operation_however_it_ends() -> None:
    metrics, inner = Metrics(), MemoryStore()
    store = MeasuredStore(inner, metrics)
    store.put("a", b"x" * 1000)
    assert read_all(store, "a", 1000) == 1000
    read_all(store, "a", 1000, most=1)
    with pytest.raises(ObjectNotFoundError):
        read_all(store, "absent", 1)
    found = told(metrics)
    operations = "vision_o3_store_operations_total operation=stream outcome="
    assert found[f"{operations}ok"] == 2
    assert found[f"{operations}object_not_found"] == 1
    assert found["vision_o3_store_read_bytes_total"] == 2000


def test_hot_cache_tells_hits_from_misses(
    open_gateway: OpenGateway, tmp_path: Path
) -> None:
    with open_gateway(MemoryStore(), cache_dir=tmp_path / "cache") as running:
        running.publish(tflite())
        for _ in range(3):
            assert running.get("/models/m/download").status_code == 200
        found = scrape(running)
    blocks = "vision_o3_hot_cache_blocks_total outcome="
    assert found[f"{blocks}miss"] == 1
    assert found[f"{blocks}hit"] == 2
    assert found["vision_o3_hot_cache_written_bytes_total"] == len(tflite())
    assert found["vision_o3_hot_cache_evicted_bytes_total"] == 0


def test_versions_looked_up_are_told_by_who_answered(running: Running) -> None:
    running.publish(tflite())
    for _ in range(3):
        running.get("/models/m")
    found = scrape(running)
    lookups = "vision_o3_metadata_lookups_total answered_by="
    assert found[f"{lookups}database"] >= 1
    assert found[f"{lookups}database"] + found[f"{lookups}memory"] >= 3


def test_wrong_bytes_of_the_store_are_counted(running: Running) -> None:
    running.publish(tflite())
    flip_bit(running.object("models/m/v1.tflite"), 10)
    assert problem(running.get("/models/m/download")) == (502, "digest_mismatch")
    found = told(running.gateway.metrics)
    assert found["vision_o3_store_wrong_reads_total"] >= 1
    assert found["vision_o3_store_wrong_objects_total"] == 1


def test_failures_of_the_database_are_counted(tmp_path: Path) -> None:
    metrics = Metrics()
    url = f"sqlite:///{tmp_path}"  # a directory
    database = Database(url, on_failure=metrics.database_failed)
    for transaction in (database.read, database.write):
        with pytest.raises(DatabaseUnavailableError), transaction() as session:
            session.execute(text("SELECT 1"))
    database.close()
    assert told(metrics)["vision_o3_database_errors_total"] == 2


def test_sweeps_are_counted_with_what_they_removed() -> None:
    metrics = Metrics()
    metrics.swept(Swept(claims=2, spool_files=3, partial_uploads=4))
    metrics.swept(Swept(failures=1))
    metrics.swept(None)
    found = told(metrics)
    assert found["vision_o3_swept_total kind=claims"] == 2
    assert found["vision_o3_swept_total kind=spool_files"] == 3
    assert found["vision_o3_swept_total kind=partial_uploads"] == 4
    for outcome in ("ok", "failed", "failed_in_part"):
        assert found[f"vision_o3_sweeps_total outcome={outcome}"] == 1


def test_everything_that_the_registry_tells_is_counted() -> None:
    metrics = Metrics()
    before = told(metrics)
    for event in Event:
        metrics.tell(event, 3)
    after = told(metrics)
    risen = {name for name, value in after.items() if value == before.get(name, 0) + 3}
    assert len(risen) == len(Event) - 1  # an end of a lease takes back its begin
    for step in Step:
        with metrics.step(step):
            pass
        with pytest.raises(TransientStorageError), metrics.step(step):
            raise TransientStorageError("no")
        with pytest.raises(KeyError), metrics.step(step):
            raise KeyError
    found = told(metrics)
    for step in Step:
        assert found[f"vision_o3_publishing_step_seconds_count step={step}"] == 3
        for outcome in ("ok", "storage_unavailable", "internal"):
            name = f"vision_o3_publishing_steps_total outcome={outcome} step={step}"
            assert found[name] == 1


def test_labels_are_never_what_a_caller_has_chosen(running: Running) -> None:
    word = "canary-word"
    running.request("CANARY", f"/models/{word}")
    running.get(f"/{word}/{word}?{word}={word}", headers={word: word})
    running.publish(b"x", f"{word}.onnx", name=word)
    running.request("POST", "/auth/token", token=None, data={"grant_type": word})
    running.get("/models", token=word)
    running.request(word.upper(), f"/{word}")
    text = running.get("/metrics").text
    assert "canary" not in text.lower()
    assert 'method="other"' in text


def test_label_values_are_bounded(running: Running) -> None:
    before = len(running.get("/metrics").text)
    for number in range(20):
        running.request(f"M{number}", f"/p{number}")
        running.get(f"/models/m{number}")
    grown = len(running.get("/metrics").text) - before
    running.gateway.metrics.text()
    for number in range(20, 40):
        running.request(f"M{number}", f"/p{number}")
        running.get(f"/models/m{number}")
    assert len(running.get("/metrics").text) - before < 2 * grown


def test_metrics_token_opens_metrics_and_nothing_else(
    open_gateway: OpenGateway,
) -> None:
    with open_gateway(metrics_token=SCRAPER) as running:
        answer = running.get("/metrics", token=SCRAPER)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert SCRAPER not in answer.text
        assert running.get("/models", token=SCRAPER).status_code == 401
        assert running.get("/metrics", token=SCRAPER[:-1]).status_code == 401
        assert running.get("/metrics", token=None).status_code == 401
        assert running.get("/metrics", token=running.token("admin")).status_code == 200
        reader = running.token("model:read")
        assert problem(running.get("/metrics", token=reader)) == (
            403,
            "permission_denied",
        )


@pytest.mark.parametrize("sent", ["Bearer", "Bearer ", "Bearer None", "Bearer x"])
def test_without_a_metrics_token_none_opens(running: Running, sent: str) -> None:
    answer = running.get("/metrics", token=None, headers={"Authorization": sent})
    assert answer.status_code == 401


def test_every_metric_has_its_row_in_the_documents() -> None:
    document = Path(__file__).parents[2] / "docs" / "operations.md"
    section = document.read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    kinds = {"counter": "_total"}
    found = {
        family.name.removeprefix("vision_o3_") + kinds.get(family.type, "")
        for family in text_string_to_metric_families(Metrics().text().decode())
        if family.name.startswith("vision_o3_")
    }
    assert named == found


def test_process_is_told_of(running: Running) -> None:
    found = scrape(running)
    [memory] = [
        value
        for name, value in found.items()
        if name.startswith("process_resident_memory_bytes pid=")
    ]
    assert memory > 1 << 20
