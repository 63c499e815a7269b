"""Every route × every token: exactly who is let in, and what others are told.

The routes are the app's own. What each needs, and answers to those who may, is written
down here by hand; a route that is not, or that declares no permission, fails.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import SecretStr

from tests.fakes.model_files import tflite
from tests.test_gateway.running import MIB, OpenGateway, Running
from vision_o3.content.dag import cid_of_stream
from vision_o3.gateway import deps
from vision_o3.gateway.main import create_app
from vision_o3.registry.accounts import Changes
from vision_o3.registry.audit import OPERATOR
from vision_o3.registry.permissions import SCOPES
from vision_o3.settings import Settings

Answer = tuple[int, str | None]
"""A status, and the code if it is a problem."""
LINE = "m"
"""The line that the requests are about."""
LARGE = 2 * MIB
"""Bytes of a file that has a sidecar."""
REFUSED: Answer = (401, "unauthenticated")
FORBIDDEN: Answer = (403, "permission_denied")
DEPENDENCIES = {
    deps._permitted, deps._permitted_some, deps._may_upload, deps._scraping,
    deps._admitted, deps._public,
}  # fmt: skip
"""Each says who is let in; a route needs one of them."""


@dataclass(frozen=True)
class Rule:
    """What one operation needs, and answers to the request that is tried here."""

    answer: Answer
    """To those who may."""
    needs: frozenset[str] = frozenset()
    """Permissions of which any lets in."""
    elsewhere: Answer | None = None
    """To those who may for another line only; ``None``: the same as to others."""
    public: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Of the path, where they are not those of all."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the request: a body, a query."""


def _line(scope: str, answer: Answer, **more: Any) -> Rule:
    """Return the rule of a route whose path names the line."""
    return Rule(answer, frozenset({scope}), FORBIDDEN, **more)


def _of_collection(kind: str, fields: Mapping[str, str]) -> dict[str, Rule]:
    read, write = f"{kind}:read", f"{kind}:write"
    ok: Answer = (200, None)
    by_cid = Rule(ok, frozenset({read}), (404, "not_found"))
    rules = {
        "publish": Rule(
            ok,
            frozenset({write}),
            FORBIDDEN,
            options={"data": {**fields, "name": LINE}},
        ),
        "list": Rule(ok, frozenset({read}), ok),
        "by_cid": by_cid,
        "latest": _line(read, ok),
        "history": _line(read, ok),
        "one": _line(read, ok),
        "withdraw": _line(
            write, ok, options={"json": {"state": "deprecated", "reason": "old"}}
        ),
        "lift_withdrawal": _line(write, (204, None)),
    }
    for method in ("get", "head"):
        rules |= {
            f"dag_{method}": by_cid,
            f"download_cid_{method}": by_cid,
            f"download_{method}": _line(read, ok),
            f"download_version_{method}": _line(read, ok),
        }
    return {f"{kind}s_{name}": rule for name, rule in rules.items()}


