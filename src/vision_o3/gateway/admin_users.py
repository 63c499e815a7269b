"""The operator's commands for users and secrets."""

from __future__ import annotations

import json
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vision_o3.errors import InputError
from vision_o3.gateway.logs import log_to_stderr
from vision_o3.gateway.opening import open_database
from vision_o3.registry.accounts import FIRST_LABEL, Accounts, Changes
from vision_o3.registry.audit import OPERATOR
from vision_o3.settings import load_settings

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from vision_o3.registry.accounts import NewSecret, User

_PAGE = 200


def add_user(arguments: Namespace) -> int:
    """Add a user; print the secret, which is not kept."""
    with _accounts() as accounts:
        user, secret = accounts.add(
            OPERATOR,
            arguments.name,
            roles=arguments.role,
            permissions=arguments.scope,
            quotas=_quotas(arguments),
            label=arguments.label or FIRST_LABEL,
            lifetime=_lifetime(arguments),
        )
    scopes = sorted(user.granted)
    if arguments.json:
        _print_json(
            {
                "user": user.id,
                "roles": list(user.roles),
                "scopes": scopes,
                **_secret_document(secret),
            }
        )
        return 0
    print(f"User {user.id!r} was added and may {' '.join(scopes)}.")
    _print_secret(secret)
    return 0


def list_users(arguments: Namespace) -> int:
    """Print the users: name, permissions, since when, disabled or not."""
    with _accounts() as accounts:
        users = list(_all_users(accounts))
    if arguments.json:
        _print_json([_document(user) for user in users])
        return 0
    for user in users:
        what = " ".join([*user.roles, *user.permissions])
        disabled = "" if user.disabled_at is None else "   disabled"
        print(f"{user.id}   {what}   since {user.created_at:%Y-%m-%d}{disabled}")
    if not users:
        print("There are no users yet: vision-o3 user add NAME --role publisher")
    return 0


def show_user(arguments: Namespace) -> int:
    """Print a user with their secrets."""
    with _accounts() as accounts:
        user = accounts.get(arguments.name)
    _show(user, as_json=arguments.json)
    return 0


def change_user(arguments: Namespace) -> int:
    """Change what a user may do; print them as they are now."""
    changes = Changes(
        roles=None if arguments.role is None else _some(arguments.role),
        permissions=None if arguments.scope is None else _some(arguments.scope),
        quotas=_quotas(arguments),
    )
    with _accounts() as accounts:
        user = accounts.change(OPERATOR, arguments.name, changes)
    _show(user, as_json=arguments.json)
    return 0


def disable_user(arguments: Namespace) -> int:
    """Let a user in no more, nor their tokens."""
    return _switch(
        arguments, disabled=True, said="is not let in any more, nor are their tokens."
    )


def enable_user(arguments: Namespace) -> int:
    """Let a user in again."""
    return _switch(arguments, disabled=False, said="may sign in again.")


def end_tokens(arguments: Namespace) -> int:
    """End all tokens that a user has now."""
    with _accounts() as accounts:
        accounts.end_tokens(OPERATOR, arguments.name)
    if arguments.json:
        _print_json({"user": arguments.name, "tokens_ended": True})
    else:
        print(f"The tokens of {arguments.name!r} are not accepted any more.")
    return 0


def add_secret(arguments: Namespace) -> int:
    """Add a secret to those that a user has; print it, as it is not kept."""
    with _accounts() as accounts:
        secret = accounts.add_secret(
            OPERATOR,
            arguments.name,
            label=arguments.label,
            lifetime=_lifetime(arguments),
        )
    if arguments.json:
        _print_json({"user": arguments.name, **_secret_document(secret)})
    else:
        print(f"{arguments.name!r} has another secret, {secret.label!r}.")
        _print_secret(secret)
    return 0


def remove_secret(arguments: Namespace) -> int:
    """Remove a secret; tokens that were issued for it end."""
    with _accounts() as accounts:
        accounts.remove_secret(OPERATOR, arguments.name, arguments.id)
    if arguments.json:
        _print_json({"user": arguments.name, "removed": arguments.id})
    else:
        print(f"The secret {arguments.id} of {arguments.name!r} was removed.")
    return 0


