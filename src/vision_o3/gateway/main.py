"""The composition root: settings in, application out."""

from __future__ import annotations

import asyncio
import contextlib
import random
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

import anyio
import anyio.to_thread
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.telemetry import TelemetryConfig

from vision_o3 import __version__
from vision_o3.db.changes import ChangeListener, CommitCounter
from vision_o3.db.engine import Database
from vision_o3.errors import VisionO3Error
from vision_o3.gateway import (
    accounts,
    audit,
    datasets,
    health,
    models,
    partial_uploads,
    problems,
    scraping,
    sign_in,
)
from vision_o3.gateway.auth import Door
from vision_o3.gateway.bodies import SmallBodies
from vision_o3.gateway.deps import Gateway
from vision_o3.gateway.limits import Limits
from vision_o3.gateway.logs import configure_logging, log_uncaught
from vision_o3.gateway.measured_store import measured
from vision_o3.gateway.metrics import Metrics
from vision_o3.gateway.middleware import EarlyEnd, RequestLog, SafeHeaders
from vision_o3.gateway.o3_client import O3Client
from vision_o3.gateway.opening import (
    check_migrated,
    open_database,
    open_spool,
    timing_of,
)
from vision_o3.gateway.readiness import ReadinessCheck
from vision_o3.gateway.redaction import secrets_of
from vision_o3.gateway.shared_metrics import SharedMetrics
from vision_o3.gateway.stopping import Stopping
from vision_o3.gateway.tokens import Tokens
from vision_o3.gateway.tracing import Tracing, open_tracing
from vision_o3.gateway.watching import watcher_of
from vision_o3.registry.accounts import CHANGES, Accounts
from vision_o3.registry.hot_cache import HotCache
from vision_o3.registry.inspecting import Inspector
from vision_o3.registry.maintenance import Sweeper
from vision_o3.registry.partial_uploads import PartialUploads
from vision_o3.registry.purging import Forgetter
from vision_o3.registry.rebuilding import require_index
from vision_o3.registry.relaying import Relay
from vision_o3.registry.resolving import MetadataCache
from vision_o3.registry.services import DatasetService, ModelService
from vision_o3.registry.signing_in import SignIn
from vision_o3.registry.standing import Standings
from vision_o3.registry.suspects import Suspects
from vision_o3.settings import Settings, load_settings, shared_metrics_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from datetime import datetime

    from vision_o3.registry.watching import Watcher
    from vision_o3.storage.base import ObjectStore

_SIGNING_IN = 2
"""Secrets hashed at the same time: 19 MiB and one processor each."""
_DESCRIPTION = """\
Publish models, fetch them verified. Every artifact is named by its content (CID);
`GET /models/cid/{cid}/dag` gives what any byte range of it is verified with.

Get a token at `POST /auth/token`, and send it as `Authorization: Bearer …`.
Errors are RFC 9457 problem documents with a stable `code`.
"""

_SCANS = 4
"""Uploads in parts that are looked through at once; a disk serves few at a time."""
_COPIES = 2
"""Files of the store that are copied at once, to be published under another name."""
_NO_TELEMETRY = TelemetryConfig(
    tracing=False,
    metrics=False,
    logs=False,
    operation_spans=False,
    auto_configure=False,
)
"""FastAPI's own would tell of queries, headers and what exceptions say; ours does not
(``tracing.py``)."""
_log = structlog.get_logger(__name__)