_ADMIN = frozenset({"admin"})
_UPLOAD = frozenset({"model:write", "dataset:write"})
_NOBODY = {"user": "not-there"}
RULES: dict[str, Rule] = {
    **_of_collection("model", {}),
    **_of_collection("dataset", {}),
    "datasets_manifest": _line("dataset:read", (200, None)),
    "datasets_file_get": _line("dataset:read", (200, None)),
    "datasets_file_head": _line("dataset:read", (200, None)),
    "datasets_diff": _line(
        "dataset:read", (200, None), options={"params": {"from": "1", "to": "1"}}
    ),
    "uploads_begin": Rule((200, None), _UPLOAD, (200, None)),
    "uploads_read": Rule((200, None), _UPLOAD, (200, None)),
    "uploads_send": Rule((204, None), _UPLOAD, (204, None)),
    "uploads_forget": Rule(
        (404, "not_found"),
        _UPLOAD,
        (404, "not_found"),
        parameters={"cid": str(cid_of_stream(io.BytesIO(b"not begun")).root)},
    ),
    "sign_in": Rule((422, "invalid_input"), public=True, options={"data": {"a": "b"}}),
    "revoke_token": Rule(
        (422, "invalid_input"), public=True, options={"data": {"a": "b"}}
    ),
    "whoami": Rule((200, None), frozenset(SCOPES), (200, None)),
    "jwks": Rule((200, None), public=True),
    "users_list": Rule((200, None), _ADMIN),
    "users_add": Rule(
        (409, "already_exists"),
        _ADMIN,
        options={"json": {"name": "spare", "permissions": ["model:read"]}},
    ),
    "users_read": Rule((200, None), _ADMIN),
    "users_change": Rule((200, None), _ADMIN, options={"json": {"disabled": False}}),
    "users_add_secret": Rule(
        (404, "not_found"), _ADMIN, parameters=_NOBODY, options={"json": {"label": "x"}}
    ),
    "users_remove_secret": Rule((404, "not_found"), _ADMIN, parameters=_NOBODY),
    "users_end_tokens": Rule((204, None), _ADMIN),
    "audit_list": Rule((200, None), _ADMIN),
    "audit_export": Rule((200, None), _ADMIN),
    "audit_head": Rule((200, None), _ADMIN),
    "health": Rule((200, None), public=True),
    "ready": Rule((200, None), public=True),
    "metrics": Rule((200, None), _ADMIN),
}


@dataclass(frozen=True)
class Operation:
    """One route and method of the app, with the rule for it."""

    id: str
    method: str
    path: str
    rule: Rule


def operations() -> list[Operation]:
    """Return all operations of the app, found by asking it."""
    document = create_app(Settings(jwt_secret=SecretStr("x" * 40))).openapi()
    found = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            name = operation["operationId"]
            assert name in RULES, f"Say in RULES who may use {method.upper()} {path}."
            found.append(Operation(name, method.upper(), path, RULES[name]))
    return found


OPERATIONS = operations()


@dataclass
class Tried:
    """A gateway that has what the requests are about."""

    running: Running
    parameters: dict[str, dict[str, str]]
    """Of the path, by collection."""
    files: dict[str, tuple[str, bytes]]
    upload: dict[str, bytes]

    def send(self, operation: Operation, token: str | None) -> httpx.Response:
        """Send an operation's request, with an Authorization header or without."""
        collection = operation.path.split("/")[1]
        known = {**self.parameters.get(collection, {}), **operation.rule.parameters}
        options = dict(operation.rule.options)
        if operation.id.endswith("_publish"):
            options["files"] = {"file": self.files[collection]}
        if operation.id in self.upload:
            options["content"] = self.upload[operation.id]
        if token is not None:
            options["headers"] = {"Authorization": token.encode("latin-1")}
        path = operation.path.format(**known)
        return self.running.request(operation.method, path, token=None, **options)

    def mismatches(
        self, token: str | None, expected: Callable[[Operation], Answer]
    ) -> list[str]:
        """Return where the answer to a token is not exactly as expected."""
        found = []
        for operation in OPERATIONS:
            answer, wanted = self.send(operation, token), expected(operation)
            got = answer_of(answer)
            if operation.method == "HEAD":
                wanted = (wanted[0], None)
            told = answer.headers.get("www-authenticate", "")
            if got != wanted or not _tells(wanted, operation.rule, token, told):
                found.append(f"{operation.id}: {got} {told!r}, not {wanted}")
        return found


def answer_of(answer: httpx.Response) -> Answer:
    is_problem = answer.headers.get("content-type") == "application/problem+json"
    has_code = is_problem and answer.request.method != "HEAD"
    return answer.status_code, answer.json()["code"] if has_code else None


def _tells(wanted: Answer, rule: Rule, token: str | None, told: str) -> bool:
    """Say whether an answer's ``WWW-Authenticate`` says what to do (RFC 6750)."""
    if wanted[0] == FORBIDDEN[0]:
        scope = told.partition('scope="')[2].removesuffix('"')
        return "insufficient_scope" in told and scope in rule.needs
    if wanted[0] != REFUSED[0]:
        return not told
    has_token = (token or "").lower().startswith("bearer ") and len(token or "") > 7
    return told == ('Bearer error="invalid_token"' if has_token else "Bearer")


