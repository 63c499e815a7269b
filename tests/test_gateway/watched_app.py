"""Shows the canaries (``tests/canaries.py``) all that a gateway answers."""

from __future__ import annotations

import re

from fastapi import FastAPI
from sqlalchemy import select
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.canaries import CANARIES
from vision_o3.db.models import AuditEventRow
from vision_o3.errors import ConfigurationError, DatabaseUnavailableError
from vision_o3.gateway.deps import Gateway

_MOST = 1 << 20
"""Bytes of an answer that are looked at."""
_GIVES_OUT = re.compile(r"/auth/token|/admin/users(/[^/]+/secrets)?")
"""Pages whose answers are there to hand out a secret."""


class WatchedApp:
    """Passes everything on to an app, and shows what it answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        page = f"{scope['method']} {scope['path']}"
        is_text = False
        body = bytearray()

        async def send_seen(message: Message) -> None:
            nonlocal is_text
            if message["type"] == "http.response.start":
                headers = dict(message.get("headers", ()))
                is_text = b"json" in headers.get(b"content-type", b"")
                redirects = message["status"] == 307
                seen = [
                    f"{name.decode('latin-1')}: {value.decode('latin-1')}"
                    for name, value in message.get("headers", ())
                    # Where the store itself serves, for a while.
                    if not (redirects and name.lower() == b"location")
                ]
                CANARIES.see(f"the head of {page}", "\n".join(seen))
            elif is_text and len(body) < _MOST:
                body.extend(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, send_seen)
        hands_out = scope["method"] == "POST" and _GIVES_OUT.fullmatch(scope["path"])
        if body and not hands_out:
            CANARIES.see(f"the answer of {page}", body.decode(errors="replace"))


def see_what_is_left(app: FastAPI) -> None:
    """Show a gateway's metrics, settings and audit trail, unless the test broke it."""
    gateway: Gateway | None = app.state.gateway
    if gateway is None:
        return
    CANARIES.see("the metrics", gateway.metrics.text().decode())
    CANARIES.see("the repr of the settings", repr(gateway.settings))
    try:
        with gateway.database.read() as session:
            events = session.scalars(select(AuditEventRow)).all()
    except (DatabaseUnavailableError, ConfigurationError):
        return
    for event in events:
        told = [getattr(event, column.name) for column in AuditEventRow.__table__.c]
        CANARIES.see("the audit trail", repr(told))
