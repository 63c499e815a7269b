"""A gateway in memory that speaks the HTTP contract, counts, and lies when told to.

``FakeGateway`` decides answers; it serves them on loopback (``with gateway.serving()``)
or straight to a client (``InMemoryTransport``). A lie is a function that edits an
``Answer``; tests queue them with ``gateway.lie(part_of_path, lie, lie, …)``.
Python 3.8, standard library only.
"""

from __future__ import annotations

import contextlib
import io
import json
import mimetypes
import socket
import sys
import tarfile
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

from vision_o3.content.cid import CID
from vision_o3.content.dag import ContentHasher, Dag, cid_of_bytes
from vision_o3.content.leaves import LeafTable
from vision_o3.content.manifest import FileEntry, encode_manifest, sort_key
from vision_o3.errors import IntegrityError, TransportError

CREATED_AT = "2026-11-24T14:00:00Z"


@dataclass
class Answer:
    """What to send. ``Content-Length`` is added unless it is set or ``chunked``."""

    status: int = 200
    headers: Dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    drop_after: Optional[int] = None
    """The connection breaks after this many bytes of the body."""
    drop_unanswered: bool = False
    """It breaks before any of the answer."""
    stall_after: Optional[int] = None
    """Nothing comes after this many bytes of the body."""
    endless: bool = False
    """The body is repeated until nobody listens."""
    chunked: bool = False


@dataclass
class Seen:
    """A request as it came."""

    method: str
    path: str
    query: Dict[str, List[str]]
    headers: Dict[str, str]
    body: bytes


@dataclass
class Published:
    document: Dict[str, Any]
    content: bytes
    dag: Dag
    files: Dict[str, bytes] = field(default_factory=dict)
    manifest: Optional[bytes] = None


@dataclass
class Partial:
    """An upload in parts."""

    table: LeafTable
    leaves: Dict[int, bytes] = field(default_factory=dict)

    def document(self, start: int, end: int) -> Dict[str, Any]:
        missing: List[List[int]] = []
        for index in self.table.covering(start, end):
            at, until = self.table.span(index)
            if index in self.leaves:
                continue
            if missing and missing[-1][1] == at:
                missing[-1][1] = until
            else:
                missing.append([at, until])
        absent = sum(until - at for at, until in missing)
        return {
            "cid": str(self.table.root),
            "file_size": self.table.size,
            "received": end - start - absent,
            "missing": missing,
            "expires_at": CREATED_AT,
        }

    def content(self) -> Optional[bytes]:
        if len(self.leaves) < self.table.count:
            return None
        return b"".join(self.leaves[index] for index in range(self.table.count))


Lie = Callable[[Answer], None]


def json_answer(status: int, document: object, **headers: str) -> Answer:
    kind = "application/problem+json" if status >= 400 else "application/json"
    all_headers = {"Content-Type": kind, **headers}
    return Answer(status, all_headers, json.dumps(document).encode())


def problem(status: int, code: str, **more: Any) -> Answer:
    detail = (
        f"It was {code}: {more['reason']}" if "reason" in more else f"It was {code}."
    )
    document = {"type": "about:blank", "title": "-", "status": status, "code": code}
    return json_answer(
        status, {**document, "detail": detail, "request_id": "r-1", **more}
    )


