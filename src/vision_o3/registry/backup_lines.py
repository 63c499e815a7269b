"""The lines of a backup: written, read, and verified as a whole.

What each kind of entry is in JSON, in all formats that are read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from vision_o3.db.accounts import UNMARKED
from vision_o3.errors import MalformedBlockError
from vision_o3.registry.json_fields import Fields, parse_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vision_o3.db.models import RevokedTokenRow, UserRow, UserSecretRow

BACKUP_FORMAT = 2
"""Raised when a reader of the older format could misread the newer one."""
MAX_LINE_SIZE = 8 << 20
"""Bytes of a line that are read at most."""

Entry: TypeAlias = dict[str, Any]
"""A user, a revoked token or an audit event: all columns by name."""
Readers: TypeAlias = Mapping[str, Callable[[Fields], Entry]]

_KIND = re.compile(rb'\{"([a-z_]{1,20})":')
_LONGEST_ID = 255
_LONGEST_WORD = 64
_LONGEST_SECRET_ID = 32
_DIGEST_SIZE = 64
"""Characters; the columns'."""
_FIRST_LABEL = "first"
"""Of the secret that a user had when there was but one each."""
USE = ("last_used_at", "last_used_from")
"""What changes of a secret without anybody changing it."""


@dataclass(frozen=True, slots=True)
class Backup:
    """Which backup it is."""

    format: int
    sha256: str


# -------------------------------------------------------------------------- writing


def line_of(kind: str, document: Entry) -> bytes:
    """Return the line of an entry, of the first line's facts, or of the last one's."""
    line = json.dumps(
        {kind: document},
        default=datetime.isoformat,
        ensure_ascii=False,
        separators=(",", ":"),
        allow_nan=False,
    )
    return line.encode() + b"\n"


def of_user(user: UserRow, secrets: Iterable[UserSecretRow]) -> Entry:
    """Return a user with their secrets as an entry."""
    return {
        "id": user.id,
        "roles": list(user.roles),
        "permissions": list(user.permissions),
        "created_at": user.created_at,
        "disabled_at": user.disabled_at,
        "token_generation": user.token_generation,
        "max_versions": user.max_versions,
        "max_bytes": user.max_bytes,
        "secrets": [
            {
                "id": secret.id,
                "label": secret.label,
                "secret_hash": secret.secret_hash,
                "created_at": secret.created_at,
                "expires_at": secret.expires_at,
                "last_used_at": secret.last_used_at,
                "last_used_from": secret.last_used_from,
            }
            for secret in secrets
        ],
    }


def of_token(token: RevokedTokenRow) -> Entry:
    """Return a revoked token as an entry."""
    return {
        "jti": token.jti,
        "user_id": token.user_id,
        "expires_at": token.expires_at,
    }


# -------------------------------------------------------------------------- reading


def _to_user(fields: Fields) -> Entry:
    name = fields.text("id", longest=_LONGEST_ID)
    return {
        "id": name,
        "roles": list(fields.texts("roles")),
        "permissions": list(fields.texts("permissions")),
        "created_at": fields.time("created_at"),
        "disabled_at": fields.time_or_none("disabled_at"),
        "token_generation": fields.number("token_generation"),
        "max_versions": fields.number_or_none("max_versions"),
        "max_bytes": fields.number_or_none("max_bytes"),
        "secrets": [_to_secret(each, name) for each in fields.inners("secrets")],
    }


def _to_secret(fields: Fields, user: str) -> Entry:
    return {
        "id": secret_id(fields.text("id", longest=_LONGEST_SECRET_ID), user),
        "label": fields.text("label", longest=_LONGEST_WORD),
        "secret_hash": fields.text("secret_hash"),
        "created_at": fields.time("created_at"),
        "expires_at": fields.time_or_none("expires_at"),
        "last_used_at": fields.time_or_none("last_used_at"),
        "last_used_from": fields.text_or_none("last_used_from", longest=_LONGEST_WORD),
    }


def _to_user_of_format_1(fields: Fields) -> Entry:
    name = fields.text("id", longest=_LONGEST_ID)
    created_at = fields.time("created_at")
    return {
        "id": name,
        "roles": [],
        "permissions": list(fields.texts("permissions")),
        "created_at": created_at,
        "disabled_at": fields.time_or_none("disabled_at"),
        "token_generation": 0,
        "max_versions": None,
        "max_bytes": None,
        "secrets": [
            {
                "id": secret_id(UNMARKED, name),
                "label": _FIRST_LABEL,
                "secret_hash": fields.text("secret_hash"),
                "created_at": created_at,
                "expires_at": None,
                **dict.fromkeys(USE),
            }
        ],
    }


def secret_id(found: str, user: str) -> str:
    """Return a secret's id; of one that does not carry it, an id that is the user's.

    Two databases number those alike.
    """
    if not found.startswith(UNMARKED):
        return found
    digest = hashlib.sha256(user.encode()).hexdigest()
    return f"{UNMARKED}{digest}"[:_LONGEST_SECRET_ID]


