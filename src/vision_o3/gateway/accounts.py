"""The routes that manage users and their secrets."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from vision_o3 import errors
from vision_o3.gateway.contract import with_headers
from vision_o3.gateway.deps import Admin, GatewayDep
from vision_o3.gateway.pages import link_header
from vision_o3.gateway.problems import describe
from vision_o3.registry.accounts import Changes, NewSecret, Secret, User
from vision_o3.schemas import accounts as wire
from vision_o3.schemas.versions import PageQuery

_ERRORS = (
    errors.UnauthenticatedError,
    errors.PermissionDeniedError,
    errors.InputError,
    errors.RateLimitedError,
    errors.DatabaseUnavailableError,
)
_QUOTAS = ("max_versions", "max_bytes")

UserPath = Annotated[str, Path(description="The user's name.", examples=["camera-7"])]

router = APIRouter(prefix="/admin/users", tags=["users"])


@router.get(
    "",
    operation_id="users_list",
    responses={200: with_headers("Link"), **describe(*_ERRORS)},
)
def list_users(
    query: Annotated[PageQuery, Query()],
    request: Request,
    response: Response,
    _: Admin,
    gateway: GatewayDep,
) -> wire.UserPage:
    """Return users by name, disabled ones too."""
    page = gateway.accounts.list(page=query.page, page_size=query.page_size)
    response.headers["Link"] = link_header(request, page)
    return wire.UserPage(
        items=[_read(user) for user in page.items],
        page=page.page,
        page_size=page.page_size,
        total=page.total,
    )


@router.post(
    "",
    operation_id="users_add",
    status_code=201,
    responses={
        201: with_headers("Location", "Cache-Control"),
        **describe(*_ERRORS, errors.AlreadyExistsError, errors.LimitExceededError),
    },
)
def add_user(
    body: wire.UserCreate, response: Response, principal: Admin, gateway: GatewayDep
) -> wire.UserCreated:
    """Add a user with a secret, which is told in this answer and never again."""
    user, secret = gateway.accounts.add(
        principal.actor,
        body.name,
        roles=body.roles,
        permissions=body.permissions,
        quotas={name: getattr(body, name) for name in _QUOTAS},
        label=body.label,
        lifetime=_days(body.expires_in_days),
    )
    response.headers["Location"] = f"/admin/users/{user.id}"
    response.headers["Cache-Control"] = "no-store"
    return wire.UserCreated(**dict(_read(user)), secret=secret.secret)


@router.get(
    "/{user}",
    operation_id="users_read",
    responses=describe(*_ERRORS, errors.NotFoundError),
)
def read_user(user: UserPath, _: Admin, gateway: GatewayDep) -> wire.UserRead:
    """Return a user."""
    return _read(gateway.accounts.get(user))


@router.patch(
    "/{user}",
    operation_id="users_change",
    responses=describe(*_ERRORS, errors.NotFoundError, errors.LimitExceededError),
)
def change_user(
    user: UserPath, body: wire.UserChange, principal: Admin, gateway: GatewayDep
) -> wire.UserRead:
    """Change what a user may do, or whether they may at all.

    It holds for tokens already issued too, at every gateway within two seconds.
    """
    given = body.model_fields_set
    changes = Changes(
        roles=tuple(body.roles) if "roles" in given else None,
        permissions=tuple(body.permissions) if "permissions" in given else None,
        disabled=body.disabled if "disabled" in given else None,
        quotas={name: getattr(body, name) for name in _QUOTAS if name in given},
    )
    return _read(gateway.accounts.change(principal.actor, user, changes))


@router.post(
    "/{user}/secrets",
    operation_id="users_add_secret",
    status_code=201,
    responses={
        201: with_headers("Cache-Control"),
        **describe(
            *_ERRORS,
            errors.NotFoundError,
            errors.AlreadyExistsError,
            errors.LimitExceededError,
        ),
    },
)
def add_secret(
    user: UserPath,
    body: wire.SecretCreate,
    response: Response,
    principal: Admin,
    gateway: GatewayDep,
) -> wire.SecretCreated:
    """Add a secret, which is told in this answer and never again.

    The others stay valid: remove the old one when the new one is in use.
    """
    secret = gateway.accounts.add_secret(
        principal.actor,
        user,
        label=body.label,
        lifetime=_days(body.expires_in_days),
    )
    response.headers["Cache-Control"] = "no-store"
    return _created(secret)


@router.delete(
    "/{user}/secrets/{secret}",
    operation_id="users_remove_secret",
    status_code=204,
    response_class=Response,
    responses=describe(*_ERRORS, errors.NotFoundError),
)
def remove_secret(
    user: UserPath,
    secret: Annotated[str, Path(description="The secret's id.")],
    principal: Admin,
    gateway: GatewayDep,
) -> None:
    """Remove a secret. Tokens that were issued for it end too."""
    gateway.accounts.remove_secret(principal.actor, user, secret)


@router.delete(
    "/{user}/tokens",
    operation_id="users_end_tokens",
    status_code=204,
    response_class=Response,
    responses=describe(*_ERRORS, errors.NotFoundError),
)
def end_tokens(user: UserPath, principal: Admin, gateway: GatewayDep) -> None:
    """End all tokens that a user has now. Their secrets stay valid."""
    gateway.accounts.end_tokens(principal.actor, user)


def _days(days: float | None) -> timedelta | None:
    return None if days is None else timedelta(days=days)


def _read(user: User) -> wire.UserRead:
    return wire.UserRead(
        name=user.id,
        roles=list(user.roles),
        permissions=list(user.permissions),
        granted=sorted(user.granted),
        created_at=user.created_at,
        disabled_at=user.disabled_at,
        max_versions=user.max_versions,
        max_bytes=user.max_bytes,
        secrets=[_read_secret(secret) for secret in user.secrets],
    )


def _read_secret(secret: Secret) -> wire.SecretRead:
    return wire.SecretRead(
        id=secret.id,
        label=secret.label,
        created_at=secret.created_at,
        expires_at=secret.expires_at,
        last_used_at=secret.last_used_at,
        last_used_from=secret.last_used_from,
    )


def _created(secret: NewSecret) -> wire.SecretCreated:
    return wire.SecretCreated(
        id=secret.id,
        label=secret.label,
        expires_at=secret.expires_at,
        secret=secret.secret,
    )
