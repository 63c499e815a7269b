"""The routes that manage users, and what becomes of tokens that are out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.test_gateway.running import OpenGateway, Running, known_user, problem
from vision_o3.db import models as tables
from vision_o3.registry.permissions import ROLES


def sign_in(running: Running, user: str, secret: str) -> Any:
    form = {"grant_type": "password", "username": user, "password": secret}
    return running.request("POST", "/auth/token", token=None, data=form)


def add(running: Running, **body: Any) -> Any:
    answer = running.request(
        "POST", "/admin/users", json={"name": "camera-7", "roles": ["device"], **body}
    )
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["location"] == "/admin/users/camera-7"
    return answer.json()


def test_admin_adds_a_user_who_signs_in(running: Running) -> None:
    added = add(running, label="in the camera", expires_in_days=30, max_bytes=7)
    secret = added.pop("secret")
    assert added["granted"] == sorted(ROLES["device"])
    assert (added["max_versions"], added["max_bytes"]) == (None, 7)
    (kept,) = added["secrets"]
    assert (kept["label"], kept["last_used_at"]) == ("in the camera", None)
    assert running.get("/admin/users/camera-7").json() == added
    token = sign_in(running, "camera-7", secret).json()["access_token"]
    assert running.get("/models", token=token).status_code == 200
    refused = running.get("/admin/users", token=token)
    assert problem(refused) == (403, "permission_denied")
    listed = running.get("/admin/users?page_size=1").json()
    assert listed["total"] == 2
    assert listed["items"][0]["name"] == "ann"
    assert secret not in running.get("/admin/users").text
    with running.gateway.database.read() as session:
        (event,) = session.query(tables.AuditEventRow).filter_by(action="user.added")
        assert (event.principal, event.subject) == ("ann", "users/camera-7")
        assert event.request_id


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "invalid_input"),
        ({"name": "x"}, 422, "invalid_input"),
        ({"name": "x", "roles": ["root"]}, 422, "invalid_input"),
        ({"name": "x", "permissions": ["model"]}, 422, "invalid_input"),
        ({"name": "-x", "roles": ["admin"]}, 422, "invalid_input"),
        ({"name": "x\ud800", "roles": ["admin"]}, 422, "invalid_input"),
        ({"name": "x\0", "roles": ["admin"]}, 422, "invalid_input"),
        ({"name": "ann", "roles": ["admin"]}, 409, "already_exists"),
        ({"name": "x", "roles": ["admin"], "own": 1}, 422, "invalid_input"),
        ({"name": "x", "roles": ["admin"], "label": "\n"}, 422, "invalid_input"),
        ({"name": "x", "roles": ["admin"], "max_bytes": -1}, 422, "invalid_input"),
        ({"name": "x", "roles": ["admin"], "max_bytes": 2**63}, 422, "invalid_input"),
        (
            {"name": "x", "roles": ["admin"], "expires_in_days": 1e-300},
            422,
            "invalid_input",
        ),
        (["x"], 422, "invalid_input"),
        ("x", 422, "invalid_input"),
    ],
)
def test_mistakes_are_told(running: Running, body: Any, status: int, code: str) -> None:
    answer = running.request(
        "POST",
        "/admin/users",
        content=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )
    assert problem(answer) == (status, code)
    assert running.get("/admin/users").json()["total"] == 1


@pytest.mark.parametrize("body", [{}, {"disabled": None}, {"roles": None}, {"x": 1}])
def test_change_names_what_to_change(running: Running, body: Any) -> None:
    add(running)
    answer = running.request("PATCH", "/admin/users/camera-7", json=body)
    assert problem(answer) == (422, "invalid_input")


def test_changes_hold_for_tokens_that_are_out(running: Running) -> None:
    secret = add(running, roles=["publisher"])["secret"]
    token = sign_in(running, "camera-7", secret).json()["access_token"]
    path = "/admin/users/camera-7"

    def status(of: str = "/models") -> int:
        return running.get(of, token=token).status_code

    assert status() == 200
    running.request("PATCH", path, json={"roles": [], "permissions": ["dataset:read"]})
    assert (status(), status("/datasets")) == (403, 200)
    running.request("PATCH", path, json={"roles": ["reader"]})
    assert status() == 200
    running.request("PATCH", path, json={"disabled": True})
    answer = running.get("/models", token=token)
    assert problem(answer) == (401, "unauthenticated")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert problem(sign_in(running, "camera-7", secret)) == (401, "unauthenticated")
    running.request("PATCH", path, json={"disabled": False})
    assert status() == 200
    assert running.request("DELETE", f"{path}/tokens").status_code == 204
    assert status() == 401
    token = sign_in(running, "camera-7", secret).json()["access_token"]
    assert status() == 200


def test_removing_a_secret_ends_its_tokens_and_no_others(running: Running) -> None:
    old = add(running)
    path = "/admin/users/camera-7/secrets"
    new = running.request("POST", path, json={"label": "April"})
    assert new.status_code == 201
    assert new.headers["cache-control"] == "no-store"
    tokens = [
        sign_in(running, "camera-7", each["secret"]).json()["access_token"]
        for each in (old, new.json())
    ]
    again = running.request("POST", path, json={"label": "April"})
    assert problem(again) == (409, "already_exists")
    removed = f"{path}/{old['secrets'][0]['id']}"
    assert running.request("DELETE", removed).status_code == 204
    assert problem(running.request("DELETE", removed)) == (404, "not_found")
    statuses = [running.get("/models", token=token).status_code for token in tokens]
    assert statuses == [401, 200]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/admin/users/nobody", None),
        ("PATCH", "/admin/users/nobody", {"disabled": True}),
        ("POST", "/admin/users/nobody/secrets", {"label": "x"}),
        ("DELETE", "/admin/users/nobody/secrets/x", None),
        ("DELETE", "/admin/users/nobody/tokens", None),
        ("GET", "/admin/users/no%00body", None),
        ("GET", "/admin/users/%ED%A0%80", None),
        ("DELETE", "/admin/users/ann/secrets/%00", None),
    ],
)
def test_who_is_not_there_is_not_found(
    running: Running, method: str, path: str, body: Any
) -> None:
    options = {} if body is None else {"json": body}
    assert problem(running.request(method, path, **options)) == (404, "not_found")


def test_admin_may_not_do_more_than_the_scope_says(running: Running) -> None:
    token = running.token("admin")
    assert running.get("/admin/users", token=token).status_code == 200
    assert problem(running.get("/models", token=token)) == (403, "permission_denied")


def test_guessing_is_slowed(open_gateway: OpenGateway) -> None:
    with open_gateway(max_failed_sign_ins=2) as running:
        known_user(running.gateway, "ann")
        for _ in range(2):
            answer = sign_in(running, "ann", "wrong")
            assert problem(answer) == (401, "unauthenticated")
        answer = sign_in(running, "ann", "wrong")
        assert problem(answer) == (429, "sign_in_slowed")
        assert int(answer.headers["retry-after"]) >= 1


def test_attempts_from_an_address_are_counted(open_gateway: OpenGateway) -> None:
    with open_gateway(max_sign_ins_per_minute=3) as running:
        codes = {problem(sign_in(running, "ann", "wrong"))[1] for _ in range(9)}
        assert codes == {"unauthenticated", "rate_limited"}
        answer = running.request(
            "POST", "/auth/revoke", token=None, data={"token": "x"}
        )
        assert problem(answer) == (429, "rate_limited")
        assert running.get("/models").status_code == 200
