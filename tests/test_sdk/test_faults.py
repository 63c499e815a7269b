"""Servers and links that misbehave: right bytes or the documented error, in bounded
time, and nothing wrong in the cache.

Each fault is met once, which a download should survive, and always, which it should
say; then an honest download into the same cache succeeds.
"""

from __future__ import annotations

import email.utils
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import pytest

from tests.fakes.fake_gateway import (
    Answer,
    FakeGateway,
    body,
    cut,
    extra,
    flip,
    header,
    redirect,
    refuse,
    whole,
)
from tests.fakes.misbehaving_server import (
    CONNECTED,
    Authority,
    Exchange,
    Fault,
    GeneratedFile,
    MisbehavingServer,
    away_for,
    bit_rot,
    chunks,
    drip,
    drip_body,
    endless,
    hang_up,
    headers,
    lying,
    raw,
    reset,
    stall,
    until,
    until_body,
)
from tests.test_sdk.conftest import MIB, FakeClock, content_of
from vision_o3.content.dag import cid_of_bytes
from vision_o3.errors import VisionO3Error
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.retry import RetryPolicy

SMALL = content_of(700)
LARGE = content_of(2 * MIB + 5000)
OTHER = content_of(2 * MIB + 5000, seed=2)
RIGHT = "right"
"""In the place of an error's code."""
WATCHDOG_S = 20.0
"""What takes so long goes on for ever."""
ONE_LEAF = MIB + (256 << 10)
"""A leaf, the head before it, and what the sockets hold when the client has left."""


def outcome(work: Callable[[], Path], content: bytes = LARGE) -> str:
    """Return ``RIGHT``, or the code of the error that was raised."""
    found: List[object] = []

    def run() -> None:
        try:
            found.append(work().read_bytes() == content)
        except BaseException as error:  # noqa: BLE001 - judged on the other thread
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(WATCHDOG_S)
    assert found, f"it goes on after {WATCHDOG_S} s"
    if isinstance(found[0], VisionO3Error):
        return found[0].code
    if isinstance(found[0], BaseException):
        raise found[0]
    assert found[0], "it returned wrong bytes"
    return RIGHT


class RunningClock(FakeClock):
    """Time that passes by sleeping, and a little by being looked at."""

    def monotonic(self) -> float:
        self.now += 1e-6
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return RunningClock()


class Site:
    """A gateway that serves ``SMALL`` and ``LARGE`` through a misbehaving server."""

    def __init__(self, server: MisbehavingServer, cache: Path) -> None:
        self.server = server
        self.cache = cache

    def client(self, url: str = "", **options: Any) -> VisionO3Client:
        """Return a client that is patient, but for its attempts."""
        values: Dict[str, Any] = {
            "cache_dir": self.cache,
            "timeout": 10.0,
            "retries": RetryPolicy(attempts=4, base_s=0.001),
            **options,
        }
        return VisionO3Client(url or self.server.url, **values)

    def download(self, name: str = "large", **options: Any) -> str:
        """Return the outcome of a download; nothing wrong is left in the cache."""
        content = SMALL if name == "small" else LARGE
        with self.client(**options) as client:
            result = outcome(lambda: client.download_model(name), content)
        check_cache(self.cache)
        return result

    def empty(self) -> None:
        """Begin with a new cache."""
        shutil.rmtree(self.cache, ignore_errors=True)

    def recovers(self, name: str = "large") -> bool:
        """Return whether an honest download into the same cache succeeds."""
        self.server.behave()
        return self.download(name) == RIGHT


def check_cache(directory: Path) -> None:
    """Nothing is visible that is not what its CID names."""
    for path in (directory / "artifacts").rglob("*"):
        if path.is_file():
            assert str(cid_of_bytes(path.read_bytes())) == path.parent.name


def publish_both(gateway: FakeGateway) -> FakeGateway:
    gateway.publish("small", SMALL)
    gateway.publish("large", LARGE)
    return gateway


MEMORY = Path("/dev/shm")  # noqa: S108 - a disk would wait for each fsync


@pytest.fixture
def site(gateway: FakeGateway) -> Iterator[Site]:
    server = MisbehavingServer(publish_both(gateway))
    home = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
    with home, server.serving():
        yield Site(server, Path(home.name, "cache"))


class Case(NamedTuple):
    fault: Fault
    once: str
    """The outcome if it happens once."""
    always: Tuple[str, ...]
    """The outcomes that are right if it always happens."""
    options: Dict[str, Any] = {}  # noqa: RUF012 - nobody changes it


PATIENT = ("transport_error",)
WRONG = ("digest_mismatch", "length_mismatch")
UNSURE = (RIGHT, *WRONG, *PATIENT)
"""All that came is the file, and then something else: it may be looked at or not."""
HASTY: Dict[str, Any] = {"timeout": 0.2}
GZIP = ("Content-Encoding: gzip",)


