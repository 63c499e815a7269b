"""Scopes, roles, and what a principal may do.

A permission is a scope (``model:read``), or a scope for one line of its collection
(``model:read:yolov11-nano``). Roles are named sets of permissions; they are looked up
whenever they are used, so that a role that grows here grows for all who have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vision_o3.errors import InputError, InvalidNameError, PermissionDeniedError
from vision_o3.naming import parse_name
from vision_o3.registry.audit import Actor

if TYPE_CHECKING:
    from collections.abc import Iterable

ADMIN = "admin"
SCOPES = {
    "model:read": "List and fetch models.",
    "model:write": "Publish models.",
    "dataset:read": "List and fetch datasets.",
    "dataset:write": "Publish datasets.",
    ADMIN: "Manage users, maintain the gateway.",
}
ROLES = {
    "reader": ("model:read", "dataset:read"),
    "publisher": ("model:read", "model:write", "dataset:read", "dataset:write"),
    "device": ("model:read",),
    "admin": tuple(SCOPES),
}


def parse_permission(text: str) -> str:
    """Return a permission as it is kept.

    Raises:
        InputError: It is none.
    """
    kind, _, rest = text.partition(":")
    action, narrowed, line = rest.partition(":")
    scope = kind if text == ADMIN else f"{kind}:{action}"
    if scope not in SCOPES:
        raise InputError(
            f"{text[:200]!r} is not a permission. There are: {', '.join(SCOPES)}; all "
            f"but {ADMIN} also for one name, such as model:read:yolov11-nano.",
        )
    if not narrowed:
        return scope
    try:
        return f"{scope}:{parse_name(line)}"
    except InvalidNameError as error:
        raise InputError(
            f"{text[:200]!r} is not a permission: {error.message}"
        ) from error


def parse_role(text: str) -> str:
    """Return a role's name.

    Raises:
        InputError: There is no such role.
    """
    if text not in ROLES:
        raise InputError(f"{text[:64]!r} is not a role. There are: {', '.join(ROLES)}.")
    return text


def permissions_of(roles: Iterable[str], permissions: Iterable[str]) -> frozenset[str]:
    """Return all permissions that roles, and permissions beside them, come to.

    Roles that this version does not know give nothing.
    """
    of_roles = (scope for role in roles for scope in ROLES.get(role, ()))
    return frozenset((*of_roles, *permissions))


def scope_of(permission: str) -> str:
    """Return the scope of a permission, without the line."""
    return ":".join(permission.split(":")[:2])


def covers(held: frozenset[str], wanted: str) -> bool:
    """Say whether permissions include one: itself, or its scope for all lines."""
    return wanted in held or scope_of(wanted) in held


def narrowed(held: frozenset[str], wanted: Iterable[str]) -> frozenset[str]:
    """Return those of the wanted permissions that are held, each as wide as both."""
    wanted = frozenset(wanted)
    return frozenset(
        {each for each in wanted if covers(held, each)}
        | {each for each in held if covers(wanted, each)}
    )


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, and what they may do.

    Args:
        id: The user's name.
        scopes: The permissions that the token carries and the user has.
        granted: All permissions that the user has.
        address: Where the request came from.
        request_id: Which request it is.
        max_versions: The user's own quota; ``None``: that of the settings.
        max_bytes: Likewise.
    """

    id: str
    scopes: frozenset[str]
    granted: frozenset[str] = frozenset()
    max_versions: int | None = None
    max_bytes: int | None = None
    address: str | None = None
    request_id: str | None = None

    @property
    def actor(self) -> Actor:
        """The principal as the audit trail names them."""
        return Actor(self.id, self.address, self.request_id)

    def may(self, scope: str, line: str | None = None) -> bool:
        """Say whether the principal has a scope, for one line if one is named."""
        return scope in self.scopes or (
            line is not None and f"{scope}:{line}" in self.scopes
        )

    def lines(self, scope: str) -> frozenset[str] | None:
        """Return the only lines that the principal has a scope for; ``None``: all."""
        if scope in self.scopes:
            return None
        prefix = f"{scope}:"
        return frozenset(
            each.removeprefix(prefix) for each in self.scopes if each.startswith(prefix)
        )

    def has_any(self, scope: str) -> bool:
        """Say whether the principal has a scope, for whichever line."""
        return self.lines(scope) != frozenset()

    def owns_all(self, scope: str, line: str) -> bool:
        """Say whether the principal may change a line that is another's.

        An admin may, and who was given the scope for this very line.
        """
        return self.may(scope, line) and (
            ADMIN in self.scopes or f"{scope}:{line}" in self.granted
        )

    def require(self, scope: str, line: str | None = None) -> None:
        """Raise unless the principal has a scope, for one line if one is named.

        Raises:
            PermissionDeniedError: They have not.
        """
        if self.may(scope, line):
            return
        needed = scope if line is None else f"{scope}:{line}"
        raise PermissionDeniedError(
            f"This needs the permission {scope!r}"
            f"{'' if line is None else f' (or {needed!r})'}, which your token does not "
            "carry. Ask for a token with it, or the operator for the permission.",
            scope=scope,
            challenge=f'Bearer error="insufficient_scope", scope="{scope}"',
        )
