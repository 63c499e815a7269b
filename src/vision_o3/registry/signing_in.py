"""Signing in: a name and a secret become a user, and guessing is slowed.

Who does not exist, who is disabled, and who has another secret get the same answer
after the same work. Failures are counted for each account and each address, by all
gateways together. After ``max_failures`` of them further attempts are refused unseen,
for a time that doubles up to ``LONGEST_BLOCK``; what failed ``FORGOTTEN_AFTER`` ago is
forgotten. So that nobody can lock another out, an attempt that names an existing secret
by its id, 64 random bits, is judged by the failures with this secret alone.
"""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from vision_o3.db import accounts as rows
from vision_o3.db import queries
from vision_o3.errors import SignInSlowedError, UnauthenticatedError
from vision_o3.registry.accounts import USER, hash_matches, secret_id_of
from vision_o3.registry.audit import Actor, record_event
from vision_o3.registry.permissions import permissions_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from vision_o3.db.engine import Database
    from vision_o3.db.models import UserRow, UserSecretRow

LONGEST_BLOCK = timedelta(minutes=5)
FORGOTTEN_AFTER = timedelta(minutes=15)
_NOTED_AGAIN_AFTER = timedelta(minutes=1)
"""A secret's use is noted once in so long, unless from another address."""
_IPV6_NETWORK = 64
"""Bits: one customer has as many addresses as they like in there."""
_LONGEST_ADDRESS = 64
_WITH_PORT = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d+)?|(\d+\.\d+\.\d+\.\d+):\d+")
"""As some proxies name who asked them: another port each time, the same address."""


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A user whose secret was right."""

    user_id: str
    granted: frozenset[str]
    generation: int
    secret_id: str
    secret_expires_at: datetime | None


class SignIn:
    """Checks names and secrets. Safe in any thread and process; blocks, by intent.

    Args:
        max_failures: Failed attempts after which further ones must wait.
        clock: Tells the time: the database's, which all gateways share.
    """

    def __init__(
        self,
        database: Database,
        *,
        max_failures: int,
        clock: Callable[[Session], datetime] = queries.database_now,
    ) -> None:
        self._database = database
        self._clock = clock
        hash_matches(None, "")  # the first one takes longer
        self._max_failures = max_failures

    def authenticate(self, user_id: str, secret: str, actor: Actor) -> SignedIn:
        """Return the user of this name if this is a secret of theirs.

        Args:
            user_id: What is said to be the name.
            secret: What is said to be a secret.
            actor: Says where the attempt came from; its principal is not looked at.

        Raises:
            UnauthenticatedError: It is not, or they are disabled.
            SignInSlowedError: Too many attempts failed.
            DatabaseUnavailableError: The database did not answer.
        """
        address = network_of(actor.address)
        is_name = USER.fullmatch(user_id) is not None
        secret_id = secret_id_of(secret)
        of_address = f"address:{address}"
        with self._database.read() as session:
            now = self._clock(session)
            found = rows.find_secret(session, user_id if is_name else "", secret_id)
            if found is not None and secret_id is not None:
                judged = [f"secret:{secret_id}"]
            else:
                judged = [of_address] + [f"user:{user_id}"] * is_name
            failures = rows.failures_of(session, judged)
        blocked_until = max(
            (row.blocked_until for row in failures.values() if row.blocked_until),
            default=now,
        )
        if blocked_until > now:
            raise _slowed(blocked_until - now)
        usable = found is not None and _is_usable(*found, now)
        hashed = found[1].secret_hash if found is not None and usable else None
        if not hash_matches(hashed, secret) or found is None:
            noted = sorted({of_address, *judged})
            self._note_failure(noted, user_id if is_name else "", actor)
            raise UnauthenticatedError(
                "There is no such user with this secret. Check both, or ask the "
                "operator: vision-o3 user list.",
                error="invalid_client",
            )
        user, kept = found
        forgiven = [each for each in failures if each != of_address]
        self._note_success(kept, forgiven, address, now)
        return SignedIn(
            user.id,
            permissions_of(user.roles, user.permissions),
            user.token_generation,
            kept.id,
            kept.expires_at,
        )

    def _note_failure(self, subjects: list[str], user_id: str, actor: Actor) -> None:
        with self._database.write() as session:
            now = self._clock(session)
            rows.begin_failures(session, subjects, now)
            for row in rows.failures_of(session, subjects, lock=True).values():
                if now - row.last_at > FORGOTTEN_AFTER:
                    row.failures, row.blocked_until = 0, None
                row.failures += 1
                row.last_at = now
                over = row.failures - self._max_failures
                if over >= 0:
                    row.blocked_until = now + _block(over)
            session.flush()
            # A name that nobody has may be a secret that was put in its place.
            is_users = rows.find_user(session, user_id) is not None
            record_event(
                session,
                Actor("anonymous", actor.address, actor.request_id),
                "sign_in.failed",
                f"users/{user_id}" if is_users else "users",
                {},
                now=now,
            )

    def _note_success(
        self,
        secret: UserSecretRow,
        forgiven: list[str],
        address: str,
        now: datetime,
    ) -> None:
        noted = secret.last_used_at
        if (
            not forgiven
            and secret.last_used_from == address
            and noted is not None
            and now - noted < _NOTED_AGAIN_AFTER
        ):
            return
        with self._database.write() as session:
            for subject in forgiven:
                rows.clear_failures(session, subject)
            rows.note_use(session, secret.id, at=now, address=address)


def remove_outdated(session: Session) -> int:
    """Remove what is noted of tokens that have expired, and of old failures."""
    now = queries.database_now(session)
    return rows.remove_outdated(
        session, now=now, failures_before=now - 2 * FORGOTTEN_AFTER
    )


def parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that a text is, also with a port; ``None`` if it is none."""
    if (match := _WITH_PORT.fullmatch(text)) is not None:
        text = match[1] or match[2]
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def network_of(address: str | None) -> str:
    """Return what attempts are counted by: an IPv4 address, or an IPv6 network."""
    parsed = parse_address(address or "")
    if parsed is None:
        return (address or "")[:_LONGEST_ADDRESS] or "unknown"
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    network = ipaddress.ip_network(f"{parsed.packed.hex(':', 2)}/128")
    return str(network.supernet(new_prefix=_IPV6_NETWORK))


def _is_usable(user: UserRow, secret: UserSecretRow, now: datetime) -> bool:
    return user.disabled_at is None and (
        secret.expires_at is None or secret.expires_at > now
    )


def _block(failures_over: int) -> timedelta:
    longest_s = LONGEST_BLOCK.total_seconds()
    return timedelta(seconds=min(2.0 ** min(failures_over, 30), longest_s))


def _slowed(wait: timedelta) -> SignInSlowedError:
    wait_s = max(1, math.ceil(wait.total_seconds()))
    return SignInSlowedError(
        f"Too many attempts to sign in failed. Try again in {wait_s} s, with the right "
        "secret.",
        retry_after_s=wait_s,
    )
