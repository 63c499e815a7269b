from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.test_integration.gateways import postgres_database
from vision_o3.db import models as tables
from vision_o3.db.changes import ChangeListener, CommitCounter
from vision_o3.db.engine import Database
from vision_o3.db.migrate import migrate
from vision_o3.errors import (
    AlreadyExistsError,
    InputError,
    NotFoundError,
    SignInSlowedError,
    UnauthenticatedError,
)
from vision_o3.registry.accounts import Accounts, Changes, secret_id_of
from vision_o3.registry.audit import OPERATOR, Actor
from vision_o3.registry.permissions import ROLES
from vision_o3.registry.signing_in import (
    FORGOTTEN_AFTER,
    SignIn,
    network_of,
    remove_outdated,
)
from vision_o3.registry.standing import TOLD_S, UNTOLD_S, Standing, Standings

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
HERE = Actor("", "192.0.2.7", "request-1")
THERE = Actor("", "198.51.100.9", "request-2")
MOST = 3


class Clock:
    def __init__(self) -> None:
        self.passed = timedelta()

    def __call__(self, _: object = None) -> datetime:
        return NOW + self.passed

    def monotonic(self) -> float:
        return self.passed.total_seconds()

    def passes(self, **delta: float) -> None:
        self.passed += timedelta(**delta)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)]
)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/registry.db"
    else:
        with postgres_database() as made:
            yield made


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    migrate(url)
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def accounts(database: Database) -> Accounts:
    return Accounts(database)


@pytest.fixture
def sign_in(database: Database, clock: Clock) -> SignIn:
    return SignIn(database, max_failures=MOST, clock=clock)


def events_of(database: Database) -> list[tuple[str, str, str]]:
    with database.read() as session:
        rows = session.query(tables.AuditEventRow).order_by(tables.AuditEventRow.seq)
        return [(row.principal, row.action, row.subject) for row in rows]


def fail(sign_in: SignIn, user: str = "ann", actor: Actor = HERE) -> None:
    with pytest.raises(UnauthenticatedError):
        sign_in.authenticate(user, "wrong", actor)


# ------------------------------------------------------------------------- accounts


def test_roles_and_permissions_add_up(accounts: Accounts) -> None:
    user, _ = accounts.add(
        OPERATOR,
        "camera-7",
        roles=["device", "device"],
        permissions=["dataset:read:traffic"],
        quotas={"max_versions": 5, "max_bytes": 0},
    )
    assert user.roles == ("device",)
    assert user.granted == {"model:read", "dataset:read:traffic"}
    assert (user.max_versions, user.max_bytes) == (5, 0)
    assert accounts.get("camera-7") == user
    assert accounts.list().items == (user,)
    changed = accounts.change(
        Actor("root"), "camera-7", Changes(roles=("admin",), quotas={"max_bytes": None})
    )
    assert changed.granted == {*ROLES["admin"], "dataset:read:traffic"}
    assert (changed.max_versions, changed.max_bytes) == (5, None)


def test_every_change_is_in_the_audit_trail(
    accounts: Accounts, database: Database
) -> None:
    root = Actor("root", "192.0.2.1", "request-9")
    _, first = accounts.add(OPERATOR, "ann", roles=["reader"])
    second = accounts.add_secret(root, "ann", label="next")
    accounts.remove_secret(root, "ann", first.id)
    accounts.change(root, "ann", Changes(disabled=True))
    accounts.change(root, "ann", Changes(disabled=True, roles=("reader",)))
    accounts.change(root, "ann", Changes(disabled=False, roles=("publisher",)))
    accounts.end_tokens(root, "ann")
    accounts.revoke_token(Actor("ann"), "ann", "jti-1", NOW)
    accounts.revoke_token(Actor("ann"), "ann", "jti-1", NOW)
    assert events_of(database) == [
        ("operator", "user.added", "users/ann"),
        ("root", "secret.added", "users/ann"),
        ("root", "secret.removed", "users/ann"),
        ("root", "user.disabled", "users/ann"),
        ("root", "user.changed", "users/ann"),
        ("root", "user.enabled", "users/ann"),
        ("root", "tokens.ended", "users/ann"),
        ("ann", "token.revoked", "users/ann"),
    ]
    with database.read() as session:
        rows = session.query(tables.AuditEventRow).all()
        told = repr([(row.detail, row.subject) for row in rows])
        assert {row.address for row in rows} == {None, "192.0.2.1"}
    assert second.id in told
    assert second.secret not in told
    assert second.secret not in repr(second)


