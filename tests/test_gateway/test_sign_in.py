from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote_plus

import jwt
import pytest
from argon2 import PasswordHasher
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pydantic import SecretStr

from tests.test_gateway.running import (
    SECRET,
    OpenGateway,
    Running,
    add_user,
    known_user,
    problem,
)
from vision_o3.db import models as tables
from vision_o3.errors import (
    AlreadyExistsError,
    InputError,
    NotFoundError,
    UnauthenticatedError,
)
from vision_o3.gateway.tokens import Key, Tokens
from vision_o3.registry.accounts import Accounts, Changes
from vision_o3.registry.audit import OPERATOR, Actor
from vision_o3.registry.signing_in import SignedIn, SignIn
from vision_o3.settings import Settings

CLAIMS: dict[str, Any] = {
    "iss": "vision-o3",
    "aud": "vision-o3",
    "sub": "ann",
    "scope": "model:read",
    "jti": "1",
    "sid": "of-ann",
    "gen": 0,
}


@pytest.fixture
def secret(running: Running) -> str:
    return add_user(running.gateway, "ann", ["model:write", "model:read"])


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
    secret = add_user(running.gateway, "a@b", ["model:read"])
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


def test_long_scope_is_refused_not_cut_to_a_wider_one(
    running: Running, secret: str
) -> None:
    form = {
        "grant_type": "client_credentials",
        "client_id": "ann",
        "client_secret": secret,
    }
    padding = " " * ((16 << 10) - len("model:read"))
    answer = sign_in(running, **form, scope=f"{padding}model:read:one")
    assert problem(answer) == (422, "invalid_input")
    answer = sign_in(running, **form, scope=f"{padding}model:read")
    assert answer.json()["scope"] == "model:read"


def test_no_token_is_given_that_would_be_refused_for_its_length(
    running: Running,
) -> None:
    lines = [f"model:read:{'a' * 120}{number:03}" for number in range(200)]
    form = {
        "grant_type": "client_credentials",
        "client_id": "cam",
        "client_secret": add_user(running.gateway, "cam", lines),
    }
    answer = sign_in(running, **form)
    assert problem(answer) == (422, "invalid_input")
    assert "'scope'" in answer.json()["detail"]
    token = sign_in(running, **form, scope=" ".join(lines[:50])).json()["access_token"]
    whoami = running.get("/auth/me", token=token).json()
    assert whoami["permissions"] == lines[:50]


def test_long_tokens_are_accepted_and_take_no_memory(running: Running) -> None:
    user = known_user(running.gateway, "ann")
    tokens, lines = running.gateway.tokens, [f"model:read:{n}" for n in range(1000)]
    for permissions in (["model:read"], lines):
        token = tokens.issue(user, frozenset(permissions)).text
        for _ in range(2):
            assert running.get("/auth/me", token=token).json()["permissions"] == sorted(
                permissions
            )
    (kept,) = tokens._checked.values()
    assert kept.permissions == {"model:read"}


@pytest.mark.parametrize("user", ["ann", "nobody", "dis.abled", "no such\0name", ""])
def test_every_wrong_sign_in_gets_the_same_answer(
    running: Running, secret: str, user: str
) -> None:
    del secret
    disabled = add_user(running.gateway, "dis.abled", ["model:read"])
    accounts = running.gateway.accounts
    accounts.change(OPERATOR, "dis.abled", Changes(disabled=True))
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
        (b"a=" + b"x" * 70_000, None, (413, "too_large")),
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


def signed(
    key: Any = SECRET,
    algorithm: str = "HS256",
    kid: str | None = Key.of(SECRET).kid,
    **changes: Any,
) -> str:
    now = datetime.now(UTC)
    lasting = {"iat": now, "nbf": now, "exp": now + timedelta(hours=1)}
    claims = {**CLAIMS, **lasting, **changes}
    claims = {name: value for name, value in claims.items() if value is not None}
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims, key, algorithm=algorithm, headers=headers)


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
    "no key named": lambda: signed(kid=None),
    "an unknown key named": lambda: signed(kid="other"),
    "no start": lambda: signed(nbf=None),
    "lasts for ever": lambda: signed(exp=10**30),
    "a secret that is gone": lambda: signed(sid="other"),
    "no secret named": lambda: signed(sid=None),
    "an older generation": lambda: signed(gen=-1),
    "a later generation": lambda: signed(gen=1),
    "generation is true": lambda: signed(gen=True),
    "unknown user": lambda: signed(sub="bob"),
    "too long": lambda: signed(scope="model:read " * 4000),
    "no expiry": lambda: signed(exp=None),
    "no subject": lambda: signed(sub=None),
    "no scope": lambda: signed(scope=None),
    "scope is a list": lambda: signed(scope=["model:read"]),
    "flipped signature": lambda: signed()[:-2] + ("A" if signed()[-2] != "A" else "B"),
}


