"""The composition root: settings in, application out."""

from __future__ import annotations

import asyncio
import contextlib
import random
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import structlog
from fastapi import FastAPI

from vision_o3 import __version__
from vision_o3.db.changes import ChangeListener, CommitCounter
from vision_o3.db.engine import Database
from vision_o3.errors import VisionO3Error
from vision_o3.gateway import (
    datasets,
    health,
    models,
    partial_uploads,
    problems,
    sign_in,
)
from vision_o3.gateway.auth import Tokens
from vision_o3.gateway.deps import Gateway
from vision_o3.gateway.logs import configure_logging
from vision_o3.gateway.middleware import EarlyEnd, RequestLog
from vision_o3.gateway.o3_client import O3Client
from vision_o3.gateway.opening import (
    check_migrated,
    open_database,
    open_spool,
    timing_of,
)
from vision_o3.registry.hot_cache import HotCache
from vision_o3.registry.inspecting import Inspector
from vision_o3.registry.maintenance import Sweeper
from vision_o3.registry.partial_uploads import PartialUploads
from vision_o3.registry.rebuilding import require_index
from vision_o3.registry.relaying import Relay
from vision_o3.registry.resolving import MetadataCache
from vision_o3.registry.services import DatasetService, ModelService
from vision_o3.registry.suspects import Suspects
from vision_o3.schemas.problems import Problem
from vision_o3.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from datetime import datetime

    from vision_o3.storage.base import ObjectStore

_SIGNING_IN = 2
"""Secrets hashed at the same time: 19 MiB and one processor each."""
_DESCRIPTION = """\
Publish models, fetch them verified. Every artifact is named by its content (CID);
`GET /models/cid/{cid}/dag` gives what any byte range of it is verified with.

Get a token at `POST /auth/token`, and send it as `Authorization: Bearer …`.
Errors are RFC 9457 problem documents with a stable `code`.
"""

_COPIES = 2
"""Files of the store that are copied at once, to be published under another name."""
_log = structlog.get_logger(__name__)


def create_app(
    settings: Settings,
    *,
    store: ObjectStore | None = None,
    database: Database | None = None,
    clock: Callable[[], datetime] | None = None,
) -> FastAPI:
    """Return the gateway's application. Nothing is opened before its lifespan starts.

    Args:
        settings: All settings.
        store: Used, and not closed, instead of the one that the settings name.
        database: Likewise.
        clock: Tells the time at which tokens are issued.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with _open_gateway(settings, store, database, clock) as (gateway, sweeper):
            app.state.gateway = gateway
            sweeping = asyncio.create_task(
                sweep_for_ever(sweeper, settings.sweep_interval_s)
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
    )
    for router in (
        models.router,
        datasets.router,
        partial_uploads.router,
        sign_in.router,
        health.router,
    ):
        app.include_router(router)
    # The last one added is the first to see a request.
    app.add_middleware(EarlyEnd)
    problems.install(app)
    app.add_middleware(RequestLog)
    _describe_problems(app)
    return app


def app_from_environment() -> FastAPI:
    """Return the application of a process of ``vision-o3 serve``."""
    settings = load_settings()
    configure_logging(settings.log_level)
    return create_app(settings)


@contextlib.contextmanager
def _open_gateway(
    settings: Settings,
    store: ObjectStore | None,
    database: Database | None,
    clock: Callable[[], datetime] | None,
) -> Iterator[tuple[Gateway, Sweeper]]:
    """Open what the gateway needs; close what was opened."""
    with contextlib.ExitStack() as opened:
        if database is None:
            database = opened.enter_context(open_database(settings))
        else:
            check_migrated(settings)
        cache = _open_metadata_cache(settings, database, opened)
        if store is None:
            store = opened.enter_context(O3Client.open(settings)).store
            require_index(database, store)
        hot_cache = _open_hot_cache(settings)
        relay = Relay(store, cache=hot_cache, marks=Suspects(database))
        opened.callback(relay.close)
        spool = opened.enter_context(open_spool(settings))
        partial = PartialUploads(spool, expires_s=settings.upload_expires_s)
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
            models=ModelService(database, store, inspector, timing, relay, cache),
            datasets=DatasetService(database, store, inspector, timing, relay, cache),
            tokens=Tokens(settings, clock),
            signing_in=anyio.CapacityLimiter(_SIGNING_IN),
            publishing=anyio.CapacityLimiter(settings.max_concurrent_publishes),
            copying=anyio.CapacityLimiter(_COPIES),
        )
        yield gateway, Sweeper(database, store, spool, timing, partial)


def _open_hot_cache(settings: Settings) -> HotCache | None:
    """Return where artifacts that are asked for are kept, if anywhere."""
    directory = settings.cache_directory
    if directory is None:
        return None
    return HotCache(
        directory, capacity=settings.cache_bytes, min_free=settings.min_free_bytes
    )


def _open_metadata_cache(
    settings: Settings, database: Database, opened: contextlib.ExitStack
) -> MetadataCache | None:
    """Return what resolved versions are kept in, told of changes where that can be."""
    if not settings.metadata_ttl_s:
        return None
    url = settings.database_url.get_secret_value()
    if database.dialect == "sqlite":
        commits = CommitCounter(url)
        opened.callback(commits.close)
        return MetadataCache(settings.metadata_ttl_s, commits=commits)
    cache = MetadataCache(settings.metadata_ttl_s)
    listener = ChangeListener(url, on_change=cache.changed, on_reset=cache.reset)
    opened.callback(listener.close)
    return cache


async def sweep_for_ever(sweeper: Sweeper, interval_s: float) -> None:
    """Sweep now and then until cancelled, whatever a sweep meets.

    The pauses vary, so that gateways which were started together do not go on sweeping
    at the same moments.
    """
    while True:
        try:
            swept = await anyio.to_thread.run_sync(sweeper.sweep)
        except VisionO3Error as error:
            _log.warning("sweep.failed", reason=error.code)
        except Exception:  # noqa: BLE001 - the edge of a task that must not die
            _log.exception("sweep.failed")
        else:
            if any(asdict(swept).values()):
                _log.info("sweep.done", **asdict(swept))
        await asyncio.sleep(interval_s * random.uniform(0.75, 1.25))  # noqa: S311 - jitter


def _describe_problems(app: FastAPI) -> None:
    """Let the OpenAPI document hold the schema that all problems share."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make()
            schemas = document["components"]["schemas"]
            problem = Problem.model_json_schema(
                ref_template="#/components/schemas/{model}"
            )
            schemas.update(problem.pop("$defs"))
            schemas["Problem"] = problem
        return make()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's way to extend it