class FakeGateway:
    """Open to all unless ``tokens`` or ``users`` are set."""

    def __init__(self) -> None:
        self.url = "http://gateway.test"
        self.published: Dict[str, List[Published]] = {"models": [], "datasets": []}
        self.partial: Dict[str, Partial] = {}
        self.users: Dict[str, str] = {}
        self.tokens: List[str] = []
        self.expires_in: object = 3600
        self.page_size = 1000
        self.seen: List[Seen] = []
        self.body_bytes = 0
        """Sent, of successful downloads."""
        self._lies: List[Tuple[str, List[Lie]]] = []
        self._lock = threading.Lock()

    # What the test does

    def publish(
        self, name: str, content: bytes, collection: str = "models", **facts: Any
    ) -> Dict[str, Any]:
        """Publish content as the next version; return its document."""
        hasher = ContentHasher()
        hasher.update(content)
        dag = hasher.finish()
        number = 1 + sum(
            each.document["name"] == name for each in self.published[collection]
        )
        own = (
            {"framework": "onnx", "model_type": "detection", "file_format": "onnx"}
            if collection == "models"
            else {"format": "zip", "manifest_cid": None}
        )
        document = {
            "id": f"id-{name}-{number}",
            "name": name,
            "version": number,
            "cid": str(dag.root),
            "file_size": len(content),
            "description": "",
            "tags": [],
            "owner_id": "ann",
            "created_at": CREATED_AT,
            "facts": {},
            "links": {"self": "/"},
            **own,
            **facts,
        }
        self.published[collection].append(Published(document, content, dag))
        return document

    def publish_archive(
        self,
        name: str,
        files: Dict[str, bytes],
        container: str = "zip",
        *,
        archive: Optional[bytes] = None,
        manifest: Optional[bytes] = None,
        **facts: Any,
    ) -> Dict[str, Any]:
        """Publish an archive of files as a dataset's next version.

        ``archive`` or ``manifest`` replaces what the files would give.
        """
        if archive is None:
            archive = archive_of(files, container)
        if manifest is None:
            manifest = manifest_of(files)
        document = self.publish(
            name,
            archive,
            "datasets",
            format=container,
            manifest_cid=str(cid_of_bytes(manifest)),
            **facts,
        )
        published = self.published["datasets"][-1]
        published.files, published.manifest = files, manifest
        return document

    def withdraw(
        self,
        name: str,
        version: int,
        state: Optional[str],
        reason: str = "It sees ghosts.",
        collection: str = "models",
    ) -> None:
        """Withdraw a version; ``None`` serves it as before."""
        for each in self.published[collection]:
            if (each.document["name"], each.document["version"]) == (name, version):
                each.document["withdrawal"] = state and {
                    "state": state,
                    "reason": reason,
                    "at": CREATED_AT,
                }

    def lie(self, part_of_path: str, *lies: Lie, times: int = 1) -> None:
        """Edit the next answers to requests whose path ends so, one lie for each."""
        self._lies.append((part_of_path, list(lies) * times))

    def count(self, ending: str, method: str = "GET") -> int:
        """Return how many requests there were for paths that end so."""
        return sum(s.method == method and s.path.endswith(ending) for s in self.seen)

    # Answers

    def answer(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        parts = urlsplit(target)
        names = {name.lower(): value for name, value in headers.items()}
        seen = Seen(method, parts.path, parse_qs(parts.query), names, body)
        with self._lock:
            self.seen.append(seen)
            answer = self._route(seen)
            for ending, lies in self._lies:
                if parts.path.endswith(ending) and lies:
                    lies.pop(0)(answer)
                    break
            if parts.path.endswith("/download") and answer.status < 300:
                limit = answer.drop_after
                self.body_bytes += len(answer.body[:limit])
        return answer

    def _route(self, seen: Seen) -> Answer:
        words = seen.path.strip("/").split("/")
        if (seen.method, words) == ("POST", ["auth", "token"]):
            return self._sign_in(dict(parse_qsl(seen.body.decode())))
        if not self._lets_in(seen):
            return problem(401, "unauthenticated")
        return self._answer_within(words, seen)

    def _answer_within(self, words: List[str], seen: Seen) -> Answer:
        if words[0] == "uploads":
            return self._upload(words, seen)
        if words[0] not in self.published:
            return problem(404, "not_found")
        collection = self.published[words[0]]
        if seen.method == "POST":
            return self._receive(words[0], seen)
        if len(words) == 1:
            return self._list(collection, seen)
        found = self._find(collection, words[1:])
        if words[4:] == ["withdrawal"]:
            return self._set_withdrawal(found, seen)
        return _refusal(found, words, seen) or self._read(found, words, seen)

    def _read(self, found: Optional[Published], words: List[str], seen: Seen) -> Answer:
        if words[4:] and words[4] in ("manifest", "files"):
            return self._read_archive(found, words, seen)
        return self._describe(found, words[-1], seen)

    def _set_withdrawal(self, found: Optional[Published], seen: Seen) -> Answer:
        if found is None:
            return problem(404, "not_found")
        name, version = found.document["name"], found.document["version"]
        collection = seen.path.strip("/").split("/")[0]
        if _state(found) == "purged":
            return problem(410, "version_purged", reason="It was the law.")
        if seen.method == "DELETE":
            self.withdraw(name, version, None, collection=collection)
            return Answer(204)
        given = json.loads(seen.body.decode())
        if given["state"] not in ("deprecated", "blocked") or not given["reason"]:
            return problem(422, "invalid_input")
        self.withdraw(name, version, given["state"], given["reason"], collection)
        return json_answer(200, found.document)

    def _lets_in(self, seen: Seen) -> bool:
        given = seen.headers.get("authorization", "")
        known = [f"Bearer {token}" for token in self.tokens]
        return given in known or not (self.tokens or self.users)

    @staticmethod
    def _describe(found: Optional[Published], what: str, seen: Seen) -> Answer:
        car = found.dag.sidecar() if found is not None else None
        if found is None or (what == "dag" and car is None):
            return problem(404, "not_found")
        if what == "dag" and car is not None:
            return Answer(200, {"Content-Type": "application/vnd.ipld.car"}, car)
        if what == "download":
            return _bytes_answer(found.content, seen.headers.get("range", ""))
        return json_answer(200, found.document)

    @staticmethod
    def _read_archive(
        found: Optional[Published], words: List[str], seen: Seen
    ) -> Answer:
        if found is None or found.manifest is None:
            return problem(404, "not_found")
        if words[4:] == ["manifest"]:
            return Answer(200, {"Content-Type": "application/json"}, found.manifest)
        content = found.files.get(unquote("/".join(words[5:])))
        if content is None:
            return problem(404, "not_found")
        return _bytes_answer(content, seen.headers.get("range", ""))

    def _sign_in(self, form: Dict[str, str]) -> Answer:
        user, secret = form.get("client_id", ""), form.get("client_secret")
        if self.users.get(user) != secret or secret is None:
            return problem(401, "unauthenticated")
        self.tokens.append(f"token-{len(self.tokens) + 1}")
        document = {"access_token": self.tokens[-1], "token_type": "bearer"}
        return json_answer(
            200, {**document, "expires_in": self.expires_in, "scope": "model:read"}
        )

    def _list(self, collection: List[Published], seen: Seen) -> Answer:
        latest = {
            each.document["name"]: each.document
            for each in collection
            if _state(each) not in _NOT_SERVED
        }
        framework = seen.query.get("framework", [None])[0]
        tags = seen.query.get("tags", [])
        found = [
            each
            for each in latest.values()
            if framework in (None, each.get("framework"))
            and set(tags) <= set(each["tags"])
        ]
        size = min(self.page_size, int(seen.query.get("page_size", ["50"])[0]))
        start = (int(seen.query.get("page", ["1"])[0]) - 1) * size
        return json_answer(
            200, {"items": found[start : start + size], "total": len(found)}
        )

    def _find(
        self, collection: List[Published], words: List[str]
    ) -> Optional[Published]:
        """Return the newest that is meant and served; else the newest that is meant."""
        meant = [
            each
            for each in reversed(collection)
            if (words[0] == "cid" and each.document["cid"] == words[1])
            or (
                each.document["name"] == words[0]
                and (
                    words[1:2] != ["versions"]
                    or str(each.document["version"]) == words[2]
                )
            )
        ]
        served = [each for each in meant if _state(each) not in _NOT_SERVED]
        return next(iter(served or meant), None)

    def _upload(self, words: List[str], seen: Seen) -> Answer:
        if seen.method == "PUT" and len(words) == 2:
            known = self.partial.get(words[1])
            if known is None:
                table = LeafTable.from_sidecar(CID.parse(words[1]), seen.body)
                known = self.partial[words[1]] = Partial(table)
            return json_answer(200, known.document(0, known.table.size))
        upload = self.partial.get(words[1])
        if upload is None:
            return problem(404, "not_found")
        if seen.method == "GET":
            size = upload.table.size
            start, end = (
                int(seen.query.get(name, [default])[0])
                for name, default in (("start", 0), ("end", size))
            )
            return json_answer(200, upload.document(start, end))
        return self._receive_part(upload, int(words[3]), seen)

    @staticmethod
    def _receive_part(upload: Partial, offset: int, seen: Seen) -> Answer:
        announced = int(seen.headers["content-length"])
        for index in upload.table.covering(offset, offset + announced):
            start, end = upload.table.span(index)
            leaf = seen.body[start - offset : end - offset]
            if len(leaf) < end - start:
                return problem(400, "incomplete_upload")
            try:
                upload.table.verify(index, leaf)
            except IntegrityError:
                return problem(422, "cid_mismatch")
            upload.leaves[index] = leaf
        return Answer(204)

    def _known(self, collection: str, cid: str) -> Optional[bytes]:
        for each in self.published[collection]:
            if each.document["cid"] == cid:
                return each.content
        upload = self.partial.get(cid)
        return None if upload is None else upload.content()

    def _receive(self, collection: str, seen: Seen) -> Answer:
        boundary = (
            seen.headers.get("content-type", "boundary=none")
            .partition("boundary=")[2]
            .encode()
        )
        fields: Dict[str, Any] = {"tags": []}
        content: Optional[bytes] = None
        for part in seen.body.split(b"--" + boundary)[1:-1]:
            head, _, value = part[2:-2].partition(b"\r\n\r\n")
            name = head.partition(b'name="')[2].partition(b'"')[0].decode()
            if name == "file":
                content = value
            elif name == "tags":
                fields["tags"].append(value.decode())
            else:
                fields[name] = value.decode()
        name, declared = fields.pop("name", "-"), fields.pop("cid", "")
        fields.pop("filename", None)
        if content is None:
            content = self._known(collection, declared)
            if content is None:
                return problem(409, "content_needed", cid=declared)
            self.partial.pop(declared, None)
        for each in reversed(self.published[collection]):
            if each.document["name"] == name and each.content == content:
                return json_answer(200, {**each.document, "created": False})
        document = self.publish(name, content, collection, **fields)
        if document["cid"] != declared:
            self.published[collection].pop()
            return problem(422, "cid_mismatch", expected=declared)
        return json_answer(201, {**document, "created": True})

    # On loopback

    @contextlib.contextmanager
    def serving(self) -> Iterator[FakeGateway]:
        """Serve on a free port of the loopback interface; ``url`` says where."""
        server = _Server(("127.0.0.1", 0), _Handler)
        server.gateway = self
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True
        )
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            server.closing.set()
            server.shutdown()
            server.server_close()
            thread.join()