def framed(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


END = b"0\r\n\r\n"
BODY_FAULTS = {
    # Bytes
    "first bit": Case(bit_rot(0), RIGHT, WRONG),
    "other file": Case(lying(body(OTHER)), RIGHT, WRONG),
    "nothing": Case(lying(body(b"")), RIGHT, WRONG),
    "one byte short": Case(lying(cut(1)), RIGHT, WRONG),
    "one byte more": Case(lying(extra(b"\0")), RIGHT, WRONG),
    "much more": Case(lying(extra(bytes(3 * MIB))), RIGHT, WRONG),
    # Content-Length
    "length short": Case(headers("Content-Length: 7"), RIGHT, WRONG),
    "length long": Case(headers("Content-Length: 9999999"), RIGHT, WRONG),
    "length negative": Case(headers("Content-Length: -700"), RIGHT, WRONG),
    "length text": Case(headers("Content-Length: some"), RIGHT, WRONG),
    "length huge": Case(headers(f"Content-Length: {10**40}"), RIGHT, WRONG),
    "length twice": Case(headers("Content-Length: 7", without=" "), RIGHT, UNSURE),
    "no length": Case(headers(), RIGHT, (RIGHT,)),
    "no length, cut": Case(
        lying(cut(1), header("Content-Length", "")), RIGHT, (*WRONG, *PATIENT)
    ),
    # Transfer-Encoding
    "chunks": Case(chunks(lambda b: framed(b) + END), RIGHT, (RIGHT,)),
    "chunks of bytes": Case(
        chunks(lambda b: b"".join(framed(b[i : i + 1]) for i in range(700)) + END),
        RIGHT,
        UNSURE,
    ),
    "chunk without size": Case(chunks(lambda b: b"\r\n" + b), RIGHT, PATIENT),
    "chunk size text": Case(chunks(lambda b: b"some\r\n" + b), RIGHT, PATIENT),
    "chunk size negative": Case(chunks(lambda b: b"-9\r\n" + b), RIGHT, PATIENT),
    "chunk too long": Case(
        chunks(lambda b: b"%x\r\n%s" % (2 * len(b), b)), RIGHT, UNSURE
    ),
    "chunk huge": Case(chunks(lambda b: b"f" * 30 + b"\r\n" + b), RIGHT, UNSURE),
    "chunks cut": Case(chunks(lambda b: framed(b[:-1])), RIGHT, (*WRONG, *PATIENT)),
    "chunks too few": Case(
        chunks(lambda b: framed(b[:-1]) + END), RIGHT, (*WRONG, *PATIENT)
    ),
    "chunks without end": Case(chunks(framed), RIGHT, UNSURE),
    "chunks too many": Case(
        chunks(lambda b: framed(b) + framed(b"more") + END), RIGHT, UNSURE
    ),
    "chunks and length": Case(
        lying(header("Transfer-Encoding", "chunked")), RIGHT, PATIENT
    ),
    # Content-Encoding
    "gzip": Case(headers(*GZIP, without=" "), "transport_error", PATIENT),
    # Statuses
    "204": Case(raw(b"HTTP/1.1 204 No\r\n\r\n"), "transport_error", PATIENT),
    "304": Case(raw(b"HTTP/1.1 304 No\r\n\r\n"), "transport_error", PATIENT),
    "404": Case(lying(refuse(404, "not_found")), "not_found", ("not_found",)),
    "401": Case(
        lying(refuse(401, "unauthenticated")), "unauthenticated", ("unauthenticated",)
    ),
    "500": Case(lying(refuse(500)), "internal", ("internal",)),
    "502": Case(lying(refuse(502)), RIGHT, PATIENT),
    "503": Case(lying(refuse(503)), RIGHT, PATIENT),
    # What is not HTTP
    "garbage": Case(raw(b"\0\xff" * 500), RIGHT, PATIENT),
    "SSH": Case(raw(b"SSH-2.0-OpenSSH_9.2\r\n"), RIGHT, PATIENT),
    "HTTP/0.9": Case(raw(SMALL), RIGHT, PATIENT),
    "a blank line": Case(raw(b"\r\n\r\n"), RIGHT, PATIENT),
    "status text": Case(raw(b"HTTP/1.1 OK\r\n\r\n"), RIGHT, PATIENT),
    "status 99999": Case(raw(b"HTTP/1.1 99999 x\r\n\r\n"), RIGHT, PATIENT),
    "many headers": Case(headers(*["X: y"] * 5000), RIGHT, PATIENT),
    "long header": Case(headers("X: " + "y" * 100_000), RIGHT, PATIENT),
    "header no colon": Case(headers("no colon", without=" "), RIGHT, UNSURE),
    "endless headers": Case(
        endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), RIGHT, PATIENT
    ),
    "endless status": Case(endless(b"HTTP/1.1 200 ", b"O"), RIGHT, PATIENT),
    "endless line": Case(endless(b"HTTP/1.1 200 OK\r\nX: ", b"y"), RIGHT, PATIENT),
    "endless body": Case(
        endless(b"HTTP/1.1 200 OK\r\n\r\n", b"y"), RIGHT, (*WRONG, *PATIENT)
    ),
    "endless chunk": Case(
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
        RIGHT,
        (*WRONG, *PATIENT),
    ),
    "early hints": Case(raw(b"HTTP/1.1 103 Early Hints\r\n\r\n"), RIGHT, PATIENT),
    "endless 100": Case(endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), RIGHT, PATIENT),
    # Breaks
    "closed at once": Case(hang_up, RIGHT, PATIENT),
    "reset at once": Case(reset, RIGHT, PATIENT),
    "closed in the head": Case(until(40, hang_up), RIGHT, PATIENT),
    "reset in the head": Case(until(40, reset), RIGHT, PATIENT),
    "closed in the body": Case(until_body(300, hang_up), RIGHT, PATIENT),
    "reset in the body": Case(until_body(300, reset), RIGHT, PATIENT),
    # Waiting
    "stall at once": Case(stall, RIGHT, PATIENT, HASTY),
    "stall in the head": Case(until(40, stall), RIGHT, PATIENT, HASTY),
    "stall before the body": Case(until_body(0, stall), RIGHT, PATIENT, HASTY),
    "stall in the body": Case(until_body(300, stall), RIGHT, PATIENT, HASTY),
    "drip of the head": Case(drip(0), RIGHT, PATIENT, HASTY),
    "drip of the body": Case(drip_body, RIGHT, PATIENT, HASTY),
}


