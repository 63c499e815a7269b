"""The gateway's handle on its object store: from the settings to an open store.

Akave O3 is reached by its S3 API, as any S3 store is; what is O3's own is the
profile, which says where its public service answers (ADR 10).
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import urlsplit

from vision_o3.errors import ConfigurationError, StorageError
from vision_o3.registry.store_checks import (
    MULTIPART_BYTES,
    Finding,
    Status,
    check_store,
    plain_http,
    reason_of,
)
from vision_o3.settings import variable_of
from vision_o3.storage.factory import LocalLocation, open_store, parse_location
from vision_o3.storage.s3 import S3Options

if TYPE_CHECKING:
    from types import TracebackType

    from vision_o3.settings import Settings
    from vision_o3.storage.base import ObjectStore

_CHECK_TIMEOUT_S = 20.0
"""Nobody at a terminal wants to wait longer for "cannot be reached"."""


class Profile(NamedTuple):
    """Where a public service answers, and the region it signs for."""

    endpoint: str | None
    region: str | None


PROFILES = {"akave-o3": Profile("https://o3-rc2.akave.xyz", "akave-network")}
"""From docs.akave.xyz, "Akave O3 environment", 2026-11. They change; settings win."""
_KEYS = ("aws_access_key_id", "aws_secret_access_key")
_SETTINGS = {
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "AccessDenied": _KEYS,
    "http-403": _KEYS,
    "ExpiredToken": ("aws_session_token",),
    "InvalidToken": ("aws_session_token",),
    "AuthorizationHeaderMalformed": ("s3_region",),
    "PermanentRedirect": ("s3_region",),
    "NoSuchBucket": ("store",),
    "InvalidBucketName": ("store",),
    "dns": ("s3_endpoint",),
    "tls": ("s3_endpoint",),
    "unreachable": ("s3_endpoint",),
    "unreadable": ("s3_endpoint",),
}
"""Where to look first, by what the store answered."""
_SECOND_SETTINGS = {
    "store": "second_store",
    "s3_endpoint": "second_s3_endpoint",
    "s3_region": "second_s3_region",
    "aws_access_key_id": "second_s3_access_key_id",
    "aws_secret_access_key": "second_s3_secret_access_key",
}
"""What is set instead where it is set for the second store."""
_CONDITIONAL_PUT = {"auto": None, "yes": True, "no": False}


class O3Client:
    """An open object store and its name. Close it, or use it as a context manager.

    Attributes:
        store: The store.
        location: What the settings call it; holds no secret.
    """

    def __init__(self, store: ObjectStore, location: str) -> None:
        self.store = store
        self.location = location

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Open ``VISION_O3_STORE``.

        Raises:
            ConfigurationError: A setting that the store needs is missing.
            StorageError: It cannot be reached, refuses the keys, or has no such
                bucket.
        """
        return cls._open(settings, settings.store, second=False)

    @classmethod
    def open_second(cls, settings: Settings) -> Self | None:
        """Open ``VISION_O3_SECOND_STORE``, or return ``None`` if there is none.

        Raises:
            ConfigurationError, StorageError: As for ``open``.
        """
        if settings.second_store is None:
            return None
        return cls._open(settings, settings.second_store, second=True)

    @classmethod
    def open_at(cls, settings: Settings, location: str) -> Self:
        """Open the store at a location.

        One that equals ``VISION_O3_SECOND_STORE`` is reached by the settings of that,
        any other by those of ``VISION_O3_STORE``.

        Raises:
            ConfigurationError, StorageError: As for ``open``; or not a location, or
                the name of both stores.
        """
        place = parse_location(location)
        second = settings.second_store
        is_second = second is not None and place == parse_location(second)
        if is_second and place == parse_location(settings.store):
            raise ConfigurationError(
                "VISION_O3_STORE and VISION_O3_SECOND_STORE have the same name, so "
                "that it does not say which is meant. Add a prefix to one of them, or "
                "rename its bucket.",
            )
        return cls._open(settings, location, second=is_second)

    @staticmethod
    def check(settings: Settings, *, second: bool = False) -> list[Finding]:
        """Return what the store can do, or the second one; see ``check_store``.

        That it cannot be reached is a finding, not an error.

        Raises:
            ConfigurationError: As for ``open``; or there is no second store.
        """
        location = settings.second_store if second else settings.store
        if location is None:
            raise ConfigurationError("VISION_O3_SECOND_STORE is not set.")
        options = _options(settings, location, second=second)
        if options is None:
            return _checked(settings, location, None)
        options = replace(
            options,
            timeout_s=min(options.timeout_s, _CHECK_TIMEOUT_S),
            multipart_bytes=MULTIPART_BYTES,
            part_bytes=MULTIPART_BYTES,
        )
        findings = [
            replace(
                found,
                sentence=found.sentence + _hint(settings, found.reason, second=second),
            )
            for found in _checked(settings, location, options)
        ]
        return [_encryption(options), *findings]

    def close(self) -> None:
        """Free the store's connections. May be called any number of times."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @classmethod
    def _open(cls, settings: Settings, location: str, *, second: bool) -> Self:
        options = _options(settings, location, second=second)
        try:
            return cls(open_store(location, options), location)
        except StorageError as error:
            hint = _hint(settings, reason_of(error), second=second)
            if not hint:
                raise
            raise type(error)(error.message + hint, **error.values) from error


def _options(settings: Settings, location: str, *, second: bool) -> S3Options | None:
    """Return how the store at a location is reached; ``None`` for a directory.

    The second store is reached as the first, but for what is set for it.
    """
    if isinstance(parse_location(location), LocalLocation):
        return None
    profile = PROFILES.get(settings.s3_profile or "", Profile(None, None))
    endpoint = settings.s3_endpoint or profile.endpoint
    region = settings.s3_region or profile.region
    key_id, secret = settings.aws_access_key_id, settings.aws_secret_access_key
    token = settings.aws_session_token
    if second:
        endpoint = settings.second_s3_endpoint or endpoint
        region = settings.second_s3_region or region
        if settings.second_s3_access_key_id is not None:
            key_id = settings.second_s3_access_key_id
            secret = settings.second_s3_secret_access_key
            token = None
    if not (endpoint and region and key_id and secret):
        needed = {
            "s3_endpoint": endpoint,
            "s3_region": region,
            "aws_access_key_id": key_id,
            "aws_secret_access_key": secret,
        }
        missing = [variable_of(field) for field, value in needed.items() if not value]
        raise ConfigurationError(
            f"A store at s3://… needs {' and '.join(missing)}. For Akave O3, "
            "VISION_O3_S3_PROFILE=akave-o3 stands for endpoint and region; keys come "
            "from whoever runs the store.",
        )
    return S3Options(
        endpoint=endpoint,
        region=region,
        access_key_id=key_id.get_secret_value(),
        secret_access_key=secret.get_secret_value(),
        session_token=token.get_secret_value() if token else None,
        conditional_put=_CONDITIONAL_PUT[settings.s3_conditional_put],
        multipart_bytes=settings.s3_multipart_bytes,
        part_bytes=settings.s3_part_bytes,
        parallel_parts=settings.s3_parallel_parts,
        timeout_s=settings.s3_timeout_s,
    )


def _hint(settings: Settings, reason: str | None, *, second: bool) -> str:
    """Return a sentence that names the settings to look at, or nothing."""
    fields = _SETTINGS.get(reason or "", ())
    if second:
        # What is not set for the second store is as for the first.
        own = [_SECOND_SETTINGS.get(field, field) for field in fields]
        fields = tuple(
            second_field if getattr(settings, second_field) is not None else field
            for field, second_field in zip(fields, own, strict=True)
        )
    return f" Look at {' and '.join(map(variable_of, fields))}." if fields else ""


def _checked(
    settings: Settings, location: str, options: S3Options | None
) -> list[Finding]:
    """Open a store so that this asks it for nothing, check it, close it."""
    asks_nothing = options and replace(options, conditional_put=False)
    try:
        store = open_store(location, asks_nothing)
    except StorageError as error:
        return [Finding("reach", Status.FAILED, error.message, reason_of(error))]
    try:
        return check_store(
            store,
            clock=lambda: datetime.now(UTC),
            http=plain_http,
            reopen=None if options is None else lambda: open_store(location, options),
            direct_downloads=settings.direct_downloads,
        )
    finally:
        store.close()


def _encryption(options: S3Options) -> Finding:
    """Say whether what is sent to the store can be read on the way."""
    url = urlsplit(options.endpoint or "")
    if url.scheme == "https":
        sentence = "Requests and objects are encrypted on their way (HTTPS)."
        return Finding("encryption", Status.OK, sentence)
    if _is_loopback(url.hostname or ""):
        sentence = "Plain HTTP, which does not leave this machine."
        return Finding("encryption", Status.OK, sentence)
    return Finding(
        "encryption",
        Status.LIMITED,
        "Plain HTTP: who is on the way reads every object, and can use what is signed "
        "for some minutes. Use an https:// endpoint, unless the network is your own.",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
