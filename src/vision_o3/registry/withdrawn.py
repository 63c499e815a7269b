"""What is answered to those who ask for a version that was withdrawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vision_o3.errors import VersionBlockedError, VersionPurgedError

if TYPE_CHECKING:
    from vision_o3.content.cid import CID
    from vision_o3.errors import WithdrawnError
    from vision_o3.registry.values import Version


def require_kept(version: Version) -> Version:
    """Return a version unless it was purged.

    Raises:
        VersionPurgedError: It was; its bytes are gone.
    """
    if version.is_purged:
        raise withdrawn_error(version)
    return version


def require_served(version: Version, *, allow_blocked: bool = False) -> Version:
    """Return a version if its bytes may be handed out.

    Args:
        version: The version.
        allow_blocked: Whether the caller wants it although it is blocked.

    Raises:
        VersionBlockedError: It is blocked, and not wanted all the same.
        VersionPurgedError: It was purged.
    """
    if version.is_blocked and not allow_blocked:
        raise withdrawn_error(version)
    return require_kept(version)


def withdrawn_error(version: Version) -> WithdrawnError:
    """Return the error that says why a blocked or purged version is not served."""
    reason = "" if version.withdrawal is None else version.withdrawal.reason
    which = f"{version.name!r} version {version.version}"
    others = f"GET /{version.collection}/{version.name}/versions lists the others."
    if version.is_purged:
        return VersionPurgedError(
            f"{which} was purged: {_as_sentence(reason)} Its bytes are gone for good. "
            f"{others}",
            reason=reason,
            name=version.name,
            cid=str(version.cid),
        )
    return VersionBlockedError(
        f"{which} is blocked: {_as_sentence(reason)} {others} Who needs its bytes all "
        "the same adds ?allow_blocked=true to the address.",
        reason=reason,
        name=version.name,
        cid=str(version.cid),
    )


def refused_content(version: Version) -> WithdrawnError:
    """Return the error that refuses to publish the content of a withdrawn version.

    It names no line: the publisher may not be allowed to read it.
    """
    cid: CID = version.cid
    reason = "" if version.withdrawal is None else version.withdrawal.reason
    kind = VersionPurgedError if version.is_purged else VersionBlockedError
    what = "purged" if version.is_purged else "blocked"
    return kind(
        f"This content was {what}: {_as_sentence(reason)} It is not published again. "
        "Only an admin may do that.",
        reason=reason,
        cid=str(cid),
    )


def _as_sentence(reason: str) -> str:
    return reason if reason.endswith((".", "!", "?")) else f"{reason}."