BOTH = [
    (fault, name)
    for fault, case in BODY_FAULTS.items()
    for name in (
        ["large"] if case.options else ["small", "large"]
    )  # waiting takes time
]


@pytest.mark.parametrize(("fault", "name"), BOTH)
def test_a_fault_of_a_body(site: Site, fault: str, name: str) -> None:
    meet(site, BODY_FAULTS[fault], "/download", name)


def meet(site: Site, case: Case, ending: str, name: str) -> None:
    """Meet a fault once, and then always, and then no more."""
    site.server.misbehave(ending, case.fault)
    assert site.download(name, **case.options) == case.once
    site.empty()
    site.server.behave()
    site.server.always(ending, case.fault)
    few = RetryPolicy(attempts=2, base_s=0.001)
    assert site.download(name, retries=few, **case.options) in case.always
    assert site.recovers(name)


@pytest.mark.parametrize("end", [hang_up, reset])
@pytest.mark.parametrize(("ending", "step"), [("/download", 1), ("/tiny", 5)])
def test_a_break_at_every_byte(
    gateway: FakeGateway, site: Site, ending: str, step: int, end: Fault
) -> None:
    """Of the answers to a small download, from the first of the head on."""
    gateway.publish("tiny", b"tiny")
    with site.client() as client:
        info = client.get_model_info("tiny")
        client.download(info)
        length = len(site.server.last(ending).message)
        for count in range(0, length, step):
            client.clear_cache()
            site.server.misbehave(ending, until(count, end))
            if ending == "/tiny":
                info = client.get_model_info("tiny")
            found = outcome(lambda: client.download(info), b"tiny")  # noqa: B023 - now
            assert found == RIGHT, count
            assert site.server.count(ending) >= 2, count
            site.server.exchanges.clear()
    check_cache(site.cache)


PLACES = [(leaf, place) for leaf in (0, 1, 2) for place in (0, 1, -1)]


@pytest.mark.parametrize(("leaf", "place"), PLACES)
def test_one_wrong_bit(site: Site, leaf: int, place: int) -> None:
    ends = [0, MIB, 2 * MIB, len(LARGE)]
    offset = ends[leaf] + place if place >= 0 else ends[leaf + 1] + place
    case = Case(bit_rot(offset), RIGHT, ("digest_mismatch",))
    meet(site, case, "/download", "large")


# Ranges


def ranged(edit: Callable[[Answer, int, int], None]) -> Fault:
    """Edit the answers to requests for ranges, given what they are."""

    def send(exchange: Exchange) -> None:
        if exchange.range is not None:
            edit(exchange.answer, *exchange.range)
        exchange.send(exchange.message)

    return send


def content_range(form: str) -> Fault:
    """Say that another range is sent."""

    def edit(answer: Answer, first: int, last: int) -> None:
        text = form.format(first=first, last=last, next=first + MIB, size=len(LARGE))
        answer.headers["Content-Range"] = text

    return ranged(edit)


