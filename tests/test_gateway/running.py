"""A gateway in the tests' own process: with a client, or on a loopback port."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal
from fastapi import FastAPI

from tests.canaries import CANARIES
from tests.fakes.model_files import tflite
from vision_o3.db import accounts as rows
from vision_o3.db import models as tables
from vision_o3.db import queries
from vision_o3.gateway.deps import Gateway
from vision_o3.registry.accounts import Accounts
from vision_o3.registry.audit import OPERATOR
from vision_o3.registry.permissions import SCOPES
from vision_o3.registry.signing_in import SignedIn
from vision_o3.settings import Settings

SECRET = CANARIES.add(
    "a-secret-of-the-tests-that-is-long-enough", "the signing key", always=True
)
MIB = 1 << 20
_MAKING_USERS = threading.Lock()


def known_user(gateway: Gateway, user: str, *permissions: str) -> SignedIn:
    """Return a user, made if need be, as if they had signed in.

    A user who is made may do everything, unless permissions are named.
    """
    secret_id = f"of-{user}"[:32]
    with _MAKING_USERS:
        with gateway.database.read() as session:
            row = rows.find_user(session, user)
        if row is None:
            with gateway.database.write() as session:
                now = queries.database_now(session)
                row = rows.insert_user(
                    session,
                    user,
                    roles=[],
                    permissions=sorted(permissions or SCOPES),
                    created_at=now,
                )
                rows.insert_secret(
                    session,
                    id=secret_id,
                    user_id=user,
                    label="of the tests",
                    secret_hash="none",
                    created_at=now,
                )
    granted = frozenset(row.permissions)
    return SignedIn(user, granted, row.token_generation, secret_id, None)


def add_user(gateway: Gateway, user: str, scopes: Sequence[str]) -> str:
    """Add a user as an operator does; return their secret."""
    accounts = Accounts(gateway.database)
    secret = accounts.add(OPERATOR, user, permissions=scopes)[1].secret
    return CANARIES.add(secret, f"the secret of {user}")


def token_of(gateway: Gateway, user: str, *scopes: str) -> str:
    """Return a token of a user, made if need be, for all scopes or some."""
    known = known_user(gateway, user)
    token = gateway.tokens.issue(known, frozenset(scopes or SCOPES)).text
    CANARIES.add(token.rpartition(".")[2], f"the signature of {user}'s token")
    return token


@dataclass
class Running:
    """A gateway in this process, and a client without a socket."""

    app: FastAPI
    settings: Settings
    portal: BlockingPortal
    client: httpx.AsyncClient

    @property
    def gateway(self) -> Gateway:
        found: Gateway = self.app.state.gateway
        return found

    def token(self, *scopes: str, user: str = "ann") -> str:
        return token_of(self.gateway, user, *scopes)

    def request(
        self, method: str, path: str, token: str | None = "", **options: Any
    ) -> httpx.Response:
        """Send a request; by default as one who may do everything."""
        headers = dict(options.pop("headers", {}))
        if token is not None:
            headers["Authorization"] = f"Bearer {token or self.token()}"
        send = partial(self.client.request, method, path, headers=headers, **options)
        return self.portal.call(send)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def publish(
        self,
        content: bytes | None = None,
        filename: str = "m.tflite",
        collection: str = "models",
        **fields: Any,
    ) -> httpx.Response:
        return self.request(
            "POST",
            f"/{collection}",
            data={"name": "m", **fields},
            files={"file": (filename, tflite() if content is None else content)},
        )

    def object(self, key: str) -> Path:
        """Return where the local store keeps an object."""
        return Path(self.settings.store) / key

    def assert_nothing_left(self) -> None:
        assert not list(self.settings.spool_directory.iterdir())
        assert not list(self.gateway.store.list())
        with self.gateway.database.read() as session:
            for rows in (tables.ModelVersionRow, tables.DatasetVersionRow):
                assert not session.query(rows).all()


def flip_bit(path: Path, at: int) -> None:
    """Change one bit of a stored object."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.unlink()  # it may be read-only, or linked elsewhere
    path.write_bytes(content)


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Return an answer's status and code, having checked that it is a problem."""
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == answer.status_code
    assert document["request_id"] == answer.headers["x-request-id"]
    assert document["detail"]
    return answer.status_code, document["code"]


@dataclass
class Served:
    """A gateway on a loopback port, for what needs a connection."""

    app: FastAPI
    settings: Settings
    port: int

    @property
    def gateway(self) -> Gateway:
        found: Gateway = self.app.state.gateway
        return found

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {token_of(self.gateway, 'ann')}"}

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def wait_until_empty(self) -> None:
        """Return when no spool file is left; fail if there always is one."""
        deadline = time.monotonic() + 60
        while list(self.settings.spool_directory.iterdir()):
            assert time.monotonic() < deadline, "a spool file was left behind"
            time.sleep(0.01)
        assert not list(self.gateway.store.list())


OpenGateway = Callable[..., AbstractContextManager[Running]]
Serve = Callable[..., AbstractContextManager[Served]]
