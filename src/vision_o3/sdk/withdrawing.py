"""Telling the gateway that a version is not to be used, or that it may be again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Dict, Type
from urllib.parse import quote

from vision_o3.naming import parse_name, parse_version

if TYPE_CHECKING:
    from vision_o3.sdk.session import Session
    from vision_o3.sdk.versions import VersionInfo


def withdraw(
    session: Session,
    kind: Type[VersionInfo],
    name: str,
    version: int,
    *,
    state: str,
    reason: str,
) -> Dict[str, Any]:
    """Withdraw a version; return the document that says what it is now.

    The same call again changes nothing, so it is tried again after a broken link.

    Raises:
        InvalidNameError, InvalidVersionError: There can be no such version.
        InputError: The reason is not acceptable.
        VisionO3Error: As for any request, after all attempts.
    """
    body = json.dumps({"state": state, "reason": reason}).encode()
    headers = {"Content-Type": "application/json"}
    path = _path(kind, name, version)
    return session.send_for_object("PUT", path, headers, body)


def restore(session: Session, kind: Type[VersionInfo], name: str, version: int) -> None:
    """Lift what ``withdraw`` did; nothing happens if there is nothing to lift.

    Raises:
        VisionO3Error: As ``withdraw`` says.
    """
    path = _path(kind, name, version)

    def once() -> None:
        with session.exchange("DELETE", path):
            pass

    session.attempts().call(once)


def _path(kind: Type[VersionInfo], name: str, version: int) -> str:
    line = f"/{kind.collection}/{quote(parse_name(name))}"
    return f"{line}/versions/{parse_version(version)}/withdrawal"