def next_leaf(answer: Answer, first: int, last: int) -> None:
    """Send the bytes that come a leaf later, as if they were those asked for."""
    moved = LARGE[MIB:] + LARGE[:MIB]
    answer.body = moved[first : last + 1]


def other_file(answer: Answer, first: int, last: int) -> None:
    answer.body = OTHER[first : last + 1]


def no_content_range(answer: Answer, _first: int, _last: int) -> None:
    del answer.headers["Content-Range"]


def parts(answer: Answer, first: int, last: int) -> None:
    """Answer as to a request for several ranges."""
    inner = f"Content-Range: bytes {first}-{last}/{len(LARGE)}\r\n\r\n".encode()
    answer.body = b"--x\r\n" + inner + answer.body + b"\r\n--x--\r\n"
    answer.headers["Content-Type"] = "multipart/byteranges; boundary=x"
    del answer.headers["Content-Range"]


RANGE_FAULTS = {
    "200": Case(lying(whole(LARGE)), RIGHT, (RIGHT,)),
    "200 of another file": Case(lying(whole(OTHER)), RIGHT, WRONG),
    "206 of another file": Case(ranged(other_file), RIGHT, WRONG),
    "next leaf's bytes": Case(ranged(next_leaf), RIGHT, WRONG),
    "other start": Case(
        content_range("bytes {next}-{last}/{size}"), RIGHT, ("length_mismatch",)
    ),
    "other end": Case(
        content_range("bytes {first}-{next}/{size}"), RIGHT, ("length_mismatch",)
    ),
    "other total": Case(
        content_range("bytes {first}-{last}/9"), RIGHT, ("length_mismatch",)
    ),
    "unknown total": Case(content_range("bytes {first}-{last}/*"), RIGHT, UNSURE),
    "other unit": Case(
        content_range("leaves {first}-{last}/{size}"), RIGHT, ("length_mismatch",)
    ),
    "garbage": Case(content_range("\xff\0"), RIGHT, WRONG),
    "no Content-Range": Case(ranged(no_content_range), RIGHT, WRONG),
    "parts": Case(ranged(parts), RIGHT, WRONG),
    "416": Case(
        lying(refuse(416, "invalid_range")), "invalid_range", ("invalid_range",)
    ),
}


@pytest.mark.parametrize("fault", list(RANGE_FAULTS))
def test_a_fault_of_a_range(site: Site, fault: str) -> None:
    case = RANGE_FAULTS[fault]
    broken = until_body(MIB + 5, reset)  # so that a range is asked for
    site.server.misbehave("/download", broken, case.fault)
    assert site.download() == case.once
    site.empty()
    site.server.misbehave("/download", broken)
    site.server.always("/download", case.fault)
    assert site.download() in case.always
    assert site.recovers()


# Sidecars and documents


MISSHAPED = ("malformed_block", "missing_block", *WRONG)
SIDECAR_FAULTS = {
    **{
        f"bit at {at}": Case(lying(flip(at)), RIGHT, MISSHAPED)
        for at in (0, 1, 20, 58, 59, 61, 97, 98, 110, 150, -40, -1)
    },
    "short": Case(lying(cut(1)), RIGHT, WRONG),
    "empty": Case(lying(body(b"")), RIGHT, ("malformed_block",)),
    "long": Case(lying(extra(b"\0")), RIGHT, WRONG),
    "far too long": Case(lying(extra(bytes(9 * MIB))), RIGHT, ("malformed_block",)),
    "endless": Case(
        endless(b"HTTP/1.1 200 OK\r\n\r\n", b"\0"), RIGHT, ("malformed_block",)
    ),
    "no length": Case(headers(), RIGHT, (RIGHT,)),
    "stall": Case(until_body(30, stall), RIGHT, PATIENT, HASTY),
    "reset": Case(until_body(30, reset), RIGHT, PATIENT),
    "503": Case(lying(refuse(503)), RIGHT, PATIENT),
    "404": Case(lying(refuse(404, "not_found")), "not_found", ("not_found",)),
}


@pytest.mark.parametrize("fault", list(SIDECAR_FAULTS))
def test_a_fault_of_a_sidecar(site: Site, fault: str) -> None:
    meet(site, SIDECAR_FAULTS[fault], "/dag", "large")


def saying(**values: object) -> Fault:
    """Say something else in a version's document."""

    def send(exchange: Exchange) -> None:
        document = {**json.loads(exchange.answer.body), **values}
        exchange.answer.body = json.dumps(document).encode()
        exchange.send(exchange.message)

    return send