@contextmanager
def tried(open_gateway: OpenGateway, **changes: Any) -> Iterator[Tried]:
    """Open a gateway with a model, a dataset, an upload and a spare user."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("a.bin", bytes(LARGE))
    files = {
        "models": ("m.tflite", tflite(1, LARGE)),
        "datasets": ("d.zip", archive.getvalue()),
    }
    dags = {
        name: cid_of_stream(io.BytesIO(content)) for name, (_, content) in files.items()
    }
    part = bytes(MIB) + b"the end"
    upload = cid_of_stream(io.BytesIO(part))
    with open_gateway(**changes) as running:
        for name, (filename, content) in files.items():
            published = running.publish(content, filename, name, name=LINE)
            assert published.status_code == 201, published.text
        sidecar = upload.sidecar() or b""
        begun = running.request("PUT", f"/uploads/{upload.root}", content=sidecar)
        assert begun.status_code == 201, begun.text
        running.gateway.accounts.add(OPERATOR, "spare", permissions=["model:read"])
        of_line = {"name": LINE, "version": "1", "path": "a.bin"}
        yield Tried(
            running,
            {
                **{
                    name: {**of_line, "cid": str(dag.root)}
                    for name, dag in dags.items()
                },
                "uploads": {"cid": str(upload.root), "offset": str(MIB)},
                "admin": {"user": "spare", "secret": "not-there"},
            },
            files,
            {"uploads_begin": sidecar, "uploads_send": part[MIB:]},
        )


def refused(operation: Operation) -> Answer:
    """Return what those who have no valid token get."""
    return operation.rule.answer if operation.rule.public else REFUSED


def with_permission(permission: str) -> Callable[[Operation], Answer]:
    """Return what those who have one permission get."""

    def expected(operation: Operation) -> Answer:
        rule = operation.rule
        scope = ":".join(permission.split(":")[:2])
        line = permission.removeprefix(scope).removeprefix(":")
        if rule.public or (scope in rule.needs and line in {"", LINE}):
            return rule.answer
        if scope in rule.needs:
            return rule.elsewhere or FORBIDDEN
        return FORBIDDEN

    return expected


KEYS = {
    "HS256": {"jwt_secret": "the-secret-of-the-gateway-of-the-matrix"},
    "EdDSA": {
        "jwt_private_key": Ed25519PrivateKey.generate()
        .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        .decode()
    },
}


@pytest.fixture(params=list(KEYS))
def site(request: pytest.FixtureRequest, open_gateway: OpenGateway) -> Iterator[Tried]:
    changes = {"jwt_secret": None, **KEYS[request.param], "metadata_ttl_s": 5}
    with tried(open_gateway, **changes) as found:
        yield found


@dataclass
class Forger:
    """Makes tokens out of a good one, some of them signed with the gateway's key."""

    running: Running

    def __post_init__(self) -> None:
        self.good = self.running.token()
        self.head: dict[str, Any] = jwt.get_unverified_header(self.good)
        self.claims: dict[str, Any] = jwt.decode(
            self.good, options={"verify_signature": False}
        )
        self.key = self.running.settings.signing_key()

    def token(
        self,
        *,
        head: Mapping[str, Any] = {},
        without: str | None = None,
        key: Any = None,
        **claims: Any,
    ) -> str:
        """Return a token with other claims, well signed unless a key is given."""
        payload = {**self.claims, **claims}
        if without is not None:
            del payload[without]
        headers = {**self.head, **head}
        if headers.get("kid") is None:
            del headers["kid"]
        return jwt.encode(
            payload, key or self.key, algorithm=headers["alg"], headers=headers
        )

    def signed_by_hand(self, alg: str, key: bytes) -> str:
        """Return a token with an HMAC under any name, with any bytes as the key."""
        head = {**self.head, "alg": alg}
        text = f"{_segment(head)}.{_segment(self.claims)}"
        digest = hmac.digest(key, text.encode(), hashlib.sha256)
        return f"{text}.{_base64url(digest)}"


