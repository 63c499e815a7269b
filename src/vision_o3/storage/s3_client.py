"""Requests to one bucket by ``botocore``: all but the reading of bytes (ADR 10)."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vision_o3.errors import StorageError, TransientStorageError
from vision_o3.storage.retrying import Tries
from vision_o3.storage.s3_errors import Failure, error_of, failure_of_botocore

if TYPE_CHECKING:
    from collections.abc import Iterator

USER_AGENT = f"vision-o3/{version('vision-o3')}"
_MIB = 1 << 20
_ENDPOINT = re.compile(
    r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?"
)
"""A host, if need be its port and a path: no user, no query."""
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")
_LONGEST_CONNECT_S = 5.0
_CONNECTIONS = 32
"""Kept open between requests; more are made as needed."""


@dataclass(frozen=True, slots=True)
class S3Options:
    """How a store is reached and used. Nothing is read from anywhere else."""

    endpoint: str | None
    """URL, ``https://…`` or, for plain HTTP, ``http://…``; ``None`` is Amazon's."""
    region: str
    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    conditional_put: bool | None = None
    """Whether the store honours ``If-None-Match: *``; ``None``: find out."""
    multipart_bytes: int = 100_000_000
    """From this size on a file is sent in parts."""
    part_bytes: int = 16 * _MIB
    parallel_parts: int = 4
    """Parts on their way at once, of all uploads together."""
    timeout_s: float = 60.0
    """For all tries of one request together, not counting the bytes that flow."""

    @property
    def url(self) -> str:
        """The endpoint, Amazon's included."""
        if self.endpoint is None:
            return f"https://s3.{self.region}.amazonaws.com"
        return self.endpoint

    @property
    def host(self) -> str:
        """The endpoint's host, and its port unless usual, for messages."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def connect_timeout_s(self) -> float:
        """How long to wait for a connection."""
        return min(_LONGEST_CONNECT_S, self.read_timeout_s)

    @property
    def read_timeout_s(self) -> float:
        """How long to wait for the next byte of an answer."""
        return self.timeout_s / 3

    @property
    def retry_budget_s(self) -> float:
        """After how long no further try begins, so that the last one ends in time."""
        return self.timeout_s - self.read_timeout_s


def check_address(bucket: str, options: S3Options) -> None:
    """Refuse what obstore, or botocore at its first request, would fail upon.

    Raises:
        StorageError: The endpoint is no URL of a host, or the bucket no name.
    """
    if not _ENDPOINT.fullmatch(options.url):
        raise StorageError(
            "The endpoint of the object store is not a URL like https://host:port: "
            "correct it.",
            reason="endpoint",
        )
    if not _BUCKET.fullmatch(bucket):
        raise StorageError(
            f"{bucket!r} cannot be the name of a bucket: correct it.",
            reason="InvalidBucketName",
        )


class BucketClient:
    """One bucket. Safe in any thread; nothing is loaded before the first request."""

    def __init__(self, bucket: str, options: S3Options) -> None:
        self.options = options
        self._bucket = bucket
        self._lock = threading.Lock()
        self._made: Any = None

    def ask(self, operation: str, what: str, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401 - botocore's parameters
        """Send one request and return the answer; no second try.

        Args:
            operation: botocore's name of it, ``put_object``.
            what: What it is about, for messages.
            **parameters: botocore's, without the bucket.

        Raises:
            TransientStorageError: May succeed later; it may have been done.
            StorageFullError, StorageError: Any other failure.
        """
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - loaded when first used
        from botocore.parsers import ResponseParserError  # noqa: PLC0415

        send = getattr(self._client(), operation)
        try:
            answer: dict[str, Any] = send(Bucket=self._bucket, **parameters)
        except (BotoCoreError, ClientError, ResponseParserError, OSError) as error:
            failure = failure_of_botocore(error)
            raise error_of(failure, self.options.host, what) from error
        return answer

    def insist(self, operation: str, what: str, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401
        """Send a request, if need be again, that may be done twice; else as ``ask``."""
        tries = self.tries(f"{operation} {what}")
        while True:
            try:
                return self.ask(operation, what, **parameters)
            except TransientStorageError as error:
                tries.wait_after(error)

    def field(self, answer: dict[str, Any], name: str, what: str) -> Any:  # noqa: ANN401
        """Return what an answer must have.

        Raises:
            TransientStorageError: It has not: it is not one of an S3 store.
        """
        if name not in answer:
            raise error_of(Failure("unreadable"), self.options.host, what)
        return answer[name]

    def tries(self, what: str) -> Tries:
        """Return the tries that one request may take."""
        return Tries(what, self.options.retry_budget_s)

    def pages(
        self,
        operation: str,
        what: str,
        tokens: dict[str, str],
        **parameters: Any,  # noqa: ANN401 - botocore's parameters
    ) -> Iterator[dict[str, Any]]:
        """Yield the pages of a list, each asked for when it is needed.

        Args:
            operation: As for ``ask``.
            what: As for ``ask``.
            tokens: From a parameter of the next request to the field of an answer that
                it is taken from.
            **parameters: As for ``ask``.
        """
        while True:
            page = self.insist(operation, what, **parameters)
            yield page
            if not page.get("IsTruncated"):
                return
            following = {
                name: page[found] for name, found in tokens.items() if page.get(found)
            }
            if following.items() <= parameters.items() or not any(following.values()):
                raise StorageError(
                    f"The object store at {self.options.host} does not go on with "
                    f"{what} beyond one page.",
                    reason="paging",
                )
            parameters |= following

    def close(self) -> None:
        """Free connections. May be called any number of times."""
        with self._lock:
            if self._made is not None:
                self._made.close()

    def _client(self) -> Any:  # noqa: ANN401 - botocore makes its classes at run time
        with self._lock:
            if self._made is None:
                self._made = _make_client(self.options)
            return self._made


def _make_client(options: S3Options) -> Any:  # noqa: ANN401 - botocore makes its classes at run time
    from botocore.config import Config  # noqa: PLC0415 - 30 MB of memory, when needed
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415
    from botocore.session import Session  # noqa: PLC0415

    # Every variable at its default: neither the environment nor ~/.aws is read.
    variables = {
        name: (None, None, variable[2], None)
        for name, variable in Session.SESSION_VARIABLES.items()
    }
    for name in ("config_file", "credentials_file"):
        variables[name] = (None, None, os.devnull, None)
    config = Config(
        user_agent=USER_AGENT,
        connect_timeout=options.connect_timeout_s,
        read_timeout=options.read_timeout_s,
        retries={"mode": "standard", "total_max_attempts": 1},  # ours are better told
        max_pool_connections=max(_CONNECTIONS, options.parallel_parts),
        proxies={},
        tcp_keepalive=True,
        signature_version="s3v4",
        # The body's SHA-256 is in the signature: a checksum that every store checks.
        # Newer checksum headers are refused by some, Akave O3 among them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path", "payload_signing_enabled": True},
    )
    session = Session(session_vars=variables)
    try:
        client = session.create_client(
            "s3",
            region_name=options.region,
            endpoint_url=options.url,
            aws_access_key_id=options.access_key_id,
            aws_secret_access_key=options.secret_access_key,
            aws_session_token=options.session_token,
            config=config,
        )
    except (BotoCoreError, ValueError) as error:
        raise StorageError(
            f"The object store at {options.host} cannot be used with the region set "
            "for it: check the region and the endpoint.",
            reason="endpoint",
        ) from error
    client.meta.events.register("before-call.s3", _stay_in_region)
    return client


def _stay_in_region(context: dict[str, Any], **_: Any) -> None:  # noqa: ANN401 - botocore's
    """Keep botocore from trying other regions: reading, which does not, would fail."""
    context.setdefault("s3_redirect", {})["redirected"] = True
