"""What the check of a token costs of a metadata request.

python benchmarks/token_check.py [--rounds 9]

In one process, without a server or sockets, whose cost would only make the share
smaller: the gateway's application answers `GET /models/{name}` again and again, and in
turns with it the check alone is made: signature (cached after the first time), standing
of the user, permissions, rate. HS256 and EdDSA, on SQLite. Also the first check of a
token, which is not cached, and the same with the user's standing looked up.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from vision_o3.db.migrate import migrate
from vision_o3.gateway.main import create_app
from vision_o3.registry.audit import OPERATOR, Actor
from vision_o3.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vision_o3.gateway.deps import Gateway

_CALLS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds: int = parser.parse_args().rounds
    harness.describe_machine()
    structlog.configure(  # as INFO lines are written in production, but to nowhere
        logger_factory=structlog.PrintLoggerFactory(Path("/dev/null").open("w"))  # noqa: SIM115 - for as long as the process lives
    )
    pem = (
        Ed25519PrivateKey.generate()
        .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        .decode()
    )
    print("\n| | request µs | check µs | share | first check µs | with look-up µs |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, key in (
        ("HS256", {"jwt_secret": "x" * 48}),
        ("EdDSA", {"jwt_private_key": pem}),
    ):
        print(f"| {name} | {asyncio.run(_measure(key, rounds))} |", flush=True)


async def _measure(key: dict[str, Any], rounds: int) -> str:
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        url = f"sqlite:///{home}/registry.db"
        migrate(url)
        settings = Settings(
            database_url=url,  # type: ignore[arg-type]  # pydantic makes it one
            store=str(home / "objects"),
            max_requests_per_minute=10**9,
            **key,
        )
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            gateway: Gateway = app.state.gateway
            token = _sign_in(gateway)
            await _publish(app, token, home)
            requests, checks, firsts, look_ups = [], [], [], []
            for _ in range(rounds):
                requests.append(await _time_requests(app, token))
                checks.append(await _time_checks(gateway, token))
                firsts.append(await _time_checks(gateway, token, forget_token=True))
                look_ups.append(await _time_checks(gateway, token, forget_user=True))
    medians = [statistics.median(each) for each in (requests, checks)]
    share = medians[1] / medians[0]
    rest = [statistics.median(each) for each in (firsts, look_ups)]
    cells = [f"{1e6 * each:.1f}" for each in medians]
    cells += [f"{100 * share:.1f} %", *(f"{1e6 * each:.1f}" for each in rest)]
    return " | ".join(cells)


def _sign_in(gateway: Gateway) -> str:
    user, secret = gateway.accounts.add(OPERATOR, "bench", roles=["publisher"])
    found = gateway.sign_in.authenticate(user.id, secret.secret, Actor("bench"))
    return gateway.tokens.issue(found, found.granted).text


async def _time_requests(app: FastAPI, token: str) -> float:
    started = time.perf_counter()
    for _ in range(_CALLS):
        status, _ = await _call(app, "GET", "/models/m", token)
        if status != 200:
            raise SystemExit(f"answered {status}")
    return (time.perf_counter() - started) / _CALLS


async def _time_checks(
    gateway: Gateway,
    token: str,
    *,
    forget_token: bool = False,
    forget_user: bool = False,
) -> float:
    taken = 0.0
    for _ in range(_CALLS if not forget_user else _CALLS // 10):
        if forget_token:
            gateway.tokens._checked.clear()  # noqa: SLF001 - as if it were new
        if forget_user:
            gateway.door._standings.changed("bench")  # noqa: SLF001 - likewise
        started = time.perf_counter()
        principal = await gateway.door.admit(token, address="192.0.2.1", request_id="x")
        gateway.limits.count_request(principal.id)
        principal.require("model:read", "m")
        taken += time.perf_counter() - started
    return taken / (_CALLS if not forget_user else _CALLS // 10)


async def _publish(app: FastAPI, token: str, home: Path) -> None:
    model = b"\x08\x08" + b"\x3a\x07\x12\x05graph" + b"\x42\x02\x10\x11"  # ONNX
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nm\r\n',
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="m.onnx"\r\n\r\n'
        + model,
        b"\r\n--b--\r\n",
    ]
    status, answer = await _call(
        app,
        "POST",
        "/models",
        token,
        b"".join(parts),
        "multipart/form-data; boundary=b",
    )
    if status != 201:
        raise SystemExit(f"publishing in {home} answered {status}: {answer!r}")


async def _call(
    app: FastAPI,
    method: str,
    path: str,
    token: str,
    body: bytes = b"",
    content_type: str = "",
) -> tuple[int, bytes]:
    """Let the application answer a request, as a server would."""
    headers = [(b"host", b"x"), (b"authorization", f"Bearer {token}".encode())]
    if body:
        headers += [
            (b"content-type", content_type.encode()),
            (b"content-length", str(len(body)).encode()),
        ]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "state": {},
    }
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:])


if __name__ == "__main__":
    main()