def _segment(value: object) -> str:
    return _base64url(json.dumps(value).encode())


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def forged(site: Tried) -> Iterator[tuple[str, str | None]]:
    """Yield Authorization headers that must not let anybody in, by what is wrong."""
    make = Forger(site.running)
    now = int(time.time())
    yield "no token", None
    yield "no scheme", make.good
    yield "an empty token", "Bearer "
    yield "another scheme", f"Basic {make.good}"
    yield "a quoted token", f'Bearer "{make.good}"'
    for name, token in {
        "garbage": "garbage",
        "three parts of garbage": "a.b.c",
        "bytes that are no text": "\xff\xfe",
        "a long one": "a" * 60_000,
        "expired": make.token(iat=now - 900, nbf=now - 900, exp=now - 60),
        "expired beyond any day": make.token(exp=-1),
        "not yet valid": make.token(nbf=now + 60),
        "an endless one": make.token(exp=1 << 60),
        "times that are texts": make.token(exp="never"),
        "another issuer": make.token(iss="elsewhere"),
        "another audience": make.token(aud="elsewhere"),
        "an id for all users": make.token(sub=["ann"]),
        "scopes that are a list": make.token(scope=["admin"]),
        "no key id": make.token(head={"kid": None}),
        "unknown key id": make.token(head={"kid": "another"}),
        "key id that is a path": make.token(head={"kid": "../../dev/null"}),
        "an unknown critical header": make.token(head={"crit": ["b64"], "b64": False}),
        "an encrypted token": make.good + ".e.f",
        "no signature": make.good.rpartition(".")[0] + ".",
        "another's signature": make.good.rpartition(".")[0]
        + "."
        + make.token(sub="bob").rpartition(".")[2],
        "a changed claim": _changed(make.good),
        "another secret": make.token(head={"alg": "HS256"}, key="x" * 40),
        "another Ed25519 key": make.token(
            head={"alg": "EdDSA"}, key=Ed25519PrivateKey.generate()
        ),
        "an RSA key": make.token(head={"alg": "RS256"}, key=_RSA),
        "an RSA key of its own choice": make.token(
            head={
                "alg": "RS256",
                "jwk": jwt.algorithms.RSAAlgorithm.to_jwk(
                    _RSA.public_key(), as_dict=True
                ),
            },
            key=_RSA,
        ),
    }.items():
        yield name, f"Bearer {token}"
    for spelling in ("none", "None", "NONE", "nOnE", ""):
        head, claims = {**make.head, "alg": spelling}, make.claims
        unsigned = f"{_segment(head)}.{_segment(claims)}."
        yield f"algorithm {spelling!r}", f"Bearer {unsigned}"
    for claim in ("sub", "scope", "iat", "nbf", "exp", "jti", "sid", "iss", "aud"):
        yield f"no {claim}", f"Bearer {make.token(without=claim)}"
    if isinstance(make.key, Ed25519PrivateKey):
        public = make.key.public_key()
        for name, key in {
            "PEM": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "bytes": public.public_bytes(Encoding.Raw, PublicFormat.Raw),
            "x": _base64url(
                public.public_bytes(Encoding.Raw, PublicFormat.Raw)
            ).encode(),
        }.items():
            for alg in ("HS256", "EdDSA"):
                signed = make.signed_by_hand(alg, key)
                yield f"{alg} with the public key's {name}", f"Bearer {signed}"
    else:
        for alg in ("HS384", "HS512", "RS256", "EdDSA"):
            signed = make.signed_by_hand(alg, str(make.key).encode())
            yield f"{alg} with the secret", f"Bearer {signed}"


_RSA = rsa.generate_private_key(65537, 2048)


def _changed(token: str) -> str:
    head, claims, signature = token.split(".")
    padded = claims + "=" * (-len(claims) % 4)
    document = json.loads(base64.urlsafe_b64decode(padded)) | {"sub": "spare"}
    return f"{head}.{_segment(document)}.{signature}"


