from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from structlog.testing import capture_logs

from tests.canaries import CANARIES
from tests.fakes.model_files import tflite
from tests.fakes.otlp import collector
from tests.fakes.scripted_store import ScriptedStore
from tests.test_gateway.running import OpenGateway, Running
from vision_o3.errors import ConfigurationError, TransientStorageError
from vision_o3.gateway.measured_store import MeasuredStore
from vision_o3.gateway.metrics import Metrics
from vision_o3.gateway.tracing import Fact, open_tracing
from vision_o3.storage.memory import MemoryStore

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
ALLOWED = {str(fact) for fact in Fact}


class Spans:
    """What was traced, by name."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = open_tracing(self.exporter)

    def all(self) -> list[ReadableSpan]:
        self.tracing._provider.force_flush()
        spans = list(self.exporter.get_finished_spans())
        for span in spans:
            CANARIES.see(f"the span {span.name}", span.to_json())
        return spans

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        [span] = self.named(name)
        return span


@pytest.fixture
def spans() -> Iterator[Spans]:
    spans = Spans()
    yield spans
    spans.tracing.close()


@pytest.fixture
def traced(open_gateway: OpenGateway, spans: Spans) -> Iterator[Running]:
    with open_gateway(spans=spans.tracing) as running:
        yield running


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    span_id: int = span.context.span_id
    return span_id


def facts_of(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def test_request_is_a_span_that_names_the_route_and_what_came_of_it(
    traced: Running, spans: Spans
) -> None:
    traced.publish(tflite())
    answer = traced.get("/models/m/download?secret=canary")
    span = spans.one("GET /models/{name}/download")
    assert span.kind is SpanKind.SERVER
    facts = facts_of(span)
    assert facts == {
        Fact.METHOD: "GET",
        Fact.ROUTE: "/models/{name}/download",
        Fact.STATUS: 200,
        Fact.RECEIVED: 0,
        Fact.SENT: len(tflite()),
        Fact.CID: answer.headers["x-vision-o3-cid"],
        Fact.REQUEST_ID: answer.headers["x-request-id"],
    }
    assert span.status.status_code is StatusCode.UNSET


def test_publishing_is_traced_step_by_step_below_its_request(
    traced: Running, spans: Spans
) -> None:
    cid = traced.publish(tflite()).json()["cid"]
    request = spans.one("POST /models")
    for step in ("receive", "inspect", "claim", "store", "publish"):
        span = spans.one(f"publish.{step}")
        assert parent_of(span) == id_of(request)
        if step != "receive":
            assert facts_of(span) == {Fact.CID: cid, Fact.SIZE: len(tflite())}
    puts = spans.named("store.put_file") + spans.named("store.put")
    assert puts
    store = id_of(spans.one("publish.store"))
    assert {parent_of(span) for span in puts} == {store}


def test_trace_of_a_caller_is_gone_on_with(traced: Running, spans: Spans) -> None:
    headers = {
        "traceparent": f"00-{TRACE}-{PARENT}-01",
        "tracestate": "canary=of-the-caller",
    }
    traced.get("/health", token=None, headers=headers)
    span = spans.one("GET /health")
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert parent_of(span) == int(PARENT, 16)
    assert not span.context.trace_state


@pytest.mark.parametrize(
    "header",
    [
        "",
        "canary",
        f"00-{TRACE}-{PARENT}",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE.upper()}-{PARENT}-01",
    ],
)
def test_what_is_no_trace_begins_a_new_one(
    traced: Running, spans: Spans, header: str
) -> None:
    traced.get("/health", token=None, headers={"traceparent": header})
    span = spans.one("GET /health")
    assert span.parent is None
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" != TRACE


def test_caller_that_does_not_sample_is_not_traced(
    traced: Running, spans: Spans
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert traced.get("/health", token=None, headers=headers).status_code == 200
    assert not spans.named("GET /health")


def test_log_lines_name_the_trace(traced: Running) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        traced.request("POST", "/models", headers=headers)
    assert [line["event"] for line in lines] == ["request.answered"]
    assert {line["trace_id"] for line in lines} == {TRACE}


def test_failure_is_an_error_and_a_mistake_of_the_caller_is_none(
    open_gateway: OpenGateway, spans: Spans
) -> None:
    store = ScriptedStore("", MemoryStore())
    with open_gateway(store, spans=spans.tracing) as running:
        running.get("/models/absent")
        running.publish(tflite())
        store._script = iter("T" * 9)
        running.get("/models/m/download")
    mistake = spans.one("GET /models/{name}")
    assert mistake.status.status_code is StatusCode.UNSET
    assert facts_of(mistake)[Fact.CODE] == "not_found"
    failure = spans.one("GET /models/{name}/download")
    assert failure.status.status_code is StatusCode.ERROR
    assert facts_of(failure)[Fact.CODE] == "storage_unavailable"


def test_operation_of_the_store_is_a_span_with_its_outcome(spans: Spans) -> None:
    store = MeasuredStore(
        ScriptedStore("OT", MemoryStore()), Metrics(), tracing=spans.tracing
    )
    store.put("key-canary", b"x" * 10)
    with pytest.raises(TransientStorageError):
        store.get("key-canary", max_size=10)
    assert facts_of(spans.one("store.put")) == {Fact.SIZE: 10}
    failed = spans.one("store.get")
    assert facts_of(failed) == {Fact.CODE: "storage_unavailable"}
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description is None


def test_spans_say_nothing_that_is_not_named_and_nothing_of_a_caller(
    traced: Running, spans: Spans
) -> None:
    word = "canary"
    traced.publish(tflite(), f"{word}.tflite", name=word, description=word)
    traced.publish(word.encode(), f"{word}.onnx", name=word)
    traced.request(word.upper(), f"/{word}?{word}={word}", headers={word: word})
    traced.get(f"/models/{word}/download", headers={"Range": f"{word}=1"})
    traced.get("/models", token=word)
    traced.request("POST", "/auth/token", token=None, data={"password": word})
    found = spans.all()
    assert len(found) > 15
    for span in found:
        assert set(facts_of(span)) <= ALLOWED
        assert word not in span.to_json().lower()
        assert not span.events
        assert not span.links


def test_fact_without_a_name_cannot_be_said(spans: Spans) -> None:
    span = spans.tracing.begin("x")
    with pytest.raises(KeyError):
        span.note(url="http://canary")
    span.end()


def test_spans_are_sent_by_otlp_and_the_last_ones_when_the_gateway_ends(
    open_gateway: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector() as (url, received):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
        with open_gateway(tracing=True) as running:
            running.publish(tflite())
        spans = [
            span
            for request in received
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        resource = received[0].resource_spans[0].resource
    assert {"POST /models", "publish.store", "store.put"} <= {
        span.name for span in spans
    }
    attributes = {each.key: each.value.string_value for each in resource.attributes}
    assert attributes["service.name"] == "vision-o3"


def test_service_has_the_name_that_opentelemetrys_variables_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "registry-7")
    spans = Spans()
    spans.tracing.begin("x").end()
    [span] = spans.all()
    assert span.resource.attributes["service.name"] == "registry-7"
    spans.tracing.close()


def test_wrong_variable_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    with pytest.raises(ConfigurationError, match="OTEL_"):
        open_tracing()


WITHOUT = """
import sys
sys.modules["opentelemetry.sdk.trace"] = None
from vision_o3.errors import ConfigurationError
from vision_o3.gateway.tracing import open_tracing
try:
    open_tracing()
except ConfigurationError as error:
    print(error.message)
"""
FRAMEWORK = """
import asyncio
import httpx
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from vision_o3.gateway.main import create_app
from vision_o3.settings import Settings

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

async def ask():
    app = create_app(Settings(jwt_secret="x" * 40))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://g") as client:
        answer = await client.get("/health?q=canary")
        return answer.status_code

print(asyncio.run(ask()), [span.name for span in exporter.get_finished_spans()])
"""
OFF = """
import sys
SLOW = "opentelemetry.sdk", "opentelemetry.exporter", "requests"
import vision_o3.gateway.main
import vision_o3.gateway.commands
print([name for name in sys.modules if name.startswith(SLOW)])
"""


def run(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout


def test_without_the_extra_it_says_what_to_install() -> None:
    said = run(WITHOUT)
    assert "VISION_O3_TRACING" in said
    assert "pip install 'vision-o3[gateway,tracing]'" in said


def test_framework_traces_nothing_of_its_own() -> None:
    assert run(FRAMEWORK).splitlines()[-1] == "200 []"


def test_what_is_off_is_not_loaded() -> None:
    assert run(OFF).strip() == "[]"
