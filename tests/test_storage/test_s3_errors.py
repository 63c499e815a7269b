"""What the S3 adapter makes of stores and networks that fail or lie."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.object_store import KEY, MIB, gather
from tests.fakes.fault_proxy import STALLS, Fault, FaultProxy
from tests.fakes.quirky_s3 import BUCKET, QuirkyS3, quirky_s3
from tests.fakes.s3_servers import S3Server
from vision_o3.errors import (
    AlreadyExistsError,
    InvalidRangeError,
    ObjectNotFoundError,
    StorageError,
    StorageFullError,
    TransientStorageError,
)
from vision_o3.storage.base import PutIfAbsent
from vision_o3.storage.retrying import LONGEST_PAUSE_S, Tries
from vision_o3.storage.s3 import S3Options, S3Store
from vision_o3.storage.s3_errors import Failure, error_of, failure_of_obstore

CONTENT = random.Random(5).randbytes(150_001)
LARGE = random.Random(6).randbytes(330_001)


@dataclass(frozen=True, slots=True)
class TimedOptions(S3Options):
    """Options whose two times are set apart, so that a busy machine changes nothing:
    a test waits for the one that it is about, and the other is long.
    """

    read_timeout_s: float = 30.0
    retry_budget_s: float = 30.0


def time_for(fault: Fault) -> float:
    """Return how long to wait for a byte: not long where none will come."""
    return 0.5 if fault in STALLS else 30.0


@pytest.fixture
def server() -> Iterator[QuirkyS3]:
    with quirky_s3() as server:
        yield server


@pytest.fixture
def proxy(server: QuirkyS3) -> Iterator[FaultProxy]:
    with FaultProxy(server.endpoint) as proxy:
        yield proxy


def options_for(endpoint: str | None, **changes: Any) -> TimedOptions:
    values: dict[str, Any] = {
        "endpoint": endpoint,
        "region": "us-east-1",
        "access_key_id": "key",
        "secret_access_key": "very-secret",
        "conditional_put": True,
        "multipart_bytes": 200_000,
        "part_bytes": 100_000,
    }
    return TimedOptions(**(values | changes))


@contextmanager
def opened(endpoint: str, **changes: Any) -> Iterator[S3Store]:
    store = S3Store(BUCKET, "p", options_for(endpoint, **changes))
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def store(proxy: FaultProxy) -> Iterator[S3Store]:
    """Reached through the proxy; it honours conditions."""
    with opened(proxy.endpoint) as store:
        yield store


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    return path


def stream(store: S3Store, start: int = 0, end: int = len(CONTENT)) -> bytes:
    content: bytes = asyncio.run(gather(store, KEY, start, end))
    return content


# ------------------------------------------------------------------- finding out


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        ("honoured", PutIfAbsent.ATOMIC),
        ("ignored", PutIfAbsent.EMULATED),
        ("refused", PutIfAbsent.EMULATED),
    ],
)
def test_what_a_store_does_with_conditions_is_found_out(
    server: QuirkyS3, conditions: str, found: PutIfAbsent
) -> None:
    server.quirks.conditions = conditions
    with opened(server.endpoint, conditional_put=None) as store:
        assert store.capabilities.put_if_absent is found
        assert server.objects == {}
        assert server.uploads == {}
        store.put(KEY, b"first")
        with pytest.raises(AlreadyExistsError):
            store.put(KEY, b"second")
        assert store.get(KEY, max_size=9) == b"first"


def test_condition_honoured_for_whole_objects_only_is_found_out(
    server: QuirkyS3, large: Path
) -> None:
    server.quirks.conditions_of_parts = "refused"
    with opened(server.endpoint, conditional_put=None) as store:
        assert store.capabilities.put_if_absent is PutIfAbsent.EMULATED
        store.put_file(KEY, large)
        with pytest.raises(AlreadyExistsError):
            store.put_file(KEY, large)
        assert server.uploads == {}


def test_condition_refused_against_what_was_set_is_done_without(
    server: QuirkyS3, large: Path
) -> None:
    server.quirks.conditions_of_parts = "refused"
    with opened(server.endpoint, conditional_put=True) as store:
        store.put_file(KEY, large)
        assert server.objects[f"p/{KEY}"] == LARGE


@pytest.mark.parametrize(
    "fault", [Fault.LOSE_ANSWER, Fault.INTERNAL_ERROR, Fault.RESET_AFTER_ANSWER]
)
@pytest.mark.parametrize("nth", range(1, 7))
def test_finding_out_survives_what_networks_do(
    server: QuirkyS3, proxy: FaultProxy, fault: Fault, nth: int
) -> None:
    proxy.fail(fault, nth=nth)
    with opened(proxy.endpoint, conditional_put=None) as store:
        assert store.capabilities.put_if_absent is PutIfAbsent.ATOMIC
        assert server.objects == {}


def test_store_that_cannot_be_written_is_not_opened(server: QuirkyS3) -> None:
    server.quirks.refuse["PUT"] = (403, "AccessDenied")
    with pytest.raises(StorageError, match="may read, write, list and delete"):
        S3Store(BUCKET, "p", options_for(server.endpoint, conditional_put=None))


def test_opening_asks_for_nothing_that_was_set(server: QuirkyS3) -> None:
    for answer in (True, False):
        with opened(server.endpoint, conditional_put=answer) as store:
            atomic = store.capabilities.put_if_absent is PutIfAbsent.ATOMIC
            assert atomic is answer
    assert server.requests == []


# ----------------------------------------------------------------- lost answers

_PASSING = [
    Fault.INTERNAL_ERROR,
    Fault.SLOW_DOWN,
    Fault.RESET_BEFORE,
    Fault.RESET_IN_REQUEST,
    Fault.LOSE_ANSWER,
    Fault.STALL_ANSWER,
    Fault.RESET_AFTER_ANSWER,
]


@pytest.mark.parametrize("fault", _PASSING)
def test_put_is_repeated(proxy: FaultProxy, server: QuirkyS3, fault: Fault) -> None:
    proxy.fail(fault, "PutObject")
    with opened(proxy.endpoint, read_timeout_s=time_for(fault)) as store:
        store.put(KEY, CONTENT)
    assert server.objects == {f"p/{KEY}": CONTENT}
    assert len(proxy.suffered()) == 1


@pytest.mark.parametrize("fault", _PASSING)
def test_unguarded_put_is_repeated(
    proxy: FaultProxy, server: QuirkyS3, small: Path, fault: Fault
) -> None:
    server.quirks.conditions = "refused"
    proxy.fail(fault, "PutObject")
    with opened(
        proxy.endpoint, conditional_put=False, read_timeout_s=time_for(fault)
    ) as store:
        store.put_file(KEY, small)
    assert server.objects == {f"p/{KEY}": CONTENT}
    assert len(proxy.suffered()) == 1


@pytest.mark.parametrize("fault", _PASSING)
@pytest.mark.parametrize(
    ("guarded", "operation"),
    [
        (True, "CreateMultipartUpload"),
        (False, "UploadPart"),
        (True, "CompleteMultipartUpload"),
        (False, "CompleteMultipartUpload"),
    ],
)
def test_putting_in_parts_is_repeated(
    proxy: FaultProxy,
    server: QuirkyS3,
    large: Path,
    fault: Fault,
    guarded: bool,
    operation: str,
) -> None:
    proxy.fail(fault, operation)
    with opened(
        proxy.endpoint, conditional_put=guarded, read_timeout_s=time_for(fault)
    ) as store:
        store.put_file(KEY, large)
    assert server.objects == {f"p/{KEY}": LARGE}
    assert len(proxy.suffered()) == 1


@pytest.mark.parametrize("size", [7, 600_000])
def test_lost_answer_is_not_taken_for_a_success_of_somebody_else(
    store: S3Store, proxy: FaultProxy, server: QuirkyS3, tmp_path: Path, size: int
) -> None:
    """What lies there has the same size, but is not what was to be stored."""
    server.objects[f"p/{KEY}"] = bytes(size)
    path = tmp_path / "mine"
    path.write_bytes(bytes(size - 1) + b"x")
    proxy.fail(Fault.LOSE_ANSWER, "PutObject")
    proxy.fail(Fault.LOSE_ANSWER, "HeadObject")
    with pytest.raises(AlreadyExistsError):
        store.put_file(KEY, path)
    assert server.objects == {f"p/{KEY}": bytes(size)}
    assert server.uploads == {}


def test_object_whose_answers_are_all_lost_is_read_back(
    proxy: FaultProxy, server: QuirkyS3
) -> None:
    with opened(proxy.endpoint, retry_budget_s=0.5) as store:
        proxy.fail(Fault.LOSE_ANSWER, "PutObject", times=None)
        store.put(KEY, CONTENT)
    assert server.objects == {f"p/{KEY}": CONTENT}


def test_store_that_stays_away_is_an_error_that_may_pass(
    proxy: FaultProxy, server: QuirkyS3, large: Path
) -> None:
    with opened(proxy.endpoint, retry_budget_s=0.5) as store:
        proxy.fail(Fault.SLOW_DOWN, "PutObject", times=None)
        proxy.fail(Fault.SLOW_DOWN, "UploadPart", times=None)
        with pytest.raises(TransientStorageError, match="SlowDown"):
            store.put(KEY, CONTENT)
        with pytest.raises(TransientStorageError, match="SlowDown"):
            store.put_file(KEY, large)
    assert server.objects == {}
    assert server.uploads == {}


@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
def test_failed_upload_is_aborted(
    store: S3Store, proxy: FaultProxy, server: QuirkyS3, large: Path, operation: str
) -> None:
    proxy.fail(Fault.ROTATED, operation)
    with pytest.raises(StorageError, match="access key"):
        store.put_file(KEY, large)
    assert server.objects == {}
    assert server.uploads == {}


def test_wrong_answer_to_a_part_is_found_when_the_parts_are_joined(
    moto: S3Server, large: Path
) -> None:
    bucket = moto.make_bucket()
    with FaultProxy(moto.endpoint) as proxy:
        proxy.fail(Fault.WRONG_ETAG, "UploadPart")
        options = options_for(proxy.endpoint, part_bytes=5 * MIB)
        store = S3Store(bucket, "", options)
        with pytest.raises(TransientStorageError, match="InvalidPart"):
            store.put_file(KEY, large)
        assert proxy.count("CompleteMultipartUpload") == 1
        assert moto.unfinished(bucket) == []
        store.put_file(KEY, large)
        assert store.get(KEY, max_size=len(LARGE)) == LARGE
        store.close()


def test_upload_that_was_removed_meanwhile_does_not_come_to_be(
    store: S3Store, proxy: FaultProxy, server: QuirkyS3, large: Path
) -> None:
    server.quirks.refuse_query["partNumber"] = (404, "NoSuchUpload")
    with pytest.raises(TransientStorageError, match="NoSuchUpload"):
        store.put_file(KEY, large)
    assert proxy.count("UploadPart") <= 4
    assert server.objects == {}


def test_bucket_that_asks_for_digests_gets_them(
    server: QuirkyS3, small: Path, large: Path
) -> None:
    """As one with Object Lock does."""
    server.quirks.needs_digest = True
    with opened(server.endpoint) as store:
        store.put_file(KEY, small)
        store.put_file("models/m/v1.pt", large)
        assert store.get(KEY, max_size=len(CONTENT)) == CONTENT
        assert store.get("models/m/v1.pt", max_size=len(LARGE)) == LARGE


def test_file_that_becomes_shorter_while_it_is_stored_is_said_so(
    store: S3Store, server: QuirkyS3, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vision_o3.storage import s3_content  # noqa: PLC0415 - the module to patch

    class Shrinking(s3_content.FileContent):
        def __init__(self, descriptor: int) -> None:
            super().__init__(descriptor)
            self.size += 1

    monkeypatch.setattr("vision_o3.storage.s3.FileContent", Shrinking)
    with pytest.raises(StorageError, match="cannot be read") as caught:
        store.put_file(KEY, large)
    assert not caught.value.retryable
    assert server.objects == {}


# ---------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "fault",
    [
        Fault.INTERNAL_ERROR,
        Fault.SLOW_DOWN,
        Fault.RESET_BEFORE,
        Fault.LOSE_ANSWER,
        Fault.STALL_ANSWER,
        Fault.RESET_IN_ANSWER,
        Fault.STALL_IN_ANSWER,
        Fault.RESET_AFTER_ANSWER,
        Fault.TRUNCATE,
    ],
)
@pytest.mark.parametrize(
    "read",
    [
        lambda store: store.get(KEY, max_size=len(CONTENT)),
        lambda store: store.get_range(KEY, 0, len(CONTENT)),
        stream,
    ],
    ids=["get", "get_range", "stream"],
)
def test_reading_is_repeated(
    proxy: FaultProxy,
    server: QuirkyS3,
    fault: Fault,
    read: Callable[[S3Store], bytes],
) -> None:
    server.objects[f"p/{KEY}"] = CONTENT
    proxy.fail(fault, "GetObject")
    with opened(proxy.endpoint, read_timeout_s=time_for(fault)) as store:
        assert read(store) == CONTENT
    assert len(proxy.suffered()) == 1


def test_stream_goes_on_where_it_broke_off(
    store: S3Store, proxy: FaultProxy, server: QuirkyS3
) -> None:
    """Although what was on its way is lost: buffers of some MiB."""
    size = 48 * MIB
    content = random.Random(7).randbytes(size)
    server.objects[f"p/{KEY}"] = content
    proxy.fail(Fault.RESET_IN_ANSWER, "GetObject")
    assert stream(store, 1, size) == content[1:]
    assert proxy.count("GetObject") == 2
    assert proxy.bytes_read()[f"p/{KEY}"] < 2 * size - 4 * MIB


def test_slow_reader_loses_no_tries(proxy: FaultProxy, server: QuirkyS3) -> None:
    """The budget is for a request that fails, not for how long a stream takes."""
    size = 48 * MIB
    server.objects[f"p/{KEY}"] = bytes(size)
    proxy.fail(Fault.RESET_IN_ANSWER, "GetObject")

    async def read(store: S3Store) -> int:
        received = 0
        async for piece in store.stream(KEY, 0, size):
            if not received:
                await asyncio.sleep(1.2)  # longer than the budget
            received += len(piece)
        return received

    with opened(proxy.endpoint, retry_budget_s=1.0) as store:
        assert asyncio.run(read(store)) == size
    assert len(proxy.suffered()) == 1


def test_stream_of_an_object_that_was_replaced_is_an_error(
    store: S3Store, proxy: FaultProxy, server: QuirkyS3
) -> None:
    size = 48 * MIB
    server.objects[f"p/{KEY}"] = bytes(size)
    proxy.fail(Fault.RESET_IN_ANSWER, "GetObject")

    async def read() -> None:
        async for _ in store.stream(KEY, 0, size):
            server.objects[f"p/{KEY}"] = b"\1" * size

    with pytest.raises(StorageError, match="replaced"):
        asyncio.run(read())


def test_stream_that_never_goes_on_is_an_error(
    proxy: FaultProxy, server: QuirkyS3
) -> None:
    server.objects[f"p/{KEY}"] = CONTENT
    proxy.fail(Fault.SLOW_DOWN, "GetObject", nth=1, times=None)
    with opened(proxy.endpoint, retry_budget_s=0.5) as store:
        with pytest.raises(TransientStorageError):
            stream(store)
        with pytest.raises(TransientStorageError):
            store.get(KEY, max_size=len(CONTENT))
        with pytest.raises(TransientStorageError):
            store.get_range(KEY, 0, 1)


@pytest.mark.parametrize("ranges", ["ignored", "misread", "unsaid"])
def test_store_that_does_not_honour_ranges_is_said_so(
    server: QuirkyS3, ranges: str
) -> None:
    server.objects[f"p/{KEY}"] = CONTENT
    server.quirks.ranges = ranges
    with opened(server.endpoint) as store:
        reads: list[Callable[[], object]] = [
            lambda: store.get_range(KEY, 7, 9),
            lambda: stream(store, 7, 9),
        ]
        for read in reads:
            with pytest.raises(StorageError, match="does not honour ranges") as caught:
                read()
            assert type(caught.value) is StorageError
            assert caught.value.values["reason"] == "ranges"


def test_ranges_cost_one_request(
    store: S3Store, proxy: FaultProxy, server: QuirkyS3
) -> None:
    server.objects[f"p/{KEY}"] = CONTENT
    store.get_range(KEY, 0, 5)
    stream(store)
    store.get(KEY, max_size=len(CONTENT))
    with pytest.raises(InvalidRangeError):
        store.get_range(KEY, 1, len(CONTENT) + 1)
    assert proxy.count() == 4


def test_range_that_a_store_wrongly_refuses_is_an_error(
    server: QuirkyS3,
) -> None:
    server.objects[f"p/{KEY}"] = CONTENT
    server.quirks.refuse["GET"] = (416, "InvalidRange")
    with opened(server.endpoint) as store:
        with pytest.raises(StorageError, match="InvalidRange"):
            store.get_range(KEY, 0, 1)
        with pytest.raises(StorageError, match="InvalidRange"):
            stream(store)


@pytest.mark.parametrize(
    ("operation", "work"),
    [
        ("HeadObject", lambda store: store.find(KEY)),
        ("ListObjects", lambda store: list(store.list())),
        ("DeleteObject", lambda store: store.delete(KEY)),
    ],
)
def test_other_requests_are_repeated(
    store: S3Store,
    proxy: FaultProxy,
    server: QuirkyS3,
    operation: str,
    work: Callable[[S3Store], object],
) -> None:
    server.objects[f"p/{KEY}"] = CONTENT
    for fault in (Fault.SLOW_DOWN, Fault.LOSE_ANSWER):
        proxy.fail(fault, operation)
    work(store)
    assert len(proxy.suffered()) == 2


# ---------------------------------------------------------------------- sentences

_SENTENCES = [
    (403, "InvalidAccessKeyId", StorageError, "access key or its secret"),
    (403, "SignatureDoesNotMatch", StorageError, "access key or its secret"),
    (403, "AccessDenied", StorageError, "may read, write, list and delete"),
    (403, "RequestTimeTooSkewed", StorageError, "Set this machine's clock"),
    (400, "ExpiredToken", StorageError, "session token"),
    (400, "AuthorizationHeaderMalformed", StorageError, "another region"),
    (301, "PermanentRedirect", StorageError, "another region"),
    (404, "NoSuchBucket", StorageError, "no such bucket"),
    (400, "InvalidArgument", StorageError, "check-store"),
    (501, "NotImplemented", StorageError, "check-store"),
    (507, "InsufficientStorage", StorageFullError, "no space left"),
    (403, "QuotaExceeded", StorageFullError, "no space left"),
    (503, "SlowDown", TransientStorageError, "busy"),
    (500, "InternalError", TransientStorageError, "busy"),
    (429, "TooManyRequests", TransientStorageError, "busy"),
    (400, "RequestTimeout", TransientStorageError, "busy"),
    (400, "BadDigest", TransientStorageError, "something else than was sent"),
    (418, "Teapot", StorageError, "refused the request"),
]


@pytest.mark.parametrize(("status", "code", "family", "sentence"), _SENTENCES)
def test_refusals_tell_what_to_do(
    server: QuirkyS3,
    status: int,
    code: str,
    family: type[StorageError],
    sentence: str,
) -> None:
    server.quirks.refuse["*"] = (status, code)
    host = server.endpoint.removeprefix("http://")
    with opened(server.endpoint, retry_budget_s=0.2) as store:
        works: list[Callable[[], object]] = [
            lambda: store.put(KEY, b"content"),
            lambda: store.get(KEY, max_size=9),
            lambda: store.get_range(KEY, 0, 1),
            lambda: stream(store),
            lambda: list(store.list()),
            lambda: store.delete(KEY),
        ]
        for work in works:
            with pytest.raises(StorageError, match=sentence) as caught:
                work()
            assert type(caught.value) is family
            assert caught.value.values["reason"] == code
            assert caught.value.values["status"] in {status, None}
            assert f"at {host} " in caught.value.message
            assert "very-secret" not in caught.value.message
            assert "http" not in caught.value.message
            assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("status", "family", "sentence"),
    [
        (403, StorageError, "denies access"),
        (400, StorageError, "region"),
        (503, TransientStorageError, "busy"),
    ],
)
def test_refusal_without_a_word_tells_what_to_do(
    server: QuirkyS3, status: int, family: type[StorageError], sentence: str
) -> None:
    """An answer to HEAD has no body."""
    server.quirks.refuse["*"] = (status, "Unseen")
    with opened(server.endpoint, retry_budget_s=0.2) as store:
        with pytest.raises(StorageError, match=sentence) as caught:
            store.find(KEY)
        assert type(caught.value) is family
        assert caught.value.values["reason"] == f"http-{status}"


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("http://127.0.0.1:9", "unreachable"),
        ("http://no-such-host.invalid", "dns"),
        ("https://127.0.0.1:{port}", "tls"),
    ],
)
def test_store_that_is_not_there_is_said_so(
    server: QuirkyS3, endpoint: str, reason: str
) -> None:
    port = server.endpoint.rpartition(":")[2]
    with opened(endpoint.format(port=port), retry_budget_s=0.3) as store:
        works: list[Callable[[], object]] = [
            lambda: store.find(KEY),
            lambda: list(store.list()),
        ]
        for work in works:
            with pytest.raises(TransientStorageError) as caught:
                work()
            assert caught.value.values["reason"] == reason


def test_store_that_does_not_answer_is_said_so(proxy: FaultProxy) -> None:
    proxy.fail(Fault.STALL, times=None)
    with opened(proxy.endpoint, read_timeout_s=0.3, retry_budget_s=0.6) as store:
        works: list[Callable[[], object]] = [
            lambda: store.find(KEY),
            lambda: list(store.list()),
            lambda: store.put(KEY, b"content"),
        ]
        for work in works:
            with pytest.raises(TransientStorageError, match="in time") as caught:
                work()
            assert caught.value.values["reason"] == "timeout"


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "nonsense",
        "ftp://host",
        "http://",
        "https://exa mple",
        "https://host:port",
        "https://user:very-secret@host",
        "https://host?x",
        "https://host/\n",
    ],
)
def test_endpoint_that_is_no_url_is_said_so(endpoint: str) -> None:
    with pytest.raises(StorageError, match="endpoint") as caught:
        S3Store(BUCKET, "p", options_for(endpoint))
    assert "very-secret" not in caught.value.message


@pytest.mark.parametrize("bucket", ["", "a", "a/b", "a b", "-ab", "a?b"])
def test_what_cannot_be_a_bucket_is_said_so(bucket: str) -> None:
    with pytest.raises(StorageError, match="name of a bucket"):
        S3Store(bucket, "p", options_for("http://127.0.0.1:9"))


def test_region_that_cannot_be_one_is_said_so() -> None:
    options = options_for("http://127.0.0.1:9", region="no where")
    with pytest.raises(StorageError, match="region"):
        list(S3Store(BUCKET, "p", options).list())


@pytest.mark.parametrize("endpoint", [None, "https://[::1]:9/base"])
def test_endpoints_of_every_form_are_taken(endpoint: str | None) -> None:
    store = S3Store(BUCKET, "p", options_for(endpoint))
    expected = endpoint or "https://s3.us-east-1.amazonaws.com"
    url = store.presign_get(KEY, ttl_s=60) or ""
    assert url.startswith(f"{expected}/{BUCKET}/p/{KEY}?")


def test_absent_object_is_not_taken_for_an_absent_bucket(server: QuirkyS3) -> None:
    with opened(server.endpoint) as store, pytest.raises(ObjectNotFoundError):
        store.get(KEY, max_size=9)


def test_options_do_not_show_their_secrets() -> None:
    options = options_for("https://host", session_token="token-secret")
    assert "secret" not in repr(options).replace("secret_access_key", "")


@given(st.text(), st.none() | st.integers(100, 599), st.text())
def test_any_failure_is_one_sentence(
    reason: str, status: int | None, text: str
) -> None:
    error = error_of(Failure(reason, status), "host", "what")
    assert isinstance(error, StorageError)
    assert failure_of_obstore(Exception(text)).reason


def test_tries_end_with_the_budget() -> None:
    error = TransientStorageError("Busy.", reason="SlowDown")
    tries = Tries("put", 60.0)
    pauses = [tries.pause_after(error) for _ in range(40)]
    assert tries.failed == 40
    assert 0 < max(pauses) <= LONGEST_PAUSE_S
    with pytest.raises(TransientStorageError, match="Busy"):
        Tries("put", 0.0).pause_after(error)
