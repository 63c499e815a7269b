"""What the gateway counts and times, as Prometheus reads it.

Labels are templates of routes, known methods, statuses, codes of our errors and words
of our own: never anything that a caller has chosen. What the registry tells comes in by
``tell`` and ``step``: this is its watcher.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.registry import Collector

from vision_o3 import __version__
from vision_o3.errors import VisionO3Error
from vision_o3.registry.watching import Event, Step

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vision_o3.gateway.shared_metrics import SharedMetrics
    from vision_o3.registry.maintenance import Swept

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"
OK = "ok"
REFUSALS = ("missing", "invalid", "expired", "not_yet_valid", "revoked", "disabled")
"""Why a token may be refused."""
_PREFIX = "vision_o3"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_STEP_SECONDS = (0.01, 0.05, 0.25, 1, 5, 30, 120, 600, 3600)
_SIGN_IN = ("POST", "/auth/token")
_PUBLISHING = {("POST", "/models"): "models", ("POST", "/datasets"): "datasets"}
_UPLOADS = {
    ("PUT", "/uploads/{cid}", 201): "begun",
    ("PUT", "/uploads/{cid}", 200): "resumed",
    ("DELETE", "/uploads/{cid}", 204): "forgotten",
}
_SIGN_IN_OUTCOMES = {
    "unauthenticated": "failed",
    "sign_in_slowed": "slowed",
    "rate_limited": "slowed",
}


class Answered(NamedTuple):
    """A request that has ended."""

    route: str | None
    """The template of its path, if it is a page of ours."""
    method: str
    status: int
    """0: nothing was answered."""
    complete: bool
    """Whether all of the answer was sent."""
    received: int
    """Bytes of the request's body."""
    sent: int
    """Bytes of the answer's body."""
    total_s: float
    """Seconds until all was over."""
    head_s: float
    """Seconds until the head of the answer."""
    code: str | None = None
    """Of the problem that was answered."""
    refusal: str | None = None
    """Why its token was refused: one of ``REFUSALS``."""


class _PageCounters(NamedTuple):
    """The counters of a route, method and status: finding them takes longer."""

    requests: Counter
    seconds: Histogram
    received: Counter
    sent: Counter