REFUSED = ("transport_error",)
UNFIT = ("malformed_block", "length_mismatch")
OTHER_CID = str(cid_of_bytes(OTHER))
DOCUMENT_FAULTS = {
    "not JSON": Case(lying(body(b"<html>")), "transport_error", REFUSED),
    "not UTF-8": Case(lying(body(b'"\xff"')), "transport_error", REFUSED),
    "empty": Case(lying(body(b"")), "transport_error", REFUSED),
    "a list": Case(lying(body(b"[]")), "transport_error", REFUSED),
    "null": Case(lying(body(b"null")), "transport_error", REFUSED),
    "deep": Case(lying(body(b"[" * 200_000)), "transport_error", REFUSED),
    "deep objects": Case(lying(body(b'{"a":' * 200_000)), "transport_error", REFUSED),
    "huge": Case(lying(body(b" " * (17 * MIB))), "transport_error", REFUSED),
    "endless": Case(
        endless(b"HTTP/1.1 200 OK\r\n\r\n", b" "), "transport_error", REFUSED
    ),
    "cut": Case(headers("Content-Length: 999"), RIGHT, PATIENT),
    "no CID": Case(saying(cid="x"), "transport_error", REFUSED),
    "another size": Case(saying(file_size=MIB), "malformed_block", UNFIT),
    "no size": Case(saying(file_size=None), "transport_error", REFUSED),
    "a size below zero": Case(saying(file_size=-1), "transport_error", REFUSED),
    "a huge size": Case(saying(file_size=10**30), "length_mismatch", UNFIT),
    "another name": Case(saying(name="other"), "transport_error", REFUSED),
    "a path as name": Case(saying(name="../../x"), "transport_error", REFUSED),
    "a path as format": Case(saying(file_format="../../x"), "transport_error", REFUSED),
}


@pytest.mark.parametrize("fault", list(DOCUMENT_FAULTS))
def test_a_fault_of_a_document(site: Site, fault: str) -> None:
    meet(site, DOCUMENT_FAULTS[fault], "/large", "large")


def test_another_cid_is_never_believed_twice(site: Site) -> None:
    """A version never changes: what was said of it first is held against the rest."""
    site.server.misbehave("/large", saying(cid=OTHER_CID))
    assert site.download() == "not_found"
    assert site.download() == "integrity_error"
    with site.client() as client:
        client.clear_cache()
    assert site.download() == RIGHT


# Redirects

TOKEN = "a-secret-token"


@pytest.fixture
def elsewhere() -> Iterator[MisbehavingServer]:
    """Another host, which has the same files."""
    with MisbehavingServer(publish_both(FakeGateway())).serving() as server:
        yield server


def tokens_seen(server: MisbehavingServer) -> List[str]:
    return [str(e.asked) for e in server.exchanges if TOKEN in str(e.asked)]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("ending", ["/large", "/dag", "/download"])
def test_a_redirect_to_another_host_takes_no_token_along(
    site: Site, elsewhere: MisbehavingServer, ending: str, status: int
) -> None:
    def away(exchange: Exchange) -> None:
        lying(redirect(elsewhere.url + exchange.target, status))(exchange)

    site.server.always(ending, away)
    assert site.download(api_token=TOKEN) == RIGHT
    assert elsewhere.count(ending) >= 1
    assert not tokens_seen(elsewhere)
    assert tokens_seen(site.server)


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "gopher://127.0.0.1:{port}/",
        "javascript:alert(1)",
        "http://user:password@127.0.0.1:{port}/x",
        "http://user@127.0.0.1:{port}/x",
        "http://127.0.0.1:99999/",
        "http://[::1",
        "//user:x@127.0.0.1:{port}/",
    ],
)
def test_a_redirect_that_is_refused(
    site: Site, elsewhere: MisbehavingServer, location: str
) -> None:
    target = location.format(port=elsewhere.url.rpartition(":")[2])
    refused = ("transport_error",)
    case = Case(lying(redirect(target)), "transport_error", refused)
    meet(site, case, "/download", "large")
    assert elsewhere.exchanges == []


@pytest.mark.parametrize("ending", ["/large", "/dag", "/download"])
def test_redirects_in_circles(
    site: Site, elsewhere: MisbehavingServer, ending: str
) -> None:
    def there(exchange: Exchange) -> None:
        lying(redirect(elsewhere.url + exchange.target))(exchange)

    def back(exchange: Exchange) -> None:
        lying(redirect(site.server.url + exchange.target))(exchange)

    site.server.always(ending, there)
    elsewhere.always(ending, back)
    assert site.download(api_token=TOKEN) == "transport_error"
    assert 1 <= elsewhere.count(ending) <= 20
    assert not tokens_seen(elsewhere)
    assert site.recovers()