@pytest.mark.parametrize("kind", BAD_TOKENS)
def test_bad_tokens_are_refused(running: Running, kind: str) -> None:
    known_user(running.gateway, "ann")
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


def made_pem() -> tuple[Ed25519PrivateKey, str]:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return key, pem.decode()


ANN = SignedIn("ann", frozenset({"model:read"}), 0, "of-ann", None)


def test_eddsa_key_signs_tokens_and_nothing_else_is_accepted(
    make_settings: Callable[..., Settings],
) -> None:
    key, pem = made_pem()
    tokens = Tokens(make_settings(jwt_secret=None, jwt_private_key=SecretStr(pem)))
    token = tokens.issue(ANN, ANN.granted).text
    head = jwt.get_unverified_header(token)
    assert head["alg"] == "EdDSA"
    assert tokens.check(token).user_id == "ann"
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    # HS256 under the public key: the classic confusion.
    with pytest.raises(UnauthenticatedError):
        tokens.check(signed(raw, kid=head["kid"]))
    with pytest.raises(UnauthenticatedError):
        tokens.check(signed(None, "none", kid=head["kid"]))


def test_keys_are_changed_without_a_gap(make_settings: Callable[..., Settings]) -> None:
    (_, old_pem), (new, new_pem) = made_pem(), made_pem()
    public = (
        new.public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )
    another = "another-secret-that-is-long-enough-too"

    def tokens(secret: str | None = None, **changes: str) -> Tokens:
        values = {name: SecretStr(value) for name, value in changes.items()}
        return Tokens(make_settings(jwt_secret=secret, **values))

    before = tokens(jwt_private_key=old_pem)
    ready = tokens(jwt_private_key=old_pem, jwt_verify_keys=f"{public}\n{another}")
    after = tokens(jwt_private_key=new_pem, jwt_verify_keys=old_pem)
    done = tokens(jwt_private_key=new_pem.replace("\n", "\\n"))
    secret = tokens(another)
    for issuer, accepting in (
        (before, [before, ready, after]),
        (ready, [before, ready, after]),
        (after, [ready, after, done]),
        (secret, [secret, ready]),
    ):
        token = issuer.issue(ANN, ANN.granted).text
        for checker in (before, ready, after, done, secret):
            if checker in accepting:
                assert checker.check(token).user_id == "ann"
            else:
                with pytest.raises(UnauthenticatedError):
                    checker.check(token)


def test_public_keys_are_told_and_secrets_are_not(open_gateway: OpenGateway) -> None:
    _, pem = made_pem()
    other, _ = made_pem()
    public = other.public_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    with open_gateway(
        jwt_secret=None,
        jwt_private_key=SecretStr(pem),
        jwt_verify_keys=SecretStr(f"{SECRET}\n\n{public.decode()}"),
    ) as running:
        document = running.get("/.well-known/jwks.json", token=None).json()
        token = running.token()
    assert len(document["keys"]) == 2
    keys = jwt.PyJWKSet.from_dict(document)
    named = jwt.get_unverified_header(token)["kid"]
    claims = jwt.decode(token, keys[named], algorithms=["EdDSA"], audience="vision-o3")
    assert claims["sub"] == "ann"
    with open_gateway() as running:
        document = running.get("/.well-known/jwks.json", token=None).json()
    assert document == {"keys": []}


@pytest.mark.parametrize("keys", ["short", "-----BEGIN X-----\nno\n-----END X-----"])
def test_keys_that_are_none_are_told_and_not_shown(
    make_settings: Callable[..., Settings], keys: str
) -> None:
    with pytest.raises(ValueError, match="VISION_O3_JWT_VERIFY_KEYS") as raised:
        make_settings(jwt_verify_keys=SecretStr(keys))
    assert keys not in str(raised.value)


def test_tokens_of_other_gateways_are_told_apart(
    open_gateway: OpenGateway, make_settings: Callable[..., Settings]
) -> None:
    changes = {"token_issuer": "https://a.example", "token_audience": "plant-7"}
    with open_gateway(**changes) as running:
        assert running.get("/auth/me").status_code == 200
        foreign = Tokens(make_settings()).issue(
            known_user(running.gateway, "ann"), frozenset({"model:read"})
        )
        answer = running.get("/auth/me", token=foreign.text)
    assert problem(answer) == (401, "unauthenticated")


def test_leeway_is_for_clocks_that_differ(open_gateway: OpenGateway) -> None:
    for leeway, status in ((0, 401), (60, 200)):
        with open_gateway(
            token_leeway_s=leeway, token_ttl_s=10, clock=lambda: ago(seconds=20)
        ) as running:
            assert running.get("/auth/me").status_code == status


def test_less_time_may_be_asked_for_but_not_more(running: Running, secret: str) -> None:
    form = {"grant_type": "password", "username": "ann", "password": secret}
    assert sign_in(running, **form, expires_in="60").json()["expires_in"] == 60
    assert sign_in(running, **form, expires_in="9999999").json()["expires_in"] == 3600
    for wrong in ("0", "-1", "x", "1.5", "٣"):
        answer = sign_in(running, **form, expires_in=wrong)
        assert problem(answer) == (422, "invalid_input")