def create_app(
    settings: Settings,
    *,
    store: ObjectStore | None = None,
    database: Database | None = None,
    clock: Callable[[], datetime] | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """Return the gateway's application. Nothing is opened before its lifespan starts.

    Args:
        settings: All settings.
        store: Used, and not closed, instead of the one that the settings name.
        database: Likewise.
        clock: Tells the time at which tokens are issued.
        tracing: Makes spans instead of what the settings say; not closed either.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with (
            _watch(settings, tracing) as watched,
            _open_gateway(settings, store, database, clock, watched) as (
                gateway,
                sweeper,
            ),
            gateway.stopping.noticed(),
        ):
            app.state.gateway = gateway
            app.state.metrics, app.state.tracing = watched
            sweeping = asyncio.create_task(
                sweep_for_ever(sweeper, settings.sweep_interval_s, watched.metrics)
            )
            try:
                yield
            finally:
                sweeping.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await sweeping
                if gateway.hot_cache is not None:
                    await gateway.hot_cache.close()

    app = FastAPI(
        title="Vision-O3",
        description=_DESCRIPTION,
        version=__version__,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
    )
    for router in (
        models.router,
        datasets.router,
        partial_uploads.router,
        sign_in.router,
        sign_in.keys_router,
        accounts.router,
        audit.router,
        health.router,
        scraping.router,
    ):
        app.include_router(router)
    # The last one added is the first to see a request.
    app.add_middleware(SmallBodies, timeout_s=settings.stall_timeout_s)
    app.add_middleware(EarlyEnd)
    problems.install(app)
    app.add_middleware(RequestLog)
    app.add_middleware(SafeHeaders)
    _render_document_once(app)
    return app


def _render_document_once(app: FastAPI) -> None:
    """Answer the OpenAPI document with the same bytes each time: anybody may ask."""
    rendered: list[bytes] = []

    async def document(_: Request) -> Response:
        if not rendered:
            rendered.append(bytes(JSONResponse(app.openapi()).body))
        return Response(rendered[0], media_type="application/json")

    path = app.openapi_url or ""
    app.router.routes[:] = [
        route for route in app.router.routes if getattr(route, "path", None) != path
    ]
    app.add_route(path, document, include_in_schema=False)


def app_from_environment() -> FastAPI:
    """Return the application of a process of ``vision-o3 serve``."""
    settings = load_settings()
    configure_logging(settings.log_level, secrets_of(settings))
    log_uncaught()
    return create_app(settings)


class _Watched(NamedTuple):
    """Where what happens is counted and traced."""

    metrics: Metrics
    tracing: Tracing | None

    @property
    def watcher(self) -> Watcher:
        """What the registry tells of its work."""
        return watcher_of(self.metrics, self.tracing)


@contextlib.contextmanager
def _watch(settings: Settings, tracing: Tracing | None) -> Iterator[_Watched]:
    """Yield what counts and traces; what is left of traces is sent at the end."""
    directory = shared_metrics_directory()
    metrics = Metrics(None if directory is None else SharedMetrics(directory))
    if tracing is not None or not settings.tracing:
        yield _Watched(metrics, tracing)
        return
    tracing = open_tracing()
    try:
        yield _Watched(metrics, tracing)
    finally:
        tracing.close()


@contextlib.contextmanager
def _open_gateway(
    settings: Settings,
    store: ObjectStore | None,
    database: Database | None,
    clock: Callable[[], datetime] | None,
    watched: _Watched,
) -> Iterator[tuple[Gateway, Sweeper]]:
    """Open what the gateway needs; close what was opened."""
    metrics, tracing = watched
    watcher = watched.watcher
    with contextlib.ExitStack() as opened:
        if database is None:
            database = opened.enter_context(
                open_database(settings, metrics.database_failed)
            )
        else:
            check_migrated(settings)
        cache, standings = _follow_changes(settings, database, opened, watcher)
        tokens = Tokens(settings, clock)
        if store is None:
            store = opened.enter_context(O3Client.open(settings)).store
            require_index(database, store)
        store = measured(store, metrics, tracing)
        hot_cache = _open_hot_cache(settings, watcher)
        relay = Relay(store, cache=hot_cache, marks=Suspects(database), watcher=watcher)
        opened.callback(relay.close)
        spool = opened.enter_context(open_spool(settings))
        partial = PartialUploads(
            spool,
            expires_s=settings.upload_expires_s,
            most=settings.max_partial_uploads_per_user,
        )
        timing = timing_of(settings)
        inspector = Inspector(
            spool,
            settings.inspection_limits,
            concurrent=settings.max_concurrent_inspections,
        )
        opened.callback(inspector.close)
        gateway = Gateway(
            settings=settings,
            database=database,
            store=store,
            spool=spool,
            partial_uploads=partial,
            inspector=inspector,
            hot_cache=hot_cache,
            models=ModelService(
                database, store, inspector, timing, relay, cache, watcher=watcher
            ),
            datasets=DatasetService(
                database, store, inspector, timing, relay, cache, watcher=watcher
            ),
            accounts=Accounts(database, on_change=standings.changed),
            sign_in=SignIn(database, max_failures=settings.max_failed_sign_ins),
            tokens=tokens,
            door=Door(tokens, standings),
            limits=Limits(settings),
            signing_in=anyio.CapacityLimiter(_SIGNING_IN),
            publishing=anyio.CapacityLimiter(settings.max_concurrent_publishes),
            scanning=anyio.CapacityLimiter(_SCANS),
            copying=anyio.CapacityLimiter(_COPIES),
            metrics=metrics,
            watcher=watcher,
            readiness=ReadinessCheck(settings, store),
            stopping=Stopping(),
        )
        services = gateway.models, gateway.datasets
        forgetter = Forgetter(database, services, settings.cache_directory)
        yield (
            gateway,
            Sweeper(
                database, store, spool, timing, partial, watcher, forgetter=forgetter
            ),
        )


def _open_hot_cache(settings: Settings, watcher: Watcher) -> HotCache | None:
    """Return where artifacts that are asked for are kept, if anywhere."""
    directory = settings.cache_directory
    if directory is None:
        return None
    return HotCache(
        directory,
        capacity=settings.cache_bytes,
        min_free=settings.min_free_bytes,
        watcher=watcher,
    )


def _follow_changes(
    settings: Settings,
    database: Database,
    opened: contextlib.ExitStack,
    watcher: Watcher,
) -> tuple[MetadataCache | None, Standings]:
    """Return what versions and users are kept in, told of changes where that can be."""
    url, ttl_s = settings.database_url.get_secret_value(), settings.metadata_ttl_s
    if database.dialect == "sqlite":
        counters = [CommitCounter(url) for _ in range(2)]  # each is for one thread
        for counter in counters:
            opened.callback(counter.close)
        cache = (
            MetadataCache(ttl_s, commits=counters[0], watcher=watcher)
            if ttl_s
            else None
        )
        return cache, Standings(database, commits=counters[1])
    cache = MetadataCache(ttl_s, watcher=watcher) if ttl_s else None
    standings = Standings(database)

    def changed(what: str, name: str) -> None:
        if what == CHANGES:
            standings.changed(name)
        elif cache is not None:
            cache.changed(what, name)

    def reset(told: bool) -> None:  # noqa: FBT001 - as a listener calls it
        standings.reset(told)
        if cache is not None:
            cache.reset(told)

    listener = ChangeListener(url, on_change=changed, on_reset=reset)
    opened.callback(listener.close)
    return cache, standings


async def sweep_for_ever(
    sweeper: Sweeper, interval_s: float, metrics: Metrics | None = None
) -> None:
    """Sweep now and then until cancelled, whatever a sweep meets.

    The pauses vary, so that gateways which were started together do not go on sweeping
    at the same moments.
    """
    while True:
        swept = None
        try:
            swept = await anyio.to_thread.run_sync(sweeper.sweep)
        except VisionO3Error as error:
            _log.warning("sweep.failed", reason=error.code)
        except Exception:  # noqa: BLE001 - the edge of a task that must not die
            _log.exception("sweep.failed")
        else:
            if any(asdict(swept).values()):
                _log.info("sweep.done", **asdict(swept))
        if metrics is not None:
            metrics.swept(swept)
        await asyncio.sleep(interval_s * random.uniform(0.75, 1.25))  # noqa: S311 - jitter