@contextmanager
def _accounts() -> Iterator[Accounts]:
    log_to_stderr()
    with open_database(load_settings()) as database:
        yield Accounts(database)


def _all_users(accounts: Accounts) -> Iterator[User]:
    page = accounts.list(page_size=_PAGE)
    yield from page.items
    while page.page * _PAGE < page.total:
        page = accounts.list(page=page.page + 1, page_size=_PAGE)
        yield from page.items


def _switch(arguments: Namespace, *, disabled: bool, said: str) -> int:
    with _accounts() as accounts:
        accounts.change(OPERATOR, arguments.name, Changes(disabled=disabled))
    if arguments.json:
        _print_json({"user": arguments.name, "disabled": disabled})
    else:
        print(f"User {arguments.name!r} {said}")
    return 0


def _some(given: list[str]) -> tuple[str, ...]:
    """Return what was given; a single ``none`` means nothing."""
    return () if given == ["none"] else tuple(given)


def _quotas(arguments: Namespace) -> dict[str, int | None]:
    given = {name: getattr(arguments, name) for name in ("max_versions", "max_bytes")}
    return {name: value for name, value in given.items() if value is not None}


def _lifetime(arguments: Namespace) -> timedelta | None:
    days: float | None = arguments.expires_days
    try:
        return None if days is None else timedelta(days=days)
    except (ValueError, OverflowError):
        raise InputError(
            f"A secret cannot last for {days} days. Leave --expires-days out: it "
            "lasts until it is removed.",
        ) from None


def _show(user: User, *, as_json: bool) -> None:
    if as_json:
        _print_json(_document(user))
        return
    disabled = user.disabled_at
    print(f"{user.id}, since {user.created_at:%Y-%m-%d}")
    if disabled is not None:
        print(f"  disabled since {disabled:%Y-%m-%d %H:%M} UTC")
    print(f"  roles: {' '.join(user.roles) or 'none'}")
    print(f"  permissions beside them: {' '.join(user.permissions) or 'none'}")
    for name, quota in (("versions", user.max_versions), ("bytes", user.max_bytes)):
        if quota is not None:
            print(f"  may publish {quota or 'any number of'} {name}")
    for secret in user.secrets:
        until = "" if secret.expires_at is None else f", until {secret.expires_at:%F}"
        used = "never used"
        if secret.last_used_at is not None:
            used = f"last used {secret.last_used_at:%F %R} from {secret.last_used_from}"
        print(f"  secret {secret.id}  {secret.label!r}{until}; {used}")


def _document(user: User) -> dict[str, Any]:
    return {
        "user": user.id,
        "roles": list(user.roles),
        "permissions": list(user.permissions),
        "scopes": sorted(user.granted),
        "created_at": user.created_at.isoformat(timespec="seconds"),
        "disabled": user.disabled_at is not None,
        "max_versions": user.max_versions,
        "max_bytes": user.max_bytes,
        "secrets": [
            {
                "id": secret.id,
                "label": secret.label,
                "created_at": _text(secret.created_at),
                "expires_at": _text(secret.expires_at),
                "last_used_at": _text(secret.last_used_at),
                "last_used_from": secret.last_used_from,
            }
            for secret in user.secrets
        ],
    }


def _text(moment: Any) -> str | None:  # noqa: ANN401 - a datetime, or none
    return None if moment is None else moment.isoformat(timespec="seconds")


def _secret_document(secret: NewSecret) -> dict[str, Any]:
    return {
        "secret_id": secret.id,
        "label": secret.label,
        "expires_at": _text(secret.expires_at),
        "secret": secret.secret,
    }


def _print_secret(secret: NewSecret) -> None:
    until = (
        "" if secret.expires_at is None else f" It lasts until {secret.expires_at:%F}."
    )
    print(f"The secret, shown only now:{until}")
    print(secret.secret)


def _print_json(document: object) -> None:
    print(json.dumps(document))