class Metrics:
    """All numbers of one gateway process. Safe in any thread; one for each app.

    Args:
        shared: What the processes of one gateway share; ``None``: it is the only one.
    """

    def __init__(self, shared: SharedMetrics | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # has no types
        self._shared = shared
        self._registry = CollectorRegistry()
        self._pages: dict[tuple[str, str, int], _PageCounters] = {}
        with shared.joining() if shared is not None else nullcontext():
            self._make()

    def _make(self) -> None:
        count, gauge, timed = self._count, self._gauge, self._timed
        gauge("workers", "Processes of this gateway.", "version").labels(
            __version__
        ).inc()
        # Requests.
        self._requests = count(
            "requests", "Requests that have ended.", "route", "method", "status"
        )
        self._request_seconds = timed(
            "request_seconds",
            "Seconds until the head of the answer.",
            _SECONDS,
            "route",
        )
        self._request_seconds.labels(OTHER)
        self._broken_off = count(
            "requests_broken_off", "Requests without a whole answer.", "route"
        )
        self._received = count(
            "received_bytes", "Bytes of requests' bodies received.", "route"
        )
        self._sent = count("sent_bytes", "Bytes of answers' bodies sent.", "route")
        self.in_work = gauge("requests_in_work", "Requests in work.")
        self._problems = count("problems", "Problems answered.", "code")
        self._sign_ins = count("sign_ins", "Attempts to sign in.", "outcome")
        self._refused = count(
            "tokens_refused", "Requests refused for their token.", "reason"
        )
        for reason in REFUSALS:
            self._refused.labels(reason)
        # Publishing.
        self._publishes = count(
            "publishes", "Files to publish.", "collection", "outcome"
        )
        self._uploads = count("partial_uploads", "Uploads in parts.", "outcome")
        self._steps = count(
            "publishing_steps", "Steps of publishing.", "step", "outcome"
        )
        self._step_seconds = timed(
            "publishing_step_seconds",
            "Seconds that a step of publishing took.",
            _STEP_SECONDS,
            "step",
        )
        for step in Step:
            self._step_seconds.labels(step)
        self._leases = gauge("leases_held", "Leases of claims that are held.")
        # Store and database.
        self._operations = count(
            "store_operations",
            "Operations on the object store.",
            "operation",
            "outcome",
        )
        self._operation_seconds = timed(
            "store_operation_seconds",
            "Seconds that an operation on the object store took; a stream or list, "
            "until it began.",
            _SECONDS,
            "operation",
        )
        self._store_read = count(
            "store_read_bytes", "Bytes read from the object store."
        )
        self._store_written = count(
            "store_written_bytes", "Bytes written to the object store."
        )
        self._database_errors = count(
            "database_errors", "Transactions that the database failed."
        )
        # Maintenance.
        self._sweeps = count("sweeps", "Sweeps.", "outcome")
        self._swept = count("swept", "What sweeps removed.", "kind")
        self._make_events()

    def _make_events(self) -> None:
        count = self._count
        blocks = count("hot_cache_blocks", "Blocks asked of the cache.", "outcome")
        asked = count("metadata_lookups", "Versions looked up.", "answered_by")
        self._events = {
            Event.CACHE_HIT: blocks.labels("hit"),
            Event.CACHE_MISS: blocks.labels("miss"),
            Event.CACHE_PASSED: blocks.labels("passed"),
            Event.CACHE_DAMAGED: count(
                "hot_cache_damaged_blocks", "Blocks of the cache found damaged."
            ),
            Event.CACHE_WRITTEN_BYTES: count(
                "hot_cache_written_bytes", "Bytes written to the cache."
            ),
            Event.CACHE_EVICTED_BYTES: count(
                "hot_cache_evicted_bytes", "Bytes evicted from the cache."
            ),
            Event.VERSION_KEPT: asked.labels("memory"),
            Event.VERSION_ASKED: asked.labels("database"),
            Event.LEASE_BEGUN: count("leases_begun", "Leases of claims begun."),
            Event.LEASE_LOST: count("leases_lost", "Leases lost by their holder."),
            Event.CLAIM_TAKEN_OVER: count(
                "claims_taken_over", "Claims of dead writers taken over."
            ),
            Event.LEAF_WRONG: count(
                "store_wrong_reads", "Reads whose bytes were not what the CID names."
            ),
            Event.OBJECT_WRONG: count(
                "store_wrong_objects", "Objects that were wrong twice, and marked."
            ),
        }

    # -------------------------------------------------------------------- requests

    def answered(self, request: Answered) -> None:
        """Take note of a request that has ended."""
        route = request.route or OTHER
        method = request.method if request.method in METHODS else OTHER
        page = route, method, request.status
        counters = self._pages.get(page)
        if counters is None:
            counters = self._pages[page] = _PageCounters(
                self._requests.labels(route, method, str(request.status)),
                self._request_seconds.labels(route),
                self._received.labels(route),
                self._sent.labels(route),
            )
        counters.requests.inc()
        counters.seconds.observe(request.head_s)
        if request.received:
            counters.received.inc(request.received)
        if request.sent:
            counters.sent.inc(request.sent)
        if not request.complete:
            self._broken_off.labels(route).inc()
        if request.code is not None:
            self._problems.labels(request.code).inc()
        if request.refusal is not None:
            reason = request.refusal if request.refusal in REFUSALS else OTHER
            self._refused.labels(reason).inc()
        if method not in {"GET", "HEAD"}:
            self._note_change(method, route, request)

    def _note_change(self, method: str, route: str, request: Answered) -> None:
        page = method, route
        collection = _PUBLISHING.get(page)
        if page == _SIGN_IN:
            outcome = OK if request.code is None else request.code
            self._sign_ins.labels(_SIGN_IN_OUTCOMES.get(outcome, outcome)).inc()
        elif collection is not None:
            known = {201: "created", 200: "unchanged"}.get(request.status, "broken_off")
            self._publishes.labels(collection, request.code or known).inc()
        elif (upload := _UPLOADS.get((*page, request.status))) is not None:
            self._uploads.labels(upload).inc()

    # --------------------------------------------------------------------- watching

    def tell(self, event: Event, amount: int = 1) -> None:
        """Take note of what the registry tells; see ``Watcher``."""
        if event is Event.LEASE_ENDED:
            self._leases.dec()
            return
        if event is Event.LEASE_BEGUN:
            self._leases.inc()
        self._events[event].inc(amount)

    @contextmanager
    def step(
        self,
        step: Step,
        *,
        cid: str | None = None,  # noqa: ARG002 - the protocol's
        size: int | None = None,  # noqa: ARG002
    ) -> Iterator[None]:
        """Time a step of publishing; see ``Watcher``."""
        began = time.perf_counter()
        outcome = OK
        try:
            yield
        except BaseException as error:
            outcome = code_of(error)
            raise
        finally:
            self._step_seconds.labels(step).observe(time.perf_counter() - began)
            self._steps.labels(step, outcome).inc()

    # -------------------------------------------------------------- store, database

    def operated(
        self,
        operation: str,
        seconds: float,
        *,
        outcome: str = OK,
        read: int = 0,
        written: int = 0,
    ) -> None:
        """Take note of an operation on the store, and the bytes it moved.

        Args:
            operation: A method of ``ObjectStore``.
            seconds: Until it was done; of a stream, until it began.
            outcome: ``ok``, or an error's code.
            read: Bytes that came from the store.
            written: Bytes that went there.
        """
        self._operations.labels(operation, outcome).inc()
        self._operation_seconds.labels(operation).observe(seconds)
        if read:
            self._store_read.inc(read)
        if written:
            self._store_written.inc(written)

    def database_failed(self) -> None:
        """Take note of a transaction that the database failed."""
        self._database_errors.inc()

    def swept(self, swept: Swept | None) -> None:
        """Take note of what a sweep removed; ``None``: it failed."""
        if swept is None:
            self._sweeps.labels("failed").inc()
            return
        self._sweeps.labels("failed_in_part" if swept.failures else OK).inc()
        self._swept.labels("claims").inc(swept.claims)
        self._swept.labels("spool_files").inc(swept.spool_files)
        self._swept.labels("partial_uploads").inc(swept.partial_uploads)

    # ------------------------------------------------------------------- the answer

    def text(self) -> bytes:
        """Return all numbers in Prometheus's text format, of all processes together.

        Blocks for a moment: files are read.
        """
        processes: tuple[int, ...]
        if self._shared is None:
            numbers, processes = generate_latest(self._registry), (os.getpid(),)
        else:
            numbers, processes = self._shared.text(), self._shared.alive()
        of_processes = CollectorRegistry()
        of_processes.register(_Processes(processes))
        return numbers + generate_latest(of_processes)

    # ----------------------------------------------------------------------- making

    def _count(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", what, labels, registry=self._registry)

    def _gauge(self, name: str, what: str, *labels: str) -> Gauge:
        return Gauge(
            f"{_PREFIX}_{name}",
            what,
            labels,
            registry=self._registry,
            multiprocess_mode="livesum",
        )

    def _timed(
        self, name: str, what: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            f"{_PREFIX}_{name}", what, labels, buckets=buckets, registry=self._registry
        )


class _Processes(Collector):
    """What the system knows of processes; each has its number as a label."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = tuple(pids)

    def collect(self) -> Iterator[Metric]:
        """Yield the families of ``ProcessCollector``, of all processes."""
        families: dict[str, Metric] = {}
        for pid in self._pids:
            one = ProcessCollector(pid=partial(int, pid), registry=None)
            for found in one.collect():
                family = families.setdefault(
                    found.name, Metric(found.name, found.documentation, found.type)
                )
                for sample in found.samples:
                    labels = {**sample.labels, "pid": str(pid)}
                    family.add_sample(sample.name, labels, sample.value)
        yield from families.values()


def code_of(error: BaseException) -> str:
    """Return the code of an error of ours, or a word for any other."""
    if isinstance(error, VisionO3Error):
        return error.code
    return VisionO3Error.code if isinstance(error, Exception) else "cancelled"
