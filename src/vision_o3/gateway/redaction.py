"""No secret in any log line: what masks them in the finished text of a line.

The whole line is looked at, whoever wrote it and whatever it was made of: messages of
libraries, tracebacks, values within values. What is known to be secret is masked
wherever it stands, in each form that it may have been written in; what only looks like
a secret (a token, a signature, a password in a URL) is masked by its form.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, quote_plus, unquote

from pydantic import SecretStr
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from vision_o3.settings import MIN_SECRET_SIZE, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MASK = "[hidden]"
SHORTEST = 8
"""Characters of a value that is masked wherever it stands. A shorter one would mask
half of what is said; it is masked where it stands as a password."""
_SURELY_RANDOM = 16
"""Characters of a value that is masked also within a longer word."""


class _Form(NamedTuple):
    """What some secrets look like.

    Attributes:
        trigger: In lower case; a line without it is not searched further.
        pattern: What is searched for.
        replacement: What is kept of it.
    """

    trigger: str
    pattern: re.Pattern[str]
    replacement: str


# Lines are JSON: a quotation mark or a backslash always ends what may be masked.
_VALUE = r"""[^\s"'\\&,;<>(){}\[\]]+"""
_ESCAPE = re.compile("%[0-9A-F]{2}")
_ESCAPED = r"""\\(?:\\\\)*"|\\*'"""
"""A quotation mark within a text of the line: behind an odd number of backslashes."""
_BETWEEN = (
    # As a member of the line itself, where only a text may become a mask.
    r"""(?:"\s*:\s*"|"""
    # In a header, a form, or a text that holds a dict or JSON.
    rf"""(?:{_ESCAPED})?\s*[:=]\s*(?:b?(?:{_ESCAPED}|"))?)"""
    # Or else the quotation mark was the end of a text, and more of the line follows.
    r"""(?![\s,:\]}])"""
)
"""What stands between a name and its value."""


def _named(names: str, value: str = _VALUE) -> re.Pattern[str]:
    """Return what finds a value by its name; the group is all before the value."""
    pair = rf"""[(\[]\s*b?\\*["'][\w-]*(?:{names})\\*["']\s*,\s*b?\\*["']"""
    return re.compile(rf"(?i)({pair}|(?:{names})(?:%3d|{_BETWEEN})){value}")


_FORMS = (
    _Form(  # JWTs, signed or encrypted, by their JSON head: '{"' or '{ "'
        "ey",
        re.compile(r"\bey[JA][A-Za-z0-9_-]{7,}(?:\.[A-Za-z0-9_-]*){2,4}"),
        MASK,
    ),
    _Form(  # secrets of users, whose first part is not one
        "vo3_",
        re.compile(r"(vo3_(?:[A-Za-z0-9]+_)?)[A-Za-z0-9_-]{4,}"),
        rf"\1{MASK}",
    ),
    _Form(  # but not where it is explained: "Authorization: Bearer …"
        "authorization",
        _named("authorization", r"""(?!bearer\s+(?:…|\\u2026))[^"'\\]+"""),
        rf"\1{MASK}",
    ),
    _Form(
        "bearer",
        re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/-]{12,}=*"),
        rf"\1{MASK}",
    ),
    _Form(  # in Base64, which has capitals or digits
        "basic",
        re.compile(r"\b([Bb]asic\s+)(?=[a-z+/_-]*[A-Z0-9])[A-Za-z0-9+/_-]{12,}=*"),
        rf"\1{MASK}",
    ),
    _Form(
        "passw",
        _named("passw(?:or)?d"),
        rf"\1{MASK}",
    ),
    _Form(
        "secret",
        _named("client_secret|secret_access_key|secret_key"),
        rf"\1{MASK}",
    ),
    _Form(
        "://",
        re.compile(r"""(://)[^/?#\s"'\\<>]*@"""),
        rf"\1{MASK}@",
    ),
    _Form(
        "x-amz-",
        _named("x-amz-(?:signature|credential|security-token)"),
        rf"\1{MASK}",
    ),
    _Form(
        "awsaccesskeyid",
        _named("awsaccesskeyid"),
        rf"\1{MASK}",
    ),
    _Form(
        "signature",
        re.compile(rf"(?i)(\bsignature(?:%3d|=)){_VALUE}"),
        rf"\1{MASK}",
    ),
)


class Redaction:
    """Masks secrets in text. Never changes; safe in any thread.

    Args:
        secrets: Values that are secret.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {form for secret in secrets for form in _written(secret)}
        # A value that holds another one goes first, so that nothing of it is left.
        self._known = sorted(known, key=len, reverse=True)
        self._words = {
            each: re.compile(
                rf"(?<![A-Za-z0-9]){re.escape(each)}(?![A-Za-z0-9])", re.ASCII
            )
            for each in self._known
            if len(each) < _SURELY_RANDOM
        }

    def __repr__(self) -> str:
        return f"Redaction({len(self._known)} values)"

    def __call__(self, text: str) -> str:
        """Return the text with a mask for each secret in it.

        A JSON text stays one: no quotation mark is added or taken away.
        """
        for secret in self._known:
            if secret in text:
                word = self._words.get(secret)
                text = text.replace(secret, MASK) if not word else word.sub(MASK, text)
        lowered = text.lower()
        for trigger, pattern, replacement in _FORMS:
            if trigger in lowered:
                text = pattern.sub(replacement, text)
        return text


def secrets_of(settings: Settings) -> frozenset[str]:
    """Return all values of the settings that nobody may see."""
    found: set[str] = set()
    for field in type(settings).model_fields:
        value = getattr(settings, field)
        if isinstance(value, SecretStr):
            found.add(value.get_secret_value())
    url = settings.database_url.get_secret_value()
    found.discard(url)
    found.update(_secrets_in_url(url))
    for value in tuple(found):
        if len(value) >= MIN_SECRET_SIZE:
            # Of several keys each, and of a key in PEM each line.
            found.update(
                part
                for part in re.split(r"(?:\\n|[\s,])+", value)
                if len(part) >= MIN_SECRET_SIZE
            )
    return frozenset(found)


def _secrets_in_url(url: str) -> Iterator[str]:
    """Yield what is secret in a database's URL: not where the database is."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        yield url
        return
    if parsed.password is not None:
        yield str(parsed.password)
        yield url
    for name, value in parsed.query.items():
        if "password" in name and isinstance(value, str):
            yield value


def _written(secret: str) -> Iterator[str]:
    """Yield each form that a secret may have in a line of JSON."""
    plain = {secret, unquote(secret)}
    quoted = {quote(secret, safe=""), quote(secret), quote_plus(secret)}
    quoted |= {_ESCAPE.sub(lambda found: found[0].lower(), form) for form in quoted}
    forms = plain | quoted | {repr(secret.encode(errors="replace"))[2:-1]}
    # Once for the line itself, and again if the value is a text that has quoted it.
    for _ in range(2):
        forms |= {write(form)[1:-1] for form in forms for write in (json.dumps, repr)}
    yield from (form for form in forms if len(form) >= SHORTEST)