def manifest_of(files: Dict[str, bytes]) -> bytes:
    """Return the canonical manifest of an archive with these files."""
    entries = [
        FileEntry(
            path,
            len(content),
            cid_of_bytes(content),
            mimetypes.guess_type(path)[0] or "application/octet-stream",
        )
        for path, content in files.items()
    ]
    return b"".join(encode_manifest(sorted(entries, key=sort_key)))


def archive_of(files: Dict[str, bytes], container: str) -> bytes:
    """Return a ``zip`` or ``tar.gz`` with these files, and folders in between."""
    stream = io.BytesIO()
    if container == "zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr("a folder/", b"")
            for path, content in files.items():
                opened.writestr(path, content)
    else:
        with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as opened_tar:
            folder = tarfile.TarInfo("./a folder")
            folder.type = tarfile.DIRTYPE
            opened_tar.addfile(folder)
            for path, content in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(content)
                opened_tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


_NOT_SERVED = ("blocked", "purged")


def _state(each: Published) -> Optional[str]:
    withdrawal = each.document.get("withdrawal")
    return withdrawal["state"] if withdrawal else None


def _refusal(
    found: Optional[Published], words: List[str], seen: Seen
) -> Optional[Answer]:
    """Return the answer to who wants what was withdrawn; none if it is served.

    Of one version by its number all may read why.
    """
    state = None if found is None else _state(found)
    if found is None or state not in _NOT_SERVED:
        return None
    if words[2:3] == ["versions"] and len(words) == 4:
        return None
    reason = found.document["withdrawal"]["reason"]
    if state == "purged":
        return problem(410, "version_purged", reason=reason)
    by_number = words[2:3] == ["versions"] or words[1] == "cid"
    if by_number and seen.query.get("allow_blocked") == ["true"]:
        return None
    return problem(403, "version_blocked", reason=reason)