def test_secrets_are_replaced_without_a_gap(
    accounts: Accounts, sign_in: SignIn
) -> None:
    _, old = accounts.add(OPERATOR, "ann", roles=["reader"])
    new = accounts.add_secret(OPERATOR, "ann", label="March")
    assert secret_id_of(new.secret) == new.id
    for secret in (old, new):
        found = sign_in.authenticate("ann", secret.secret, HERE)
        assert (found.user_id, found.secret_id) == ("ann", secret.id)
    accounts.remove_secret(OPERATOR, "ann", old.id)
    with pytest.raises(UnauthenticatedError):
        sign_in.authenticate("ann", old.secret, HERE)
    assert sign_in.authenticate("ann", new.secret, HERE).secret_id == new.id
    (kept,) = accounts.get("ann").secrets
    assert (kept.label, kept.last_used_at, kept.last_used_from) == (
        "March",
        NOW,
        "192.0.2.7",
    )


def test_secret_is_its_users_alone(accounts: Accounts, sign_in: SignIn) -> None:
    _, of_ann = accounts.add(OPERATOR, "ann", roles=["reader"])
    accounts.add(OPERATOR, "bob", roles=["admin"])
    with pytest.raises(UnauthenticatedError):
        sign_in.authenticate("bob", of_ann.secret, HERE)
    with pytest.raises(NotFoundError):
        accounts.remove_secret(OPERATOR, "bob", of_ann.id)


@pytest.mark.parametrize("label", ["", " ", "x" * 65, "a\nb", "a\0b", "\x1b[2J"])
def test_labels_are_printable(accounts: Accounts, label: str) -> None:
    accounts.add(OPERATOR, "ann", roles=["reader"])
    with pytest.raises(InputError, match="label"):
        accounts.add_secret(OPERATOR, "ann", label=label)


@pytest.mark.parametrize("name", ["operator", "Operator", "anonymous", "metrics"])
def test_no_user_passes_for_whom_the_audit_trail_names(
    accounts: Accounts, database: Database, name: str
) -> None:
    with pytest.raises(InputError, match="another name"):
        accounts.add(OPERATOR, name, roles=["reader"])
    assert not events_of(database)


def test_mistakes_change_nothing(accounts: Accounts, database: Database) -> None:
    accounts.add(OPERATOR, "ann", roles=["reader"])
    before = events_of(database)
    with pytest.raises(AlreadyExistsError):
        accounts.add(OPERATOR, "ann", roles=["reader"])
    with pytest.raises(AlreadyExistsError):
        accounts.add_secret(OPERATOR, "ann", label="first")
    with pytest.raises(InputError):
        accounts.add(OPERATOR, "bob")
    for wrong in (
        Changes(roles=("owner",)),
        Changes(permissions=("model:read:",)),
        Changes(permissions=("model:read:a/b",)),
        Changes(permissions=tuple(f"model:read:m{i}" for i in range(201))),
        Changes(quotas={"max_bytes": -1}),
    ):
        with pytest.raises(InputError):
            accounts.change(OPERATOR, "ann", wrong)
    for lifetime in (timedelta(0), timedelta(days=-1), timedelta.max):
        with pytest.raises(InputError):
            accounts.add_secret(OPERATOR, "ann", label="x", lifetime=lifetime)
    for user in ("bob", "a\0b", "\ud800"):
        with pytest.raises(NotFoundError):
            accounts.get(user)
        with pytest.raises(NotFoundError):
            accounts.change(OPERATOR, user, Changes(disabled=True))
        with pytest.raises(NotFoundError):
            accounts.end_tokens(OPERATOR, user)
    assert events_of(database) == before


def test_user_has_only_so_many_secrets(accounts: Accounts) -> None:
    accounts.add(OPERATOR, "ann", roles=["reader"])
    for number in range(19):
        accounts.add_secret(OPERATOR, "ann", label=f"{number}")
    with pytest.raises(InputError, match="Remove one first"):
        accounts.add_secret(OPERATOR, "ann", label="one more")


def test_writers_at_once_keep_one_chain(accounts: Accounts, database: Database) -> None:
    accounts.add(OPERATOR, "ann", roles=["reader"])

    def work(number: int) -> None:
        accounts.change(
            OPERATOR, "ann", Changes(permissions=(f"model:read:m{number}",))
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))
    with database.read() as session:
        seqs = [row.seq for row in session.query(tables.AuditEventRow)]
    assert sorted(seqs) == list(range(1, 18))


# --------------------------------------------------------------------------- slowing


def test_failures_of_an_account_are_slowed_and_forgotten(
    accounts: Accounts, sign_in: SignIn, clock: Clock
) -> None:
    accounts.add(OPERATOR, "ann", roles=["reader"])
    for _ in range(MOST):
        fail(sign_in)
    for expected_s in (1, 2, 4):
        with pytest.raises(SignInSlowedError) as slowed:
            sign_in.authenticate("ann", "wrong", THERE)
        assert slowed.value.values["retry_after_s"] == expected_s
        clock.passes(seconds=expected_s)
        fail(sign_in, actor=THERE)
    clock.passes(minutes=15, seconds=1)
    for _ in range(MOST):
        fail(sign_in)