@pytest.mark.parametrize("fault", [bit_rot(5), reset, lying(refuse(500)), stall])
def test_where_the_gateway_points_may_fail_once(
    site: Site, elsewhere: MisbehavingServer, fault: Fault
) -> None:
    def away(exchange: Exchange) -> None:
        lying(redirect(elsewhere.url + exchange.target))(exchange)

    site.server.always("/download", away)
    elsewhere.misbehave("/download", fault)
    assert site.download(timeout=0.5) == RIGHT


# Refusals that pass, or do not


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("asked", "at_least", "at_most"),
    [
        ("3", 3, 4),
        ("date", 25, 31),
        ("soon", 0, 1),
        ("-5", 0, 1),
        ("1.5", 0, 1),
        ("9" * 400, 0, 0),  # longer than the policy's patience: no wait, an error
    ],
)
def test_retry_after(
    site: Site, clock: FakeClock, status: int, asked: str, at_least: int, at_most: int
) -> None:
    if asked == "date":
        asked = email.utils.formatdate(clock.time() + 30, usegmt=True)
    waiting = lying(refuse(status, None, Retry_After=asked))
    site.server.misbehave("/download", waiting)
    refused = {429: "rate_limited", 503: "transport_error"}[status]
    expected = refused if len(asked) > 99 else RIGHT
    assert site.download(clock=clock) == expected
    assert at_least - 0.01 <= sum(clock.slept) <= at_most


@pytest.mark.parametrize("ending", ["/large", "/dag", "/download"])
def test_a_storm_of_503(site: Site, clock: FakeClock, ending: str) -> None:
    patient = RetryPolicy(attempts=10)
    site.server.misbehave(ending, *[lying(refuse(503))] * 6)
    assert site.download(clock=clock, retries=patient) == RIGHT
    site.empty()
    site.server.always(ending, lying(refuse(503)))
    before = site.server.count(ending)
    assert site.download(clock=clock, retries=patient) == "transport_error"
    assert site.server.count(ending) - before <= 10
    assert site.recovers()


def test_a_host_that_does_not_resolve(site: Site) -> None:
    named = pytest.raises(VisionO3Error, match=r"gateway\.invalid")
    with site.client(
        "http://gateway.invalid", deadline=10.0
    ) as client, named as caught:
        client.download_model("large")
    assert caught.value.code == "transport_error"
    assert site.recovers()


@pytest.mark.parametrize("after", [0, 5, MIB + 5, len(LARGE) - 1])
def test_the_gateway_restarts_midway(site: Site, after: int) -> None:
    site.server.misbehave("/download", away_for(0.1, after))
    patient = RetryPolicy(attempts=200, base_s=0.01, longest_s=0.05)
    assert site.download(retries=patient) == RIGHT


def test_a_version_is_published_midway(gateway: FakeGateway, site: Site) -> None:
    def publish(exchange: Exchange) -> None:
        gateway.publish("large", OTHER)
        until_body(MIB + 5, reset)(exchange)

    site.server.misbehave("/download", publish)
    assert site.download() == RIGHT
    with site.client() as client:
        assert outcome(lambda: client.download_model("large"), OTHER) == RIGHT
        assert outcome(lambda: client.download_model("large", 1)) == RIGHT


# TLS


@pytest.fixture(scope="session")
def authorities(
    tmp_path_factory: pytest.TempPathFactory,
) -> Tuple[Authority, Authority]:
    """One that is trusted, and one that is not."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not there")
    home = tmp_path_factory.mktemp("authorities")
    return Authority(home / "trusted"), Authority(home / "unknown")


@pytest.fixture
def authority(
    authorities: Tuple[Authority, Authority], monkeypatch: pytest.MonkeyPatch
) -> Authority:
    """The authority that the environment tells clients to trust."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authorities[0].certificate))
    return authorities[0]


def secure(gateway: FakeGateway, context: Any) -> MisbehavingServer:
    return MisbehavingServer(publish_both(gateway), context)


def test_an_authority_of_the_environment_is_trusted(
    gateway: FakeGateway, authority: Authority, tmp_path: Path
) -> None:
    with secure(gateway, authority.issue("IP:127.0.0.1")).serving() as server:
        site = Site(server, tmp_path / "cache")
        server.misbehave("/download", bit_rot(3), until_body(MIB + 5, reset), stall)
        assert site.download(timeout=0.5) == RIGHT


@pytest.mark.parametrize("wrong", ["unknown", "host", "expired"])
def test_a_certificate_that_is_refused(
    gateway: FakeGateway,
    authority: Authority,
    authorities: Tuple[Authority, Authority],
    tmp_path: Path,
    wrong: str,
) -> None:
    issuer = authorities[1] if wrong == "unknown" else authority
    name = "DNS:other.test" if wrong == "host" else "IP:127.0.0.1"
    context = issuer.issue(name, days=-1 if wrong == "expired" else 2)
    named = pytest.raises(VisionO3Error, match="certificate")
    with secure(gateway, context).serving() as server:
        client = Site(server, tmp_path / "cache").client(api_token=TOKEN)
        with client, named as caught:
            client.download_model("large")
    assert (caught.value.code, caught.value.retryable) == ("transport_error", False)
    assert server.exchanges == []  # it saw no request, and so no token
    assert cached(tmp_path) == []