def _bytes_answer(content: bytes, asked: str) -> Answer:
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    if not asked:
        return Answer(200, headers, content)
    first, _, last = asked[len("bytes=") :].partition("-")
    start, end = int(first), min(int(last or len(content)) + 1, len(content))
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
    return Answer(206, headers, content[start:end])


# Lies


def flip(offset: int) -> Lie:
    """Change one bit of the body."""

    def edit(answer: Answer) -> None:
        changed = bytearray(answer.body)
        if offset < len(changed):
            changed[offset] ^= 1
        answer.body = bytes(changed)

    return edit


def body(content: bytes) -> Lie:
    """Send another body."""

    def edit(answer: Answer) -> None:
        answer.body = content

    return edit


def cut(count: int) -> Lie:
    """Leave off bytes of the end, and announce what is left."""

    def edit(answer: Answer) -> None:
        answer.body = answer.body[:-count]

    return edit


def extra(more: bytes) -> Lie:
    """Send more bytes, and announce them."""

    def edit(answer: Answer) -> None:
        answer.body += more

    return edit


def header(name: str, value: str) -> Lie:
    """Say something else in a header."""

    def edit(answer: Answer) -> None:
        answer.headers[name] = value

    return edit


def drop(after: int) -> Lie:
    """Break the connection after so many bytes of the body."""

    def edit(answer: Answer) -> None:
        answer.drop_after = after

    return edit


