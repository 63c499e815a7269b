from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from anyio.from_thread import start_blocking_portal

from tests.test_gateway.contract import ContractCheck, gateway_contract
from tests.test_gateway.running import SECRET, OpenGateway, Running, Serve, Served
from tests.test_gateway.watched_app import WatchedApp, see_what_is_left
from tests.test_integration.gateways import postgres_database
from vision_o3.db.migrate import migrate
from vision_o3.gateway import serving
from vision_o3.gateway.http_protocol import ConnectionLimits
from vision_o3.gateway.main import create_app
from vision_o3.gateway.tracing import Tracing
from vision_o3.settings import Settings
from vision_o3.storage.base import ObjectStore


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "empty.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def make_settings(tmp_path: Path, empty_database: Path) -> Callable[..., Settings]:
    def make(**changes: Any) -> Settings:
        path = tmp_path / "registry.db"
        if not path.exists():
            shutil.copy(empty_database, path)
        values: dict[str, Any] = {
            "database_url": f"sqlite:///{path}",
            "store": str(tmp_path / "objects"),
            "jwt_secret": SECRET,
            "min_free_bytes": 0,
            "max_requests_per_minute": 0,
            "max_sign_ins_per_minute": 0,
        }
        return Settings(**values | changes)

    return make


@contextmanager
def run_gateway(
    settings: Settings,
    *,
    store: ObjectStore | None = None,
    clock: Callable[[], datetime] | None = None,
    spans: Tracing | None = None,
) -> Iterator[Running]:
    app = create_app(settings, store=store, clock=clock, tracing=spans)
    checked = ContractCheck(app, gateway_contract())
    with start_blocking_portal() as portal, ExitStack() as stack:
        stack.enter_context(
            portal.wrap_async_context_manager(app.router.lifespan_context(app))
        )
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(WatchedApp(checked)),
            base_url="http://gateway",
        )
        stack.enter_context(portal.wrap_async_context_manager(client))
        yield Running(app, settings, portal, client)
        see_what_is_left(app)
    checked.assert_kept()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def either_gateway(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    empty_database: Path,
) -> Iterator[Running]:
    """A gateway on each of the databases, one for all tests of a module."""
    home = tmp_path_factory.mktemp("gateway")
    values: dict[str, Any] = {"store": str(home / "objects"), "jwt_secret": SECRET}
    values |= {"min_free_bytes": 0, "max_requests_per_minute": 0}
    values |= {"max_sign_ins_per_minute": 0}
    with ExitStack() as stack:
        if request.param == "postgresql":
            url = stack.enter_context(postgres_database())
            migrate(url)
        else:
            url = f"sqlite:///{shutil.copy(empty_database, home / 'registry.db')}"
        yield stack.enter_context(run_gateway(Settings(database_url=url, **values)))


@pytest.fixture
def open_gateway(make_settings: Callable[..., Settings]) -> OpenGateway:
    @contextmanager
    def start(
        store: ObjectStore | None = None,
        clock: Callable[[], datetime] | None = None,
        spans: Tracing | None = None,
        **changes: Any,
    ) -> Iterator[Running]:
        settings = make_settings(**changes)
        with run_gateway(settings, store=store, clock=clock, spans=spans) as running:
            yield running

    return start


@pytest.fixture
def running(open_gateway: OpenGateway) -> Iterator[Running]:
    with open_gateway() as running:
        yield running


@pytest.fixture
def serve(make_settings: Callable[..., Settings]) -> Serve:
    @contextmanager
    def start(store: ObjectStore | None = None, **changes: Any) -> Iterator[Served]:
        settings = make_settings(**changes)
        app = create_app(settings, store=store)
        checked = ContractCheck(app, gateway_contract())
        options = serving.options(settings, ConnectionLimits.of(settings))
        server = uvicorn.Server(
            uvicorn.Config(
                WatchedApp(checked),
                host="127.0.0.1",
                port=0,
                **options | {"timeout_graceful_shutdown": 5},
            )
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                time.sleep(0.005)
            port = server.servers[0].sockets[0].getsockname()[1]
            yield Served(app, settings, port)
            see_what_is_left(app)
        finally:
            server.should_exit = True
            thread.join()
        checked.assert_kept()

    return start
