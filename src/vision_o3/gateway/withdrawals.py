"""The routes that deprecate and block versions, of models and datasets alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter, Response

from vision_o3 import errors
from vision_o3.gateway.deps import GatewayDep
from vision_o3.gateway.problems import describe
from vision_o3.gateway.retrieval import READ_ERRORS, NamePath, VersionPath
from vision_o3.naming import parse_version
from vision_o3.registry.permissions import ADMIN, Principal
from vision_o3.registry.withdrawing import Wish
from vision_o3.schemas.versions import VersionRead, WithdrawalWrite

if TYPE_CHECKING:
    from vision_o3.gateway.retrieval import Shape

_ERRORS = (
    *READ_ERRORS,
    errors.InvalidNameError,
    errors.InvalidVersionError,
    errors.VersionPurgedError,
    errors.ConflictError,
    errors.StorageError,
    errors.TransientStorageError,
    errors.StorageFullError,
)
_PATH = "/{name}/versions/{version}/withdrawal"


def add_withdrawal_routes(router: APIRouter, shape: Shape) -> None:
    """Add the routes that withdraw a version of a collection, and lift that."""
    scope = f"{shape.collection.removesuffix('s')}:write"

    def wish(
        state: Literal["deprecated", "blocked", "lifted"],
        reason: str | None,
        name: str,
        principal: Principal,
    ) -> Wish:
        return Wish(
            state,
            reason,
            principal.actor,
            is_admin=ADMIN in principal.scopes,
            owner_only=not principal.owns_all(scope, name),
        )

    def withdraw(
        name: NamePath,
        version: VersionPath,
        body: WithdrawalWrite,
        gateway: GatewayDep,
        principal: Principal = shape.writer,  # type: ignore[assignment]  # as FastAPI has it
    ) -> VersionRead:
        """Deprecate or block a version.

        A deprecated version is served as before, and says so. A blocked one is not its
        line's latest any more, is in no list, and its bytes are answered only to who
        asks for them with `allow_blocked=true`. For the line's owner, for admins, and
        for who has the permission to write to this very name. What an admin blocked
        only an admin changes.
        """
        return shape.describe(
            shape.service(gateway).withdraw(
                name,
                parse_version(version),
                wish(body.state, body.reason, name, principal),
            )
        )

    def lift(
        name: NamePath,
        version: VersionPath,
        gateway: GatewayDep,
        principal: Principal = shape.writer,  # type: ignore[assignment]  # as above
    ) -> Response:
        """Let a version be used again; does nothing if it may be."""
        shape.service(gateway).withdraw(
            name, parse_version(version), wish("lifted", None, name, principal)
        )
        return Response(status_code=204)

    router.add_api_route(
        _PATH,
        withdraw,
        methods=["PUT"],
        response_model=shape.read,
        responses=describe(*_ERRORS),
        operation_id=f"{shape.collection}_withdraw",
    )
    router.add_api_route(
        _PATH,
        lift,
        methods=["DELETE"],
        status_code=204,
        response_class=Response,
        responses=describe(*_ERRORS),
        operation_id=f"{shape.collection}_lift_withdrawal",
    )