def test_guesses_at_a_secret_of_a_known_id_are_slowed(
    accounts: Accounts, sign_in: SignIn, clock: Clock
) -> None:
    _, secret = accounts.add(OPERATOR, "ann", roles=["reader"])
    near = secret.secret[:-4] + "AAAA"
    for actor in (HERE, THERE, HERE):
        with pytest.raises(UnauthenticatedError):
            sign_in.authenticate("ann", near, actor)
    for guess in (near, secret.secret):
        with pytest.raises(SignInSlowedError):
            sign_in.authenticate("ann", guess, HERE)
    clock.passes(seconds=1)
    assert sign_in.authenticate("ann", secret.secret, HERE).user_id == "ann"
    for _ in range(MOST):  # a success forgets the failures of the secret
        with pytest.raises(UnauthenticatedError):
            sign_in.authenticate("ann", near, THERE)


def test_wait_has_a_limit(accounts: Accounts, sign_in: SignIn, clock: Clock) -> None:
    accounts.add(OPERATOR, "ann", roles=["reader"])
    for _ in range(MOST + 12):
        fail(sign_in)
        clock.passes(minutes=5)
    fail(sign_in)
    with pytest.raises(SignInSlowedError) as slowed:
        sign_in.authenticate("ann", "x", HERE)
    assert slowed.value.values["retry_after_s"] == 300


def test_failures_from_an_address_are_slowed_whoever_is_tried(
    accounts: Accounts, sign_in: SignIn
) -> None:
    accounts.add(OPERATOR, "ann", roles=["reader"])
    for number in range(MOST):
        fail(sign_in, f"nobody-{number}")
    with pytest.raises(SignInSlowedError):
        sign_in.authenticate("ann", "wrong", HERE)
    fail(sign_in, "ann", THERE)


def test_nobody_is_locked_out_by_others(accounts: Accounts, sign_in: SignIn) -> None:
    _, secret = accounts.add(OPERATOR, "ann", roles=["reader"])
    for actor in (HERE, THERE):
        for _ in range(MOST):
            with pytest.raises((UnauthenticatedError, SignInSlowedError)):
                sign_in.authenticate("ann", "wrong", actor)
    for actor in (HERE, THERE):
        assert sign_in.authenticate("ann", secret.secret, actor).user_id == "ann"


@pytest.mark.parametrize("user", ["ann", "disabled", "nobody", "no name\0", ""])
def test_every_failure_is_slowed_alike(
    accounts: Accounts, sign_in: SignIn, user: str
) -> None:
    accounts.add(OPERATOR, "ann", roles=["reader"])
    accounts.add(OPERATOR, "disabled", roles=["reader"])
    accounts.change(OPERATOR, "disabled", Changes(disabled=True))
    for _ in range(MOST):
        fail(sign_in, user)
    with pytest.raises(SignInSlowedError):
        sign_in.authenticate(user, "wrong", HERE)


def test_failures_are_audited_and_names_nobody_has_are_not(
    accounts: Accounts, database: Database, sign_in: SignIn
) -> None:
    accounts.add(OPERATOR, "ann", roles=["reader"])
    fail(sign_in)
    fail(sign_in, "a-secret-typed-into-the-wrong-field")
    assert events_of(database)[1:] == [
        ("anonymous", "sign_in.failed", "users/ann"),
        ("anonymous", "sign_in.failed", "users"),
    ]
    with database.read() as session:
        (row, _) = session.query(tables.AuditEventRow).filter_by(principal="anonymous")
        assert (row.address, row.request_id) == ("192.0.2.7", "request-1")


def test_guesses_at_once_are_all_counted(
    accounts: Accounts, database: Database, clock: Clock
) -> None:
    accounts.add(OPERATOR, "ann", roles=["reader"])
    patient = SignIn(database, max_failures=1000, clock=clock)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: fail(patient), range(12)))
    with database.read() as session:
        rows = session.query(tables.SignInFailureRow).all()
    assert {row.subject: row.failures for row in rows} == {
        "user:ann": 12,
        "address:192.0.2.7": 12,
    }