def _to_token(fields: Fields) -> Entry:
    return {
        "jti": fields.text("jti", longest=_LONGEST_WORD),
        "user_id": fields.text("user_id", longest=_LONGEST_ID),
        "expires_at": fields.time("expires_at"),
    }


def _to_event(fields: Fields) -> Entry:
    return {
        "chain": fields.text("chain", shortest=0, longest=_LONGEST_WORD),
        "seq": fields.number("seq", at_least=1),
        "hash": fields.text("hash", shortest=0, longest=_DIGEST_SIZE),
        **_told(fields),
        "address": fields.text_or_none("address", longest=_LONGEST_WORD),
        "request_id": fields.text_or_none("request_id", longest=_LONGEST_WORD),
    }


def _to_event_of_format_1(fields: Fields) -> Entry:
    return {"id": fields.number("id", at_least=1), **_told(fields)}


def _told(fields: Fields) -> Entry:
    return {
        "at": fields.time("at"),
        "principal": fields.text("principal", shortest=0, longest=_LONGEST_ID),
        "action": fields.text("action", shortest=0, longest=_LONGEST_WORD),
        "subject": fields.text("subject"),
        "detail": fields.mapping("detail"),
    }


_READERS: Readers = {
    "user": _to_user,
    "revoked_token": _to_token,
    "audit_event": _to_event,
}
"""Kinds of entries, in their order."""
_READERS_OF_FORMAT_1: Readers = {
    "user": _to_user_of_format_1,
    "audit_event": _to_event_of_format_1,
}
COUNTED = {
    "user": "users",
    "revoked_token": "revoked_tokens",
    "audit_event": "audit_events",
}


def _key(entry: Entry) -> Any:  # noqa: ANN401 - comparable within a kind
    """Return what entries of a kind are ordered by, and told apart."""
    if "chain" in entry:
        return entry["chain"], entry["seq"]
    return entry["jti"] if "jti" in entry else entry["id"]


# ------------------------------------------------------------------------ verifying


def verify(file: BinaryIO) -> Backup:
    """Check a whole backup.

    Raises:
        MalformedBlockError: It is none, or not as it was written.
    """
    digest = hashlib.sha256()
    before: tuple[int, Any] | None = None
    first = _next_line(file)
    if _kind(first) != "backup":
        raise _malformed("it does not begin as a backup does")
    with _described("the first line"):
        stated = parse_object(first).inner("backup").number("format")
    if not 1 <= stated <= BACKUP_FORMAT:
        raise _malformed(
            f"it is of format {stated}, and this version of Vision-O3 reads formats 1 "
            f"to {BACKUP_FORMAT}"
        )
    readers = _readers(stated)
    counts = dict.fromkeys(readers, 0)
    digest.update(first)
    while _kind(line := _next_line(file)) != "end":
        where = f"line {sum(counts.values()) + 2}"
        kind, entry = _entry(line, where, readers)
        place = list(readers).index(kind), _key(entry)
        if before is not None and place <= before:
            raise _malformed(f"{where} is out of order")
        before = place
        counts[kind] += 1
        digest.update(line)
    with _described("the last line"):
        end = parse_object(line).inner("end")
        told = {kind: end.number(COUNTED[kind]) for kind in readers}
        sha256 = end.text("sha256")
    if told != counts or sha256 != digest.hexdigest():
        raise _malformed("it was changed since it was written")
    if file.read(1):
        raise _malformed("something follows its last line")
    return Backup(stated, sha256)


def _readers(backup_format: int) -> Readers:
    return _READERS if backup_format > 1 else _READERS_OF_FORMAT_1


def entries(file: BinaryIO, backup_format: int) -> Iterator[tuple[str, Entry]]:
    """Yield the entries of a verified backup, by kind."""
    readers = _readers(backup_format)
    _next_line(file)
    while _kind(line := _next_line(file)) != "end":
        yield _entry(line, "a line", readers)


def _entry(line: bytes, where: str, readers: Readers) -> tuple[str, Entry]:
    kind = _kind(line)
    if kind not in readers:
        raise _malformed(f"{where} is none of {', '.join(readers)}")
    with _described(where):
        return kind, readers[kind](parse_object(line).inner(kind))


def _kind(line: bytes) -> str:
    """Return what a line says it is, by its first name."""
    match = _KIND.match(line)
    return "" if match is None else match[1].decode()


def _next_line(file: BinaryIO) -> bytes:
    line = file.readline(MAX_LINE_SIZE)
    if not line.endswith(b"\n"):
        reason = "a line is too long" if line else "its end is missing"
        raise _malformed(reason if len(line) in {0, MAX_LINE_SIZE} else "it is cut off")
    return line


@contextmanager
def _described(where: str) -> Iterator[None]:
    """Let out what is wrong with a line as our error."""
    try:
        yield
    except RecursionError:
        raise _malformed(f"{where} is nested too deeply") from None
    except ValueError as error:
        raise _malformed(f"of {where}, {error}") from error


def _malformed(reason: str) -> MalformedBlockError:
    return MalformedBlockError(
        f"This is not a whole backup: {reason.rstrip('.')}. Nothing was restored. "
        "Use another copy of it.",
    )
