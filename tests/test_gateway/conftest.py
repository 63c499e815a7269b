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

from tests.test_gateway.running import SECRET, OpenGateway, Running, Serve, Served
from vision_o3.db.migrate import migrate
from vision_o3.gateway.main import create_app
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
        }
        return Settings(**values | changes)

    return make


@pytest.fixture
def open_gateway(make_settings: Callable[..., Settings]) -> OpenGateway:
    @contextmanager
    def start(
        store: ObjectStore | None = None,
        clock: Callable[[], datetime] | None = None,
        **changes: Any,
    ) -> Iterator[Running]:
        settings = make_settings(**changes)
        app = create_app(settings, store=store, clock=clock)
        with start_blocking_portal() as portal, ExitStack() as stack:
            stack.enter_context(
                portal.wrap_async_context_manager(app.router.lifespan_context(app))
            )
            client = httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://gateway"
            )
            stack.enter_context(portal.wrap_async_context_manager(client))
            yield Running(app, settings, portal, client)

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
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                host="127.0.0.1",
                port=0,
                log_config=None,
                access_log=False,
                ws="none",
                lifespan="on",
                timeout_graceful_shutdown=5,
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
        finally:
            server.should_exit = True
            thread.join()

    return start