def test_sweep_removes_what_is_outdated(
    accounts: Accounts, database: Database, sign_in: SignIn, clock: Clock
) -> None:
    accounts.add(OPERATOR, "ann", roles=["reader"])
    long_ago = datetime.now(UTC) - 3 * FORGOTTEN_AFTER
    clock.passed = long_ago - NOW
    fail(sign_in)
    accounts.revoke_token(OPERATOR, "ann", "old", long_ago)
    accounts.revoke_token(OPERATOR, "ann", "new", datetime.now(UTC) + FORGOTTEN_AFTER)
    clock.passed = datetime.now(UTC) - NOW
    fail(sign_in, "bob", THERE)
    with database.write() as session:
        assert remove_outdated(session) == 3
    with database.read() as session:
        assert [row.jti for row in session.query(tables.RevokedTokenRow)] == ["new"]
        failures = {row.subject for row in session.query(tables.SignInFailureRow)}
    assert failures == {"user:bob", "address:198.51.100.9"}


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("192.0.2.7:51234", "192.0.2.7"),
        ("[2001:db8:1:2:3:4:5:6]:51234", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::]", "2001:db8:1:2::/64"),
        (None, "unknown"),
        ("", "unknown"),
        ("x" * 100, "x" * 64),
    ],
)
def test_attempts_are_counted_by_network(address: str | None, network: str) -> None:
    assert network_of(address) == network


# ------------------------------------------------------------------------- standings


def followed(url: str, database: Database) -> Iterator[Standings]:
    if database.dialect == "sqlite":
        counter = CommitCounter(url)
        yield Standings(database, commits=counter)
        counter.close()
        return
    standings = Standings(database)
    live = threading.Event()

    def reset(told: bool) -> None:
        standings.reset(told)
        live.set()

    listener = ChangeListener(
        url, on_change=lambda _, name: standings.changed(name), on_reset=reset
    )
    assert live.wait(20)
    yield standings
    listener.close()


@pytest.fixture
def standings(url: str, database: Database) -> Iterator[Standings]:
    yield from followed(url, database)


def wait_until_forgotten(standings: Standings, user: str) -> None:
    """Return when a change was told; on SQLite that is at once."""
    ended = threading.Event()
    for _ in range(2000):
        if standings.kept(user) is None:
            return
        ended.wait(0.01)
    pytest.fail("the change was not told")


def wait_until_kept(standings: Standings, user: str) -> None:
    """Return when an answer is kept: messages of before may still be on their way."""
    ended = threading.Event()
    for _ in range(2000):
        looked_up = standings.look_up(user)
        if standings.kept(user) == looked_up:
            return
        ended.wait(0.01)
    pytest.fail("no answer is kept")


def test_what_another_gateway_changes_is_known_here(
    accounts: Accounts, standings: Standings
) -> None:
    _, secret = accounts.add(OPERATOR, "ann", roles=["reader"])
    assert standings.look_up("ann") == Standing(
        enabled=True,
        granted=frozenset(ROLES["reader"]),
        secret_ids=frozenset({secret.id}),
    )
    wait_until_kept(standings, "ann")
    for change, seen in (
        (lambda: accounts.change(OPERATOR, "ann", Changes(disabled=True)), "enabled"),
        (lambda: accounts.end_tokens(OPERATOR, "ann"), "generation"),
        (lambda: accounts.revoke_token(OPERATOR, "ann", "j", NOW), "revoked"),
        (lambda: accounts.remove_secret(OPERATOR, "ann", secret.id), "secret_ids"),
    ):
        wait_until_kept(standings, "ann")
        before = getattr(standings.look_up("ann"), seen)
        change()
        wait_until_forgotten(standings, "ann")
        assert getattr(standings.look_up("ann"), seen) != before


def test_nobody_has_no_standing(standings: Standings) -> None:
    assert not standings.look_up("nobody").enabled
    assert not standings.look_up("no\0body").enabled


def test_standing_is_kept_for_a_while_only(
    accounts: Accounts, database: Database, clock: Clock
) -> None:
    accounts.add(OPERATOR, "ann", roles=["reader"])
    standings = Standings(database, clock=clock.monotonic)
    for told, keep_s in ((False, UNTOLD_S), (True, TOLD_S)):
        standings.reset(told)
        assert standings.kept("ann") is None
        standings.look_up("ann")
        clock.passes(seconds=keep_s - 0.1)
        assert standings.kept("ann") is not None
        clock.passes(seconds=0.2)
        assert standings.kept("ann") is None


def test_answer_of_before_a_change_is_not_kept(
    accounts: Accounts, database: Database
) -> None:
    accounts.add(OPERATOR, "ann", roles=["reader"])

    class Overtaken(Standings):
        def _read(self, user_id: str) -> Standing:
            standing = super()._read(user_id)
            self.changed(user_id)  # while the answer is on its way
            return standing

    standings = Overtaken(database)
    assert standings.look_up("ann").enabled
    assert standings.kept("ann") is None