def test_token_does_not_outlive_its_secret(running: Running) -> None:
    known_user(running.gateway, "ann")
    secret = running.gateway.accounts.add_secret(
        OPERATOR, "ann", label="short", lifetime=timedelta(seconds=100)
    )
    form = {"grant_type": "password", "username": "ann", "password": secret.secret}
    assert 90 <= sign_in(running, **form).json()["expires_in"] <= 100


def test_expired_secret_lets_nobody_in(running: Running) -> None:
    known_user(running.gateway, "ann")
    gateway = running.gateway
    secret = gateway.accounts.add_secret(
        OPERATOR, "ann", label="short", lifetime=timedelta(days=1)
    )
    form = {"grant_type": "password", "username": "ann", "password": secret.secret}
    assert sign_in(running, **form).status_code == 200
    with gateway.database.write() as session:
        session.query(tables.UserSecretRow).filter_by(id=secret.id).update(
            {"expires_at": ago(seconds=1)}
        )
    assert problem(sign_in(running, **form)) == (401, "unauthenticated")


def test_token_is_revoked_by_whoever_has_it(running: Running) -> None:
    token, other = running.token(), running.token()
    for given in (token, token, "garbage", signed(exp=ago(hours=1))):
        answer = running.request(
            "POST", "/auth/revoke", token=None, data={"token": given}
        )
        assert (answer.status_code, answer.content) == (200, b"")
    assert problem(running.get("/auth/me", token=token)) == (401, "unauthenticated")
    assert running.get("/auth/me", token=other).status_code == 200
    answer = running.request("POST", "/auth/revoke", token=None, data={"a": "b"})
    assert problem(answer) == (422, "invalid_input")
    with running.gateway.database.read() as session:
        (event,) = session.query(tables.AuditEventRow).all()
    assert (event.principal, event.action) == ("ann", "token.revoked")
    assert token not in str(event.detail)


def test_whoami_tells_what_the_token_may_do_now(running: Running) -> None:
    token = running.token("model:read", "dataset:read:traffic")
    document = running.get("/auth/me", token=token).json()
    assert document["user"] == "ann"
    assert document["permissions"] == ["dataset:read:traffic", "model:read"]
    running.gateway.accounts.change(
        OPERATOR, "ann", Changes(permissions=("dataset:read",))
    )
    document = running.get("/auth/me", token=token).json()
    assert document["permissions"] == ["dataset:read:traffic"]


def test_users_are_checked_when_added_and_noted(running: Running) -> None:
    gateway = running.gateway
    secret = add_user(gateway, "ann", ["model:read", "model:read"])
    assert secret.startswith("vo3_")
    assert len(secret) >= 43
    with pytest.raises(AlreadyExistsError):
        add_user(gateway, "ann", ["model:read"])
    for name in ("", "-x", "a b", "x" * 129, "ann\n"):
        with pytest.raises(InputError):
            add_user(gateway, name, ["model:read"])
    for scopes in ([], ["model:reed"], ["admin:x"], ["admin:"], ["model:read:UP"]):
        with pytest.raises(InputError):
            add_user(gateway, "bob", scopes)
    with pytest.raises(NotFoundError):
        gateway.accounts.change(OPERATOR, "bob", Changes(disabled=True))
    gateway.accounts.change(OPERATOR, "ann", Changes(disabled=True))
    with gateway.database.read() as session:
        events = session.query(tables.AuditEventRow).all()
        users = session.query(tables.UserRow).all()
        secrets = session.query(tables.UserSecretRow).all()
    assert [event.action for event in events] == ["user.added", "user.disabled"]
    assert [user.permissions for user in users] == [["model:read"]]
    assert secrets[0].secret_hash.startswith("$argon2id$")
    assert secret not in repr([vars(row) for row in (*secrets, *events)])


def test_damaged_hash_in_the_database_lets_nobody_in(running: Running) -> None:
    gateway = running.gateway
    secret = add_user(gateway, "ann", ["model:read"])
    with gateway.database.write() as session:
        session.query(tables.UserSecretRow).update({"secret_hash": "damaged"})
    with pytest.raises(UnauthenticatedError):
        gateway.sign_in.authenticate("ann", secret, Actor("ann"))


def test_secret_of_before_secrets_carried_ids_is_still_right(running: Running) -> None:
    gateway = running.gateway
    known_user(gateway, "ann")
    old = "a-secret-of-forty-three-characters-or-so-xx"
    with gateway.database.write() as session:
        session.query(tables.UserSecretRow).update(
            {"id": "first-1", "secret_hash": PasswordHasher().hash(old)}
        )
    assert gateway.sign_in.authenticate("ann", old, Actor("ann")).user_id == "ann"
    assert isinstance(gateway.sign_in, SignIn)
    assert Accounts(gateway.database).get("ann").secrets[0].last_used_at is not None
