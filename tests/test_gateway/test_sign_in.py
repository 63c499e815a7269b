from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote_plus

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pydantic import SecretStr

from tests.test_gateway.running import SECRET, OpenGateway, Running, problem
from vision_o3.db import models as tables
from vision_o3.errors import (
    AlreadyExistsError,
    InputError,
    NotFoundError,
    UnauthenticatedError,
)
from vision_o3.gateway import auth
from vision_o3.gateway.auth import Principal, Tokens
from vision_o3.settings import Settings

CLAIMS: dict[str, Any] = {
    "iss": "vision-o3",
    "aud": "vision-o3",
    "sub": "ann",
    "scope": "model:read",
    "jti": "1",
}


@pytest.fixture
def secret(running: Running) -> str:
    return auth.add_user(running.gateway.database, "ann", ["model:write", "model:read"])


def sign_in(running: Running, headers: Any = None, **form: str) -> Any:
    return running.request(
        "POST", "/auth/token", token=None, data=form, headers=headers or {}
    )


@pytest.mark.parametrize(
    ("grant", "user", "password"),
    [
        ("client_credentials", "client_id", "client_secret"),
        ("password", "username", "password"),
    ],
)
def test_credentials_give_a_token_that_opens_the_routes(
    running: Running, secret: str, grant: str, user: str, password: str
) -> None:
    answer = sign_in(running, grant_type=grant, **{user: "ann", password: secret})
    document = answer.json()
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert document["token_type"] == "bearer"
    assert document["expires_in"] == 3600
    assert document["scope"] == "model:read model:write"
    token = document["access_token"]
    assert running.get("/models", token=token).status_code == 200
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["sub"] == "ann"
    assert claims["iss"] == claims["aud"] == "vision-o3"


def test_credentials_may_come_by_basic(running: Running) -> None:
    secret = auth.add_user(running.gateway.database, "a@b", ["model:read"])
    pair = f"{quote_plus('a@b')}:{quote_plus(secret)}".encode()
    headers = {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
    answer = sign_in(running, headers, grant_type="client_credentials")
    assert answer.status_code == 200


@pytest.mark.parametrize("value", ["Basic !", "Basic /w==", "Basic"])
def test_malformed_basic_is_refused(running: Running, value: str) -> None:
    answer = sign_in(running, {"Authorization": value}, grant_type="client_credentials")
    assert problem(answer) == (401, "unauthenticated")


def test_scope_may_be_narrowed_but_not_widened(running: Running, secret: str) -> None:
    form = {
        "grant_type": "client_credentials",
        "client_id": "ann",
        "client_secret": secret,
    }
    answer = sign_in(running, **form, scope="model:read")
    assert answer.json()["scope"] == "model:read"
    token = answer.json()["access_token"]
    refused = running.request("POST", "/models", token=token)
    assert problem(refused) == (403, "permission_denied")
    assert 'scope="model:write"' in refused.headers["www-authenticate"]
    assert sign_in(running, **form, scope=" ").json()["scope"].count(":") == 2
    answer = sign_in(running, **form, scope="model:read admin")
    assert problem(answer) == (403, "permission_denied")
    assert answer.json()["error"] == "invalid_scope"


@pytest.mark.parametrize("user", ["ann", "nobody", "dis.abled", "no such\0name", ""])
def test_every_wrong_sign_in_gets_the_same_answer(
    running: Running, secret: str, user: str
) -> None:
    del secret
    database = running.gateway.database
    disabled = auth.add_user(database, "dis.abled", ["model:read"])
    auth.disable_user(database, "dis.abled")
    given = disabled if user == "dis.abled" else "wrong"
    answer = sign_in(
        running, grant_type="password", username=user or "x", password=given
    )
    assert problem(answer) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["detail"].startswith("There is no such user with this secret")


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({}, "unsupported_grant_type"),
        ({"grant_type": "implicit"}, "unsupported_grant_type"),
        ({"grant_type": "password", "username": "a"}, "invalid_request"),
        ({"grant_type": "client_credentials", "client_secret": "a"}, "invalid_request"),
    ],
)
def test_incomplete_forms_are_told(
    running: Running, form: dict[str, str], error: str
) -> None:
    answer = sign_in(running, **form)
    if not form:
        answer = running.request(
            "POST",
            "/auth/token",
            token=None,
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )
    assert problem(answer) == (422, "invalid_input")
    assert answer.json()["error"] == error