def stall(after: int) -> Lie:
    """Send nothing more after so many bytes of the body."""

    def edit(answer: Answer) -> None:
        answer.stall_after = after

    return edit


def drop_unanswered(answer: Answer) -> None:
    """Break the connection instead of answering."""
    answer.drop_unanswered = True


def endless(answer: Answer) -> None:
    """Send the body again and again, without saying how long it is."""
    answer.endless = answer.chunked = True


def chunked(answer: Answer) -> None:
    """Do not announce how long the body is."""
    answer.chunked = True


def whole(content: bytes) -> Lie:
    """Answer 200 with everything, whatever the range."""

    def edit(answer: Answer) -> None:
        answer.status, answer.body = 200, content
        answer.headers.pop("Content-Range", None)

    return edit


def refuse(status: int, code: Optional[str] = None, **headers: str) -> Lie:
    """Answer with a problem document, or with plain words if there is no code."""

    def edit(answer: Answer) -> None:
        other = Answer(status, {"Content-Type": "text/html"}, b"<h1>Oh dear</h1>")
        if code is not None:
            other = problem(status, code)
        answer.status, answer.body = status, other.body
        answer.headers = {
            **other.headers,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }

    return edit


def redirect(location: str, status: int = 307) -> Lie:
    """Point elsewhere."""

    def edit(answer: Answer) -> None:
        answer.status, answer.body = status, b""
        answer.headers = {"Location": location}

    return edit


def nothing(answer: Answer) -> None:
    """Be honest this time."""


# In memory


class InMemoryTransport:
    """Carries requests to gateways by their origins, without a network."""

    def __init__(self, gateways: Mapping[str, FakeGateway]) -> None:
        self._gateways = gateways
        self.closed = 0

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Any = None,
        bounds: Any = None,
    ) -> _InMemoryResponse:
        if bounds is not None:
            bounds.check()
        parts = urlsplit(url)
        gateway = self._gateways.get(f"{parts.scheme}://{parts.netloc}")
        if gateway is None:
            raise TransportError(f"{parts.netloc} cannot be reached.")
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        if body is not None and not isinstance(body, bytes):
            body = b"".join(bytes(piece) for piece in body)
        answer = gateway.answer(method, target, headers, body or b"")
        if answer.drop_unanswered:
            raise TransportError("No answer.")
        return _InMemoryResponse(answer)

    def close(self) -> None:
        self.closed += 1


class _InMemoryResponse:
    def __init__(self, answer: Answer) -> None:
        self.status = answer.status
        self.headers = {name.lower(): value for name, value in answer.headers.items()}
        if not answer.chunked:
            self.headers.setdefault("content-length", str(len(answer.body)))
        self._answer = answer
        self._at = 0

    def readinto(self, buffer: memoryview) -> int:
        answer = self._answer
        for limit in (answer.drop_after, answer.stall_after):
            if limit is not None and self._at >= limit:
                raise TransportError("The connection broke.")
        limits = [x for x in (answer.drop_after, answer.stall_after) if x is not None]
        end = min([len(answer.body), *limits])
        piece = answer.body[self._at : min(end, self._at + len(buffer))]
        if answer.endless:
            piece = (answer.body * (len(buffer) // len(answer.body) + 1))[: len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def close(self) -> None:
        pass


# The server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    gateway: FakeGateway

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.closing = threading.Event()

    def handle_error(self, *arguments: Any) -> None:
        """Say nothing of clients that left."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*arguments)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 0
    server: _Server

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        given = self.rfile.read(length)
        gateway = self.server.gateway
        answer = gateway.answer(self.command, self.path, dict(self.headers), given)
        if answer.drop_unanswered:
            self._break()
            return
        with contextlib.suppress(ConnectionError):
            self._send(answer)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        for limit in (answer.drop_after, answer.stall_after):
            if limit is not None:
                self._write(answer.body[:limit], answer)
                if limit == answer.stall_after:
                    self.server.closing.wait(5)
                self._break()
                return
        self._write(answer.body, answer)
        while answer.endless:
            self._write(answer.body, answer)
        if answer.chunked:
            self.wfile.write(b"0\r\n\r\n")
        if int(answer.headers.get("Content-Length", 0)) > len(answer.body):
            self._break()

    def _write(self, piece: bytes, answer: Answer) -> None:
        if answer.chunked:
            piece = b"%x\r\n%s\r\n" % (len(piece), piece)
        self.wfile.write(piece)

    def _break(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _handle  # noqa: N815 - names set by http.server

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
