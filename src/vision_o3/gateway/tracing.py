"""Traces by OpenTelemetry, if ``VISION_O3_TRACING`` is true.

A span for each request, each step of publishing and each operation on the store. Where
they go is said by OpenTelemetry's own variables (``OTEL_EXPORTER_OTLP_ENDPOINT`` and so
on), which its SDK reads. Spans carry nothing but what ``Fact`` names: no URL or header,
no text of a caller. What an error said is not in them either, only its code.

The library is an extra and slow to import: only ``open_tracing`` does.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from vision_o3 import __version__
from vision_o3.errors import ConfigurationError
from vision_o3.gateway.metrics import METHODS, OK, OTHER, code_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

    from vision_o3.gateway.metrics import Answered

SERVICE = "vision-o3"
_SERVER_ERROR = 500
_FLUSH_MS = 5000
"""Milliseconds that what is left may take to be sent when the gateway ends."""
_SAMPLED_FLAG = 1
_TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
"""W3C Trace Context, version 00. Its companion ``tracestate`` is a caller's own text,
and not passed on."""


class Fact(StrEnum):
    """All that a span can say, by OpenTelemetry's names where it has one."""

    METHOD = "http.request.method"
    ROUTE = "http.route"
    STATUS = "http.response.status_code"
    RECEIVED = "http.request.body.size"
    SENT = "http.response.body.size"
    CODE = "error.type"
    REQUEST_ID = "vision_o3.request_id"
    CID = "vision_o3.cid"
    SIZE = "vision_o3.size"


class OpenSpan:
    """A span that has begun."""

    def __init__(self, span: Span) -> None:
        self._span = span

    @property
    def trace_id(self) -> str:
        """The trace that it belongs to, in hexadecimal digits."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def note(self, **facts: str | int | None) -> None:
        """Add facts, by the names of ``Fact`` in lower case; ``None`` is left out."""
        for name, value in facts.items():
            if value is not None:
                self._span.set_attribute(Fact[name.upper()], value)

    def end_request(self, answered: Answered, cid: str | None) -> None:
        """End the span of a request; it gets its name by what it turned out to be."""
        method = answered.method if answered.method in METHODS else OTHER
        if answered.route is not None:
            self._span.update_name(f"{method} {answered.route}")
        self.note(
            method=method,
            route=answered.route,
            status=answered.status or None,
            received=answered.received,
            sent=answered.sent,
            cid=cid,
        )
        failed = answered.status >= _SERVER_ERROR or not answered.complete
        if answered.code is not None and not failed:
            self.note(code=answered.code)  # the caller's mistake, not ours
        self.end(outcome=(answered.code or "broken_off") if failed else OK)

    def end(self, *, outcome: str = OK, **facts: str | int | None) -> None:
        """End it, well or with the code of an error."""
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 - loaded by now

        self.note(**facts)
        if outcome != OK:
            self.note(code=outcome)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class Tracing:
    """Makes spans. Safe in any thread; closed when the gateway ends.

    Args:
        provider: Where spans go; not made the global one, so that nothing else of this
            process writes to it.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(SERVICE, __version__)

    def begin(self, name: str, **facts: str | int | None) -> OpenSpan:
        """Begin a span below the current one; it does not become current itself."""
        span = OpenSpan(
            self._tracer.start_span(
                name, record_exception=False, set_status_on_exception=False
            )
        )
        span.note(**facts)
        return span

    @contextmanager
    def span(self, name: str, **facts: str | int | None) -> Iterator[OpenSpan]:
        """Make what a block does a span, and those begun in it its children."""
        from opentelemetry.trace import use_span  # noqa: PLC0415 - loaded by now

        span = self.begin(name, **facts)
        outcome = OK
        try:
            with use_span(
                span._span,  # noqa: SLF001 - of this module
                end_on_exit=False,
                record_exception=False,
                set_status_on_exception=False,
            ):
                yield span
        except BaseException as error:
            outcome = code_of(error)
            raise
        finally:
            span.end(outcome=outcome)

    @contextmanager
    def request(self, traceparent: bytes | None, request_id: str) -> Iterator[OpenSpan]:
        """Make a request a span: of the caller's trace, if they name one.

        Args:
            traceparent: The header, as it came.
            request_id: The id that answer and log lines carry.
        """
        from opentelemetry import trace  # noqa: PLC0415 - loaded by now

        parent = _parent_of(traceparent)
        span = self._tracer.start_span(
            "request",
            context=trace.set_span_in_context(trace.NonRecordingSpan(parent))
            if parent is not None
            else None,
            kind=trace.SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        )
        opened = OpenSpan(span)
        opened.note(request_id=request_id)
        with trace.use_span(
            span,
            end_on_exit=False,
            record_exception=False,
            set_status_on_exception=False,
        ):
            yield opened

    def close(self) -> None:
        """Send what is left, for some seconds at most. Blocks."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()


def open_tracing(exporter: SpanExporter | None = None) -> Tracing:
    """Return what makes spans and sends them off.

    Args:
        exporter: Where to; default: by OTLP over HTTP, to where the variables say.

    Raises:
        ConfigurationError: The extra ``tracing`` is not installed, or OpenTelemetry's
            variables are not usable.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - an extra
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        resource = Resource.create({"service.version": __version__})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": SERVICE}))
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        processor = BatchSpanProcessor(exporter or OTLPSpanExporter())
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"VISION_O3_TRACING is true, but {error.name} is not installed: "
            "pip install 'vision-o3[gateway,tracing]'.",
        ) from error
    except ValueError as error:  # of some, already when it is imported
        raise ConfigurationError(
            "VISION_O3_TRACING is true, but one of OpenTelemetry's variables (OTEL_…) "
            "has a value that it does not take.",
        ) from error
    provider.add_span_processor(processor)
    return Tracing(provider)


def _parent_of(header: bytes | None) -> Any:  # noqa: ANN401 - the type is not loaded
    """Return the span that a caller names, or ``None``."""
    found = None if header is None else _TRACEPARENT.fullmatch(header.strip())
    if found is None:
        return None
    from opentelemetry.trace import SpanContext, TraceFlags  # noqa: PLC0415

    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    context = SpanContext(
        trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags & _SAMPLED_FLAG)
    )
    return context if context.is_valid else None
