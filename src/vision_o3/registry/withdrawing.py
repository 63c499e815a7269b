"""Withdrawing: deprecate, block, lift. Versions stay, and what they are is said.

Bytes first, row last, as in publishing: the decision is put into the store as one more
document beside the version's record, then written to the version's row. Whoever died in
between has left a document that counts once the index is rebuilt, or as soon as the
wish is repeated. Of two who decide at once the second one looks again, and decides on
what the first one left (ADR 16).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from vision_o3.db import queries, withdrawals
from vision_o3.db.changes import notify_change
from vision_o3.db.models import BLOCKED, DEPRECATED, PURGED
from vision_o3.db.withdrawals import COLLECTIONS
from vision_o3.errors import (
    AlreadyExistsError,
    ConflictError,
    IntegrityError,
    LimitExceededError,
    NotFoundError,
    ObjectNotFoundError,
    PermissionDeniedError,
    VersionPurgedError,
)
from vision_o3.naming import parse_name, parse_version
from vision_o3.registry.audit import record_event
from vision_o3.registry.permissions import ADMIN
from vision_o3.registry.resolving import Resolver
from vision_o3.registry.values import parse_reason, to_version
from vision_o3.registry.withdrawal_records import (
    LIFTED,
    MAX_WITHDRAWAL_SIZE,
    Decision,
    decode_decision,
    encode_decision,
)
from vision_o3.registry.withdrawn import require_kept
from vision_o3.storage.keys import parse_key, withdrawal_key, withdrawal_prefix

if TYPE_CHECKING:
    from vision_o3.content.cid import CID
    from vision_o3.db.engine import Database
    from vision_o3.db.models import Collection
    from vision_o3.registry.audit import Actor
    from vision_o3.registry.claims import Timing
    from vision_o3.registry.values import Version
    from vision_o3.storage.base import ObjectStore

_ATTEMPTS = 20
"""How often others may decide on the same version before this gives up."""
_ACTIONS = {
    DEPRECATED: "version.deprecated",
    BLOCKED: "version.blocked",
    PURGED: "version.purged",
    LIFTED: "version.unblocked",
}
"""What the audit trail calls them."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants to become of a version. Valid once made.

    Raises:
        InputError: The reason is not one, or there is none.
    """

    state: str
    """``"deprecated"``, ``"blocked"``, ``"purged"`` or ``"lifted"``."""
    reason: str | None
    """May be ``None`` where a withdrawal is lifted."""
    actor: Actor
    is_admin: bool = False
    """Whether the actor may lift what an admin blocked."""
    owner_only: bool = False
    """Whether the line must be the actor's own."""

    def __post_init__(self) -> None:
        if self.reason is not None or self.state != LIFTED:
            parse_reason(self.reason or "")

    def is_met_by(self, version: Version) -> bool:
        """Say whether a version is what it is wished to be already."""
        withdrawal = version.withdrawal
        if withdrawal is None:
            return self.state == LIFTED
        if self.state == PURGED:
            return version.is_purged
        return (withdrawal.state, withdrawal.reason) == (self.state, self.reason) and (
            withdrawal.by_admin or not self.is_admin
        )


@dataclass(frozen=True, slots=True)
class _Seen:
    """A version as it was read."""

    version: Version
    number: int
    """Of the last decision that its row has."""