def ended(site: Tried) -> Iterator[tuple[str, str]]:
    """Yield tokens that were good, and whose users, secrets or selves were ended."""
    gateway = site.running.gateway
    accounts = gateway.accounts

    def end(name: str, how: Callable[[dict[str, Any]], object]) -> tuple[str, str]:
        user = name.replace(" ", "-")
        token = site.running.token(user=user)
        assert site.running.get("/auth/me", token=token).status_code == 200
        how(jwt.decode(token, options={"verify_signature": False}) | {"user": user})
        return name, f"Bearer {token}"

    yield end(
        "revoked",
        lambda claims: accounts.revoke_token(
            OPERATOR,
            claims["user"],
            claims["jti"],
            datetime.now(UTC) + timedelta(hours=2),
        ),
    )
    yield end(
        "signed out", lambda claims: accounts.end_tokens(OPERATOR, claims["user"])
    )
    yield end(
        "disabled",
        lambda claims: accounts.change(
            OPERATOR, claims["user"], Changes(disabled=True)
        ),
    )
    yield end(
        "secret removed",
        lambda claims: accounts.remove_secret(OPERATOR, claims["user"], claims["sid"]),
    )
    yield "unknown user", f"Bearer {Forger(site.running).token(sub='not-there')}"
    yield (
        "another's secret",
        f"Bearer {Forger(site.running).token(sub='spare')}",
    )


def test_tokens_that_do_not_hold_open_no_route(
    site: Tried, subtests: pytest.Subtests
) -> None:
    for name, header in [*forged(site), *ended(site)]:
        with subtests.test(name):
            assert site.mismatches(header, refused) == []
    # What was tried is refused because of the token alone.
    everything = f"Bearer {site.running.token()}"
    assert site.mismatches(everything, lambda operation: operation.rule.answer) == []


def test_each_permission_opens_its_routes_and_no_others(
    open_gateway: OpenGateway, subtests: pytest.Subtests
) -> None:
    with tried(open_gateway) as site:
        lines = [
            f"{scope}:{line}"
            for scope in SCOPES
            if scope != "admin"
            for line in (LINE, "another")
        ]
        for permission in [*SCOPES, *lines]:
            with subtests.test(permission):
                token = f"Bearer {site.running.token(permission)}"
                assert site.mismatches(token, with_permission(permission)) == []


def test_permission_that_the_user_has_lost_opens_nothing(
    open_gateway: OpenGateway,
) -> None:
    with tried(open_gateway) as site:
        token = f"Bearer {site.running.token(user='bob')}"
        site.running.gateway.accounts.change(
            OPERATOR, "bob", Changes(permissions=("dataset:read",))
        )
        assert site.mismatches(token, with_permission("dataset:read")) == []


def test_every_route_declares_who_is_let_in() -> None:
    app = create_app(Settings(jwt_secret=SecretStr("x" * 40)))
    assert len(list(routes_of(app))) == len(OPERATIONS) == len(RULES)
    assert undeclared(app) == []


@pytest.mark.parametrize("path", ["/models/{name}/secret-page", "/admin/open"])
def test_route_without_a_declared_permission_is_found(path: str) -> None:
    app = create_app(Settings(jwt_secret=SecretStr("x" * 40)))

    async def forgotten(gateway: deps.GatewayDep) -> str:
        """Do something that nobody said who may do."""
        return str(gateway)

    app.add_api_route(path, forgotten, methods=["GET"])
    assert undeclared(app) == [path]
    rules = {operation.path for operation in OPERATIONS}
    assert path not in rules  # and so operations() fails, too


def routes_of(app: FastAPI) -> Iterator[APIRoute]:
    """Yield all routes of an app, those of its routers too."""

    def inside(routes: Any) -> Iterator[APIRoute]:
        for route in routes:
            if isinstance(route, APIRoute):
                yield route
            elif (inner := getattr(route, "original_router", None)) is not None:
                yield from inside(inner.routes)

    return inside(app.routes)


def undeclared(app: FastAPI) -> list[str]:
    """Return the paths of routes that do not say who is let in."""

    def called(dependant: Any) -> set[Any]:
        return {dependant.call}.union(*map(called, dependant.dependencies))

    return [
        route.path
        for route in routes_of(app)
        if not DEPENDENCIES & called(route.dependant)
    ]