@pytest.mark.parametrize(
    ("content", "content_type", "expected"),
    [
        (b"{}", "application/json", (422, "invalid_input")),
        (b"a=1&a=2", None, (422, "invalid_input")),
        (b"a=%ff", None, (422, "invalid_input")),
        (b"a=\xff", None, (422, "invalid_input")),
        (b"&".join(b"a%d=1" % i for i in range(20)), None, (422, "invalid_input")),
        (b"a=" + b"x" * 20_000, None, (413, "too_large")),
    ],
)
def test_bad_forms_are_refused(
    running: Running,
    content: bytes,
    content_type: str | None,
    expected: tuple[int, str],
) -> None:
    kind = content_type or "application/x-www-form-urlencoded; charset=utf-8"
    answer = running.request(
        "POST", "/auth/token", content=content, headers={"Content-Type": kind}
    )
    assert problem(answer) == expected


def signed(key: Any = SECRET, algorithm: str = "HS256", **changes: Any) -> str:
    now = datetime.now(UTC)
    claims = {**CLAIMS, "iat": now, "exp": now + timedelta(hours=1), **changes}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm)


def ago(**delta: float) -> datetime:
    return datetime.now(UTC) - timedelta(**delta)


BAD_TOKENS: dict[str, Callable[[], str]] = {
    "garbage": lambda: "garbage",
    "expired": lambda: signed(exp=ago(minutes=1)),
    "not yet valid": lambda: signed(nbf=ago(hours=-1)),
    "issued in the future": lambda: signed(iat=ago(hours=-1)),
    "wrong key": lambda: signed("another-secret-that-is-long-enough-too"),
    "unsigned": lambda: signed(None, "none"),
    "another algorithm": lambda: signed(SECRET * 2, "HS512"),
    "EdDSA": lambda: signed(Ed25519PrivateKey.generate(), "EdDSA"),
    "wrong audience": lambda: signed(aud="other"),
    "wrong issuer": lambda: signed(iss="other"),
    "no expiry": lambda: signed(exp=None),
    "no subject": lambda: signed(sub=None),
    "no scope": lambda: signed(scope=None),
    "scope is a list": lambda: signed(scope=["model:read"]),
    "flipped signature": lambda: signed()[:-2] + ("A" if signed()[-2] != "A" else "B"),
}


@pytest.mark.parametrize("kind", BAD_TOKENS)
def test_bad_tokens_are_refused(running: Running, kind: str) -> None:
    assert running.get("/models", token=signed()).status_code == 200
    answer = running.get("/models", token=BAD_TOKENS[kind]())
    assert problem(answer) == (401, "unauthenticated")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic YTpi", "Token x"])
def test_requests_without_a_token_are_refused(running: Running, value: str) -> None:
    answer = running.get("/models", token=None, headers={"Authorization": value})
    assert problem(answer) == (401, "unauthenticated")


def test_expired_token_is_told_to_be_expired(open_gateway: OpenGateway) -> None:
    with open_gateway(token_ttl_s=10, clock=lambda: ago(seconds=20)) as running:
        answer = running.get("/models")
    assert problem(answer) == (401, "unauthenticated")
    assert "expired" in answer.json()["detail"]


def test_eddsa_key_signs_tokens_and_nothing_else_is_accepted(
    make_settings: Callable[..., Settings],
) -> None:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    tokens = Tokens(
        make_settings(jwt_secret=None, jwt_private_key=SecretStr(pem.decode()))
    )
    token = tokens.issue(Principal("ann", frozenset({"model:read"})))
    assert jwt.get_unverified_header(token)["alg"] == "EdDSA"
    assert tokens.check(token) == Principal("ann", frozenset({"model:read"}))
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    # HS256 under the public key: the classic confusion.
    with pytest.raises(UnauthenticatedError):
        tokens.check(signed(raw))


def test_users_are_checked_when_added_and_noted(running: Running) -> None:
    database = running.gateway.database
    secret = auth.add_user(database, "ann", ["model:read", "model:read"])
    assert len(secret) >= 43
    with pytest.raises(AlreadyExistsError):
        auth.add_user(database, "ann", ["model:read"])
    for name in ("", "-x", "a b", "x" * 129, "ann\n"):
        with pytest.raises(InputError):
            auth.add_user(database, name, ["model:read"])
    for scopes in ([], ["model:reed"]):
        with pytest.raises(InputError, match="There are: model:read"):
            auth.add_user(database, "bob", scopes)
    with pytest.raises(NotFoundError):
        auth.disable_user(database, "bob")
    auth.disable_user(database, "ann")
    with database.read() as session:
        events = session.query(tables.AuditEventRow).all()
        users = session.query(tables.UserRow).all()
    assert [event.action for event in events] == ["user.added", "user.disabled"]
    assert [user.permissions for user in users] == [["model:read"]]
    assert users[0].secret_hash.startswith("$argon2id$")


def test_damaged_hash_in_the_database_lets_nobody_in(running: Running) -> None:
    database = running.gateway.database
    secret = auth.add_user(database, "ann", ["model:read"])
    with database.write() as session:
        session.query(tables.UserRow).update({"secret_hash": "damaged"})
    with pytest.raises(UnauthenticatedError):
        auth.authenticate(database, "ann", secret)