class Withdrawer:
    """Withdraws versions. Safe in any number of threads and processes."""

    def __init__(self, database: Database, store: ObjectStore, timing: Timing) -> None:
        self._database = database
        self._store = store
        self._timing = timing

    def withdraw(
        self, collection: Collection, name: str, number: int, wish: Wish
    ) -> Version:
        """Let a version become what is wished, if it is not; return it.

        Raises:
            InvalidNameError, InvalidVersionError: Not a name or number.
            NotFoundError: There is no such version.
            VersionPurgedError: It was purged, which is final.
            PermissionDeniedError: The line is another's, or an admin blocked it.
            ConflictError: Too many others decide on it at the same moment.
            StorageError: The store failed. Repeating it goes on.
            DatabaseUnavailableError: The database did not answer; likewise.
        """
        parse_name(name)
        parse_version(number)
        for _ in range(_ATTEMPTS):
            with self._database.read() as session:
                found = queries.find_version(session, collection, name, number)
            if found is None:
                # Says which there are.
                return Resolver(collection, self._database).version(name, number)
            seen = _Seen(to_version(collection, *found), found[1].withdrawal_number)
            _check_allowed(seen.version, wish)
            highest = self._highest(seen.version)
            if wish.is_met_by(seen.version) and highest <= seen.number:
                return seen.version
            left = None
            if highest > seen.number:
                left = self._read(seen.version, highest)
            decided = self._decide(collection, seen, wish, highest, left)
            if decided is not None:
                return decided
        raise ConflictError(
            f"Others are changing {name!r} version {number} at the same moment. Look "
            "at what it is now, and try again.",
            name=name,
        )

    def withdraw_content(self, cid: CID, wish: Wish) -> tuple[Version, ...]:
        """Let all versions of a content, in both collections, become what is wished.

        Those that are purged stay so. Nobody publishes the content meanwhile without
        being noticed.

        Returns:
            All versions of the content, as they are now.

        Raises:
            NotFoundError: There is no version of it.
            VisionO3Error: As for ``withdraw``; some may be done.
        """
        done: set[str] = set()
        while True:
            versions = self._versions_of(cid)
            if not versions:
                raise NotFoundError(
                    f"No model and no dataset has the CID {cid}.", cid=str(cid)
                )
            open_ones = [
                (collection, version)
                for collection, version in versions
                if version.id not in done
                and not (version.is_purged and wish.state != PURGED)
            ]
            if not open_ones:
                return tuple(version for _, version in versions)
            for collection, version in open_ones:
                try:
                    self.withdraw(collection, version.name, version.version, wish)
                except VersionPurgedError:  # by another, just now
                    continue
                done.add(version.id)

    def _versions_of(self, cid: CID) -> list[tuple[Collection, Version]]:
        with self._database.read() as session:
            return [
                (collection, to_version(collection, *found))
                for collection in COLLECTIONS
                for found in withdrawals.versions_of(session, collection, cid)
            ]

    # -------------------------------------------------------------------- the store

    def _highest(self, version: Version) -> int:
        """Return the number of the last decision on a version in the store."""
        place = version.collection, version.name, version.version
        parsed = (
            parse_key(each.key) for each in self._store.list(withdrawal_prefix(*place))
        )
        return max((each.withdrawal for each in parsed if each is not None), default=0)

    def _read(self, version: Version, number: int) -> Decision | None:
        """Return a decision on a version; ``None`` if it is none."""
        key = _key_of(version, number)
        try:
            content = self._store.get(key, max_size=MAX_WITHDRAWAL_SIZE)
            decision = decode_decision(content, key)
        except (IntegrityError, LimitExceededError, ObjectNotFoundError):
            return None
        return decision if decision.version_id == version.id else None

    def _put(self, version: Version, decision: Decision) -> bool:
        """Put a decision into the store; false if another lies there."""
        key = _key_of(version, decision.number)
        try:
            self._store.put(key, encode_decision(version, decision))
        except AlreadyExistsError:  # ours, if an answer was lost
            return self._read(version, decision.number) == decision
        return True

    # ---------------------------------------------------------------------- the row

    def _decide(
        self,
        collection: Collection,
        seen: _Seen,
        wish: Wish,
        highest: int,
        left: Decision | None,
    ) -> Version | None:
        """Decide on a version that is locked, if it is as it was seen.

        Args:
            collection: The version's.
            seen: The version as it was read.
            wish: What is wanted.
            highest: The number of the last decision in the store.
            left: That decision, if its row lacks it. One that says the same as this
                wish, as its writer died or had no answer, is taken for it.

        Returns:
            The version; ``None`` if another was faster, and nothing was done.
        """
        version = seen.version
        with self._database.write() as session:
            now = self._timing.clock(session)
            withdrawals.lock_content(session, version.cid)
            found = withdrawals.lock_version(
                session, collection, version.name, version.version
            )
            if found is None or found[1].withdrawal_number != seen.number:
                return None
            # Who says again what an admin said does not make it theirs to change.
            was = version.withdrawal if wish.is_met_by(version) else None
            decision = Decision(
                version_id=version.id,
                cid=version.cid,
                number=max(highest, seen.number) + 1,
                at=now,
                by=wish.actor.principal,
                by_admin=wish.is_admin or (was is not None and was.by_admin),
                state=wish.state,
                reason=wish.reason,
            )
            if left is not None and left.says_the_same_as(decision):
                decision = left
            # Under the lock, so that decisions have the order of their numbers: none
            # that was refused lies over one that was not. A small object, and rare.
            elif not self._put(version, decision):
                return None
            withdrawal = decision.withdrawal
            withdrawals.set_withdrawal(
                session,
                collection,
                found[1],
                number=decision.number,
                state=None if withdrawal is None else withdrawal.state,
                reason=None if withdrawal is None else withdrawal.reason,
                at=None if withdrawal is None else withdrawal.at,
                by=None if withdrawal is None else withdrawal.by,
                by_admin=withdrawal is not None and withdrawal.by_admin,
            )
            decided = to_version(collection, *found)
            notify_change(session, version.collection, version.name)
            record_event(
                session,
                wish.actor,
                _ACTIONS[decision.state],
                f"{version.collection}/{version.name}/v{version.version}",
                _detail(version, decision),
                now=now,
            )
        _log.info(
            _ACTIONS[decision.state],
            collection=version.collection,
            line=version.name,
            version=version.version,
            cid=str(version.cid),
        )
        return decided


def _detail(version: Version, decision: Decision) -> dict[str, object]:
    """Return what the audit trail tells of a decision."""
    detail: dict[str, object] = {"cid": str(version.cid), "number": decision.number}
    if decision.reason is not None:
        detail["reason"] = decision.reason
    if version.withdrawal is not None:
        detail["was"] = version.withdrawal.state
    return detail


def _key_of(version: Version, number: int) -> str:
    return withdrawal_key(version.collection, version.name, version.version, number)


def _check_allowed(version: Version, wish: Wish) -> None:
    """Raise if the actor may not decide this on the version, as it is.

    Raises:
        PermissionDeniedError: The line is another's, or an admin blocked the version.
        VersionPurgedError: It was purged, and that is final.
    """
    if wish.owner_only and version.owner_id != wish.actor.principal:
        raise _denied(
            f"{version.name!r} is another's. Ask its owner, or an admin, or the "
            "operator for the permission to write to this name.",
            f"{version.collection.removesuffix('s')}:write:{version.name}",
        )
    if wish.is_met_by(version):
        return
    if wish.state != PURGED:
        require_kept(version)
    withdrawal = version.withdrawal
    if (
        version.is_blocked
        and withdrawal is not None
        and withdrawal.by_admin
        and not wish.is_admin
    ):
        raise _denied(
            f"An admin blocked {version.name!r} version {version.version}. Only an "
            "admin can change that.",
            ADMIN,
        )


def _denied(message: str, scope: str) -> PermissionDeniedError:
    challenge = f'Bearer error="insufficient_scope", scope="{scope}"'
    return PermissionDeniedError(message, scope=scope, challenge=challenge)
