"""A small S3 server in the tests' process, for quirks that no real one here has.

It checks no signatures and keeps objects in memory. ``Quirks`` says how it is odd.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "probe-bucket"
_XML = '<?xml version="1.0" encoding="UTF-8"?>'


@dataclass
class Quirks:
    """How the server differs from a good one; may be changed while it runs."""

    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By method, or ``*``: the status and S3 code that every request is answered."""
    refuse_query: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By a word of the query, as ``uploads``: likewise."""
    conditions: str = "honoured"
    """If-None-Match is ``honoured``, ``ignored``, or ``refused``."""
    conditions_of_parts: str | None = None
    """Likewise for what ends an upload in parts, unless the same."""
    needs_digest: bool = False
    """Whether bytes must come with their MD5, as to a bucket with Object Lock."""
    ranges: str = "honoured"
    """Range is ``honoured``, ``ignored`` (200, all bytes), ``misread`` (206, other
    bytes), or answered with the right bytes and 200: ``unsaid``."""
    clock_ahead: timedelta = timedelta()
    public: bool = False
    """Whether requests without a signature are served."""
    presigned: bool = True
    lists: bool = True
    """Whether lists have what is there."""
    deletes: bool = True
    """Whether what is answered to be deleted is."""
    corrupts: bool = False
    """Whether a bit of each object is wrong."""
    versions: str | None = "Enabled"
    lock: str | None = "COMPLIANCE"


@dataclass
class QuirkyS3:
    """A running server."""

    endpoint: str
    quirks: Quirks
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """Method and path with query of each request."""


@contextmanager
def quirky_s3() -> Iterator[QuirkyS3]:
    """Run a server with one bucket, ``BUCKET``, on a free port of loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    state = QuirkyS3(f"http://127.0.0.1:{server.server_port}", Quirks())
    server.state = state  # type: ignore[attr-defined]  # handlers know only the server
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}
    )
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        del timestamp
        return format_datetime(self._now(), usegmt=True)

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    @property
    def _state(self) -> QuirkyS3:
        state: QuirkyS3 = self.server.state  # type: ignore[attr-defined]  # as above
        return state

    def _now(self) -> datetime:
        return datetime.now(UTC) + self._state.quirks.clock_ahead

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {
            name: values[-1]
            for name, values in parse_qs(url.query, keep_blank_values=True).items()
        }
        quirks = self._state.quirks
        self._state.requests.append(f"{self.command} {self.path}")
        refused = quirks.refuse.get("*") or quirks.refuse.get(self.command)
        for word, answer in quirks.refuse_query.items():
            refused = answer if word in query else refused
        presigned = "X-Amz-Signature" in query or "Signature" in query
        if "Authorization" not in self.headers and not presigned and not quirks.public:
            refused = (403, "AccessDenied")
        if presigned and not quirks.presigned:
            refused = (400, "InvalidRequest")
        _, _, rest = url.path.partition("/")
        bucket, _, key = unquote(rest).partition("/")
        if bucket != BUCKET and refused is None:
            refused = (404, "NoSuchBucket")
        if quirks.needs_digest and body and self.command == "PUT":
            digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest())
            if self.headers.get("Content-MD5") != digest.decode():
                refused = (400, "InvalidRequest")
        if refused is not None:
            self._fail(*refused)
        elif not key:
            self._bucket(query)
        elif "uploads" in query or "uploadId" in query:
            self._upload(key, query, body)
        else:
            self._object(key, body)

    def _bucket(self, query: dict[str, str]) -> None:
        quirks = self._state.quirks
        if "versioning" in query:
            status = f"<Status>{quirks.versions}</Status>" if quirks.versions else ""
            self._xml(f"<VersioningConfiguration>{status}</VersioningConfiguration>")
        elif "object-lock" in query:
            if quirks.lock is None:
                self._fail(404, "ObjectLockConfigurationNotFoundError")
                return
            self._xml(
                "<ObjectLockConfiguration><ObjectLockEnabled>Enabled"
                "</ObjectLockEnabled><Rule><DefaultRetention>"
                f"<Mode>{quirks.lock}</Mode><Days>1</Days>"
                "</DefaultRetention></Rule></ObjectLockConfiguration>"
            )
        elif "uploads" in query:
            self._xml("<ListMultipartUploadsResult></ListMultipartUploadsResult>")
        else:
            listed = "".join(
                f"<Contents><Key>{key}</Key><LastModified>{self._now():%Y-%m-%dT%H:%M:%S}"
                f".000Z</LastModified><ETag>&quot;0&quot;</ETag><Size>{len(content)}"
                "</Size><StorageClass>STANDARD</StorageClass></Contents>"
                for key, content in sorted(self._state.objects.items())
                if key.startswith(query.get("prefix", "")) and quirks.lists
            )
            self._xml(
                f"<ListBucketResult><Name>{BUCKET}</Name><IsTruncated>false"
                f"</IsTruncated>{listed}</ListBucketResult>"
            )

    def _upload(self, key: str, query: dict[str, str], body: bytes) -> None:
        uploads = self._state.uploads
        if self.command == "POST" and "uploads" in query:
            name = uuid.uuid4().hex
            uploads[name] = {}
            self._xml(
                f"<InitiateMultipartUploadResult><Bucket>{BUCKET}</Bucket>"
                f"<Key>{key}</Key><UploadId>{name}</UploadId>"
                "</InitiateMultipartUploadResult>"
            )
        elif query["uploadId"] not in uploads:
            self._fail(404, "NoSuchUpload")
        elif self.command == "PUT":
            uploads[query["uploadId"]][int(query["partNumber"])] = body
            self._answer(200, headers={"ETag": _etag(body)})
        elif self.command == "DELETE":
            del uploads[query["uploadId"]]
            self._answer(204)
        elif self._may_store(key):
            parts = uploads.pop(query["uploadId"])
            content = b"".join(part for _, part in sorted(parts.items()))
            self._state.objects[key] = content
            self._xml(
                f"<CompleteMultipartUploadResult><Key>{key}</Key>"
                f"<ETag>{_etag(content)}</ETag></CompleteMultipartUploadResult>"
            )

    def _object(self, key: str, body: bytes) -> None:
        objects = self._state.objects
        if self.command == "PUT":
            if self._may_store(key):
                objects[key] = body
                self._answer(200, headers={"ETag": _etag(body)})
        elif self.command == "DELETE":
            if self._state.quirks.deletes:
                objects.pop(key, None)
            self._answer(204)
        elif key not in objects:
            self._fail(404, "NoSuchKey")
        else:
            self._send_object(objects[key])

    def _may_store(self, key: str) -> bool:
        """Say whether a write goes on; if not, it was answered."""
        if self.headers.get("If-None-Match") != "*":
            return True
        conditions = self._state.quirks.conditions
        if self.command == "POST":
            conditions = self._state.quirks.conditions_of_parts or conditions
        if conditions == "refused":
            self._fail(501, "NotImplemented")
            return False
        if conditions == "honoured" and key in self._state.objects:
            self._fail(412, "PreconditionFailed")
            return False
        return True

    def _send_object(self, content: bytes) -> None:
        quirks = self._state.quirks
        if quirks.corrupts:
            content = bytes([content[0] ^ 1]) + content[1:]
        headers = {
            "ETag": _etag(content),
            "Last-Modified": format_datetime(self._now(), usegmt=True),
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None or quirks.ranges == "ignored":
            self._answer(200, content, headers)
            return
        start, last = int(asked[1]), int(asked[2] or len(content) - 1)
        last = min(last, len(content) - 1)
        if quirks.ranges == "misread" and start:
            start, last = start - 1, last - 1
        piece = content[start : last + 1]
        if quirks.ranges == "unsaid":
            self._answer(200, piece, headers)
            return
        headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
        self._answer(206, piece, headers)

    def _xml(self, text: str) -> None:
        self._answer(200, (_XML + text).encode(), {"Content-Type": "application/xml"})

    def _fail(self, status: int, code: str) -> None:
        message = "Content-MD5 is required" if code == "InvalidRequest" else code
        text = f"{_XML}<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        self._answer(status, text.encode(), {"Content-Type": "application/xml"})

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