def cached(tmp_path: Path) -> List[Path]:
    return list((tmp_path / "cache" / "artifacts").glob("*/*"))


def reset_hello(exchange: Exchange) -> None:
    """Break the connection once TLS begins; before, Python would not close it."""
    exchange.await_bytes()
    exchange.reset()


NOT_TLS = {
    "plain HTTP": raw(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    "garbage": raw(b"\x16\x03\x03\xff\xff" + bytes(100)),
    "closed": hang_up,
    "reset": reset_hello,
    "silent": stall,
}


@pytest.mark.parametrize("fault", list(NOT_TLS))
def test_a_handshake_that_fails(
    gateway: FakeGateway, authority: Authority, tmp_path: Path, fault: str
) -> None:
    with secure(gateway, authority.issue("IP:127.0.0.1")).serving() as server:
        site = Site(server, tmp_path / "cache")
        if fault != "silent":  # the wait for a connection is longer than the test's
            server.misbehave(CONNECTED, NOT_TLS[fault])
            assert site.download(timeout=0.5) == RIGHT
            site.empty()
        server.always(CONNECTED, NOT_TLS[fault])
        few = RetryPolicy(attempts=2, base_s=0.001)
        found = site.download(timeout=0.5, deadline=1.0, retries=few)
        assert found in ("transport_error", "deadline_exceeded")
        assert site.recovers()


def test_no_redirect_from_https_to_http(
    gateway: FakeGateway,
    authority: Authority,
    elsewhere: MisbehavingServer,
    tmp_path: Path,
) -> None:
    def away(exchange: Exchange) -> None:
        lying(redirect(elsewhere.url + exchange.target))(exchange)

    with secure(gateway, authority.issue("IP:127.0.0.1")).serving() as server:
        server.always("/download", away)
        site = Site(server, tmp_path / "cache")
        assert site.download(api_token=TOKEN) == "transport_error"
    assert elsewhere.exchanges == []


# Proxies


@pytest.fixture
def proxy_settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment, without a proxy."""
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def test_an_http_proxy(site: Site, proxy_settings: pytest.MonkeyPatch) -> None:
    proxy_settings.setenv("http_proxy", site.server.url)
    site.server.misbehave("/download", until_body(MIB + 5, reset), bit_rot(2 * MIB))
    assert site.download(url="http://gateway.invalid") == RIGHT
    targets = {each.target for each in site.server.exchanges}
    assert all(each.startswith("http://gateway.invalid/") for each in targets)


def test_no_proxy_for_hosts_that_want_none(
    site: Site, elsewhere: MisbehavingServer, proxy_settings: pytest.MonkeyPatch
) -> None:
    proxy_settings.setenv("http_proxy", elsewhere.url)
    proxy_settings.setenv("no_proxy", "localhost,127.0.0.1")
    assert site.download() == RIGHT
    assert elsewhere.exchanges == []


def test_a_tunnel_through_a_proxy(
    gateway: FakeGateway,
    authority: Authority,
    proxy_settings: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    context = authority.issue("DNS:gateway.invalid")
    with secure(gateway, context).serving() as server:
        proxy_settings.setenv("https_proxy", server.url.replace("https:", "http:"))
        site = Site(server, tmp_path / "cache")
        server.misbehave("/download", reset)
        found = site.download(url="https://gateway.invalid", api_token=TOKEN)
        assert found == RIGHT
        tunnels = [e for e in server.exchanges if e.target == "gateway.invalid:443"]
        assert tunnels
        assert not any(TOKEN in str(each.asked) for each in tunnels)


@pytest.mark.parametrize(
    "fault",
    [
        raw(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"),
        raw(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"),
        raw(b"\0\xff\r\n\r\n"),
        hang_up,
        reset,
        stall,
    ],
)
# Before Python 3.9, http.client leaves the answer of such a proxy to the collector.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)
def test_a_proxy_that_fails(
    gateway: FakeGateway,
    authority: Authority,
    proxy_settings: pytest.MonkeyPatch,
    tmp_path: Path,
    fault: Fault,
) -> None:
    context = authority.issue("DNS:gateway.invalid")
    with secure(gateway, context).serving() as server:
        proxy_settings.setenv("https_proxy", server.url.replace("https:", "http:"))
        server.always("gateway.invalid:443", fault)
        site = Site(server, tmp_path / "cache")
        few = RetryPolicy(attempts=2, base_s=0.001)
        url = "https://gateway.invalid"
        found = site.download(url=url, retries=few, deadline=1.0)
        gc.collect()
        assert found in ("transport_error", "deadline_exceeded")


# Mirrors


MIRROR_FAULTS: Dict[str, Tuple[Fault, Dict[str, Any]]] = {
    "first bit": (bit_rot(0), {}),
    "other file": (lying(body(OTHER)), {}),
    "206 of another file": (ranged(other_file), {}),
    "next leaf's bytes": (ranged(next_leaf), {}),
    "200 of another file": (lying(whole(OTHER)), {}),
    "404": (lying(refuse(404)), {}),
    "403": (lying(refuse(403)), {}),
    "500": (lying(refuse(500)), {}),
    "503": (lying(refuse(503, None, Retry_After="3000")), {}),
    "reset": (until_body(MIB // 2, reset), {}),
    "closed": (hang_up, {}),
    "stall": (until_body(MIB // 2, stall), HASTY),
    "drip": (drip_body, HASTY),
    "garbage": (raw(b"\0\xff" * 50), {}),
    "endless": (endless(b"HTTP/1.1 200 OK\r\n\r\n", b"y"), {}),
    "file": (lying(redirect("file:///etc/passwd")), {}),
    "gzip": (headers(*GZIP, without=" "), {}),
}
WHOLE_FILES = ("200 of another file", "endless")
HUGE = content_of(6 * MIB + 5000)
TEMPLATE = "/models/cid/{cid}/download"


@pytest.mark.parametrize("bad_first", [True, False])
@pytest.mark.parametrize("fault", list(MIRROR_FAULTS))
def test_a_bad_mirror_and_a_good_one(
    gateway: FakeGateway,
    site: Site,
    elsewhere: MisbehavingServer,
    fault: str,
    bad_first: bool,
) -> None:
    """The good one serves; a bad answer wastes a leaf at most."""
    gateway.publish("huge", HUGE)
    site.server.always("/download", lying(refuse(503)))
    wrong, options = MIRROR_FAULTS[fault]
    elsewhere.always("/download", wrong)
    good_gateway = FakeGateway()
    good_gateway.publish("huge", HUGE)
    with MisbehavingServer(good_gateway).serving() as good:
        mirrors = [elsewhere.url + TEMPLATE, good.url + TEMPLATE]
        ordered = mirrors if bad_first else mirrors[::-1]
        client = site.client(mirrors=ordered, api_token=TOKEN, **options)
        with client:
            found = outcome(lambda: client.download_model("huge"), HUGE)
        assert found == RIGHT
    elsewhere.settle()
    # One that knows no ranges sends what is there already before what is missing.
    most = 2 * ONE_LEAF if fault in WHOLE_FILES else ONE_LEAF
    assert elsewhere.sent("/download") <= elsewhere.count("/download") * most
    assert good.sent("/download") <= len(HUGE) + ONE_LEAF
    assert not tokens_seen(elsewhere)
    assert not tokens_seen(good)
    check_cache(site.cache)


# Memory

DOWNLOADER = """
import resource, sys

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10

limit = int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before = peak()
from vision_o3.sdk.client import VisionO3Client

with VisionO3Client(sys.argv[1], cache_dir=sys.argv[2]) as client:
    path = client.download_model("generated")
print(peak() - before, path)
"""
HAS_PEAK = Path("/proc/self/status").exists()


@pytest.mark.skipif(not HAS_PEAK, reason="the kernel does not say how much was used")
def test_memory_does_not_grow_with_the_file(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    """Beyond the interpreter's own; the larger file under ``ulimit -v`` of 256 MiB."""
    peaks = []
    # What measures coverage takes memory of its own.
    names = [name for name in os.environ if not name.startswith("COVERAGE_")]
    environment = {name: os.environ[name] for name in names}
    for size, limit in ((64 * MIB + 9, 0), (512 * MIB + 9, 256 * MIB)):
        file = GeneratedFile(size)
        file.publish(gateway, "generated")
        with MisbehavingServer(gateway).serving() as server:
            server.always("/download", file.serve())
            arguments = [server.url, str(tmp_path / "cache"), str(limit)]
            ended = subprocess.run(
                [sys.executable, "-c", DOWNLOADER, *arguments],
                check=True,
                stdout=subprocess.PIPE,
                env=environment,
                timeout=120,
            )
        peak, _, path = ended.stdout.decode().strip().partition(" ")
        peaks.append(int(peak))
        with open(path, "rb") as got:  # noqa: PTH123 - seldom read
            for leaf in range(0, size // MIB + 1, 9):
                got.seek(leaf * MIB)
                assert got.read(MIB) == file.leaf(leaf)
        Path(path).unlink()
    assert max(peaks) <= 64 * MIB
    assert abs(peaks[1] - peaks[0]) <= 8 * MIB
