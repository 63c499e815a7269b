"""Every route and command that changes something leaves an event, and says who did it.

A route or command that is added must be put into one of the lists here.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from tests.fakes.dataset_files import coco_bytes
from tests.fakes.model_files import tflite
from tests.test_gateway.running import SECRET, OpenGateway, Running, add_user
from tests.test_registry.trails import tampering
from vision_o3.__main__ import main
from vision_o3.db import audit
from vision_o3.db.audit import Event, Filters
from vision_o3.db.engine import Database
from vision_o3.db.migrate import downgrade
from vision_o3.gateway.arguments import add_commands
from vision_o3.gateway.main import create_app
from vision_o3.registry.audit_trail import verify_trail
from vision_o3.sdk.completion import walk
from vision_o3.settings import Settings, variable_of

Capture = pytest.CaptureFixture[str]
Route = tuple[str, str]
COCO = coco_bytes(1, [(1, None)], {1: "x"})
BLOCKED = {"state": "blocked", "reason": "wrong"}
DEPRECATED = {"state": "deprecated", "reason": "old"}
UNSEEN_ROUTES = {
    ("PUT", "/uploads/{cid}"): "nobody but who sends it sees it before it is published",
    ("PUT", "/uploads/{cid}/parts/{offset}"): "likewise",
    ("DELETE", "/uploads/{cid}"): "likewise",
}
UNSEEN_COMMANDS = {
    "serve": "changes nothing by itself",
    "user list": "reads",
    "user show": "reads",
    "admin sweep": "removes what no version names",
    "admin check-store": "removes what it stores",
    "admin scrub": "makes objects what they were",
    "admin mirror": "writes to another store",
    "admin backup": "reads",
    "admin doctor": "reads",
    "admin audit verify": "reads",
    "admin audit list": "reads",
    "admin audit export": "reads",
    "admin audit head": "reads",
}


def new_events(database: Database, after: int) -> tuple[int, list[Event]]:
    """The events that follow an id, and the id of the last one."""
    with database.read() as session:
        last = audit.last_id(session)
        found = audit.events_between(session, Filters(), after, last, 999)
    return last, [event for _, event in found]


# ------------------------------------------------------------------------------ routes


def publish_model(running: Running) -> Any:
    return running.publish(tflite(1))


def publish_dataset(running: Running) -> Any:
    return running.publish(COCO, "d.json", "datasets", name="d")


def ask(method: str, path: str, body: Any = None) -> Callable[[Running], Any]:
    return lambda running: running.request(method, path, json=body)


def remove_secret(running: Running) -> Any:
    kept = running.get("/admin/users/eve").json()["secrets"]
    return running.request("DELETE", f"/admin/users/eve/secrets/{kept[-1]['id']}")


def sign_in_wrongly(running: Running) -> Any:
    form = {"grant_type": "password", "username": "eve", "password": "wrong"}
    return running.request("POST", "/auth/token", token=None, data=form)


def revoke(running: Running) -> Any:
    form = {"token": running.token()}
    return running.request("POST", "/auth/revoke", token=None, data=form)


def withdrawals(collection: str, name: str) -> list[Any]:
    route = f"/{collection}/{{name}}/versions/{{version}}/withdrawal"
    path = f"/{collection}/{name}/versions/1/withdrawal"
    return [
        (("PUT", route), ask("PUT", path, DEPRECATED), 200, ["version.deprecated"]),
        (("PUT", route), ask("PUT", path, BLOCKED), 200, ["version.blocked"]),
        (("DELETE", route), ask("DELETE", path), 204, ["version.unblocked"]),
    ]


USER = "/admin/users/{user}"
SECRET_PATH = f"{USER}/secrets/{{secret}}"
ROUTES: list[tuple[Route, Callable[[Running], Any], int, list[str]]] = [
    (("POST", "/models"), publish_model, 201, ["version.published"]),
    (("POST", "/datasets"), publish_dataset, 201, ["version.published"]),
    *withdrawals("models", "m"),
    *withdrawals("datasets", "d"),
    (
        ("POST", "/admin/users"),
        ask("POST", "/admin/users", {"name": "eve", "roles": ["reader"]}),
        201,
        ["user.added"],
    ),
    (
        ("PATCH", USER),
        ask("PATCH", "/admin/users/eve", {"roles": ["device"], "disabled": True}),
        200,
        ["user.changed", "user.disabled"],
    ),
    (
        ("PATCH", USER),
        ask("PATCH", "/admin/users/eve", {"disabled": False}),
        200,
        ["user.enabled"],
    ),
    (
        ("POST", f"{USER}/secrets"),
        ask("POST", "/admin/users/eve/secrets", {"label": "other"}),
        201,
        ["secret.added"],
    ),
    (("DELETE", SECRET_PATH), remove_secret, 204, ["secret.removed"]),
    (
        ("DELETE", f"{USER}/tokens"),
        ask("DELETE", "/admin/users/eve/tokens"),
        204,
        ["tokens.ended"],
    ),
    (("POST", "/auth/token"), sign_in_wrongly, 401, ["sign_in.failed"]),
    (("POST", "/auth/revoke"), revoke, 200, ["token.revoked"]),
]


def test_every_route_that_may_change_something_is_listed_here() -> None:
    app = create_app(Settings(jwt_secret=SecretStr("x" * 40)))
    found = {
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if method not in {"get", "head"}
    }
    assert len(found) > 10
    assert found - {route for route, *_ in ROUTES} - UNSEEN_ROUTES.keys() == set()


def test_every_change_by_a_route_is_an_event(running: Running) -> None:
    running.token()  # makes the user
    database = running.gateway.database
    last, _ = new_events(database, 0)
    for route, act, status, actions in ROUTES:
        answer = act(running)
        assert answer.status_code == status, (route, answer.text)
        last, events = new_events(database, last)
        assert [event.action for event in events] == actions, route
        for event in events:
            assert event.principal == ("ann" if status != 401 else "anonymous")
            assert event.subject.count("/") >= 1
            assert event.request_id == answer.headers["x-request-id"]
            assert event.address
    assert verify_trail(database).whole


def test_what_is_refused_or_changes_nothing_is_no_event(running: Running) -> None:
    publish_model(running)
    secret = add_user(running.gateway, "eve", ["model:read"])
    database = running.gateway.database
    last, _ = new_events(database, 0)
    assert publish_model(running).status_code == 200
    assert running.publish(b"no model").status_code == 422
    for body in ({"name": "eve", "roles": ["reader"]}, {"name": "bob"}):
        answer = running.request("POST", "/admin/users", json=body)
        assert answer.status_code in {409, 422}
    running.request("PATCH", "/admin/users/eve", json={"permissions": ["model:read"]})
    running.request("DELETE", "/admin/users/nobody/tokens")
    running.request("DELETE", "/models/m/versions/1/withdrawal")
    form = {"grant_type": "password", "username": "eve", "password": secret}
    signed_in = running.request("POST", "/auth/token", token=None, data=form)
    assert signed_in.status_code == 200
    assert new_events(database, last) == (last, [])


# ---------------------------------------------------------------------------- commands


def test_every_command_that_may_change_something_is_listed_here() -> None:
    parser = ArgumentParser("vision-o3")
    add_commands(parser.add_subparsers())
    found = {each.words for each in walk(parser) if not each.commands}
    assert len(found) > 15
    known = {words for words, *_ in COMMANDS} | UNSEEN_COMMANDS.keys()
    assert found - known == set()


COMMANDS: list[tuple[str, str, list[str]]] = [
    ("user add", "eve --role reader", ["user.added"]),
    ("user change", "eve --role device", ["user.changed"]),
    ("user disable", "eve", ["user.disabled"]),
    ("user enable", "eve", ["user.enabled"]),
    ("user add-secret", "eve --label other", ["secret.added"]),
    ("user remove-secret", "eve SECRET", ["secret.removed"]),
    ("user end-tokens", "eve", ["tokens.ended"]),
    ("admin deprecate", "models/m 1 --reason old", ["version.deprecated"]),
    ("admin block", "models/m 1 --reason wrong", ["version.blocked"]),
    ("admin unblock", "models/m 1 --reason right", ["version.unblocked"]),
    ("admin purge", "models/m 1 --reason law --yes", ["version.purged"]),
    ("admin rebuild-index", "", ["index.rebuilt"]),
    ("admin restore", "BACKUP", ["user.restored", "audit.restored"]),
    ("admin migrate", "", ["database.migrated"]),
]


class Commands:
    """Runs commands on one database, and brings about what they are to change."""

    def __init__(self, url: str, backup: Path, capture: Capture) -> None:
        self.database = Database(url)
        self._url = url
        self._capture = capture
        self._words = {"BACKUP": str(backup), "SECRET": ""}
        capture.readouterr()

    def run(self, command: str) -> Any:
        words = [self._words.get(word, word) for word in command.split()]
        code = main([*words, "--json"])
        output = self._capture.readouterr()
        assert code == 0, (command, output)
        return json.loads(output.out)

    def prepare(self, command: str) -> None:
        """Bring about that a command has something to change."""
        if command == "user remove-secret":
            kept = self.run("user show eve")["secrets"]
            self._words["SECRET"] = kept[-1]["id"]
        elif command == "admin rebuild-index":
            self.run("admin backup BACKUP")
            with tampering(self.database) as session:
                for table in ("dataset_versions", "datasets", "user_secrets", "users"):
                    session.execute(text(f"DELETE FROM {table}"))  # noqa: S608 - ours
        elif command == "admin migrate":
            downgrade(self._url, "0005")

    def events_of(self, command: str) -> list[Event]:
        """Run a command; return the events that it left."""
        last, _ = new_events(self.database, 0)
        self.run(command)
        return new_events(self.database, last)[1]


@pytest.fixture
def commands(
    tmp_path: Path,
    open_gateway: OpenGateway,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> Iterator[Commands]:
    """Commands on a database with a model and a dataset."""
    url = f"sqlite:///{tmp_path}/registry.db"
    for field in Settings.model_fields:
        monkeypatch.delenv(variable_of(field), raising=False)
    monkeypatch.setenv("VISION_O3_DATABASE_URL", url)
    monkeypatch.setenv("VISION_O3_STORE", str(tmp_path / "objects"))
    monkeypatch.setenv("VISION_O3_JWT_SECRET", SECRET)
    with open_gateway(database_url=url) as running:
        publish_model(running)
        publish_dataset(running)
    made = Commands(url, tmp_path / "backup", capsys)
    yield made
    made.database.close()


def test_every_change_by_a_command_is_an_event(commands: Commands) -> None:
    for command, arguments, actions in COMMANDS:
        commands.prepare(command)
        events = commands.events_of(f"{command} {arguments}")
        assert sorted({e.action for e in events}) == sorted(actions), command
        assert {event.principal for event in events} == {"operator"}
        assert all(event.subject for event in events)
    verified = verify_trail(commands.database)
    assert verified.whole, verified


@pytest.mark.parametrize(
    "command",
    ["user list", "admin sweep", "admin check-store", "admin scrub", "admin migrate"],
)
def test_commands_that_change_nothing_leave_no_event(
    commands: Commands, command: str
) -> None:
    assert commands.events_of(command) == []
