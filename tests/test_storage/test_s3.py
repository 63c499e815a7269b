"""The S3 adapter against real servers."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.contextvars import bound_contextvars, get_contextvars

from tests.conformance.object_store import (
    CONTENT,
    KEY,
    MIB,
    ObjectStoreConformance,
    exchange,
    gather,
    put_file,
)
from tests.fakes.s3_servers import S3Server
from vision_o3.errors import StorageError
from vision_o3.storage.base import ObjectStore, PutIfAbsent
from vision_o3.storage.s3 import S3Options, S3Store


def options_for(server: S3Server, **changes: Any) -> S3Options:
    values: dict[str, Any] = {
        "endpoint": server.endpoint,
        "region": server.region,
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
        "multipart_bytes": 5 * MIB,
        "part_bytes": 5 * MIB,
        "timeout_s": 30.0,
    }
    return S3Options(**(values | changes))


@pytest.fixture(scope="session")
def swift_store(swift: S3Server) -> ObjectStore:
    return S3Store(swift.make_bucket(), "some/prefix", options_for(swift))


@pytest.fixture(scope="session")
def moto_store(moto: S3Server) -> ObjectStore:
    return S3Store(moto.make_bucket(), "", options_for(moto))


@pytest.fixture(scope="session")
def localbucket_store(localbucket: S3Server) -> ObjectStore:
    # It answers 500 for ever to a key below another: not to be waited for long.
    options = options_for(localbucket, timeout_s=9.0)
    return S3Store(localbucket.make_bucket(), "p", options)


class TestS3StoreOnSwift(ObjectStoreConformance):
    put_if_absent = PutIfAbsent.EMULATED
    presigns = True
    more_than_a_page = 150

    @pytest.fixture
    def store(self, swift_store: ObjectStore) -> ObjectStore:
        return swift_store


class TestS3StoreOnMoto(ObjectStoreConformance):
    presigns = True

    @pytest.fixture
    def store(self, moto_store: ObjectStore) -> ObjectStore:
        return moto_store


class TestS3StoreOnLocalbucket(ObjectStoreConformance):
    presigns = True

    @pytest.fixture
    def store(self, localbucket_store: ObjectStore) -> ObjectStore:
        return localbucket_store


def test_swift_lists_small_pages(swift: S3Server) -> None:
    """Or its conformance test would not have gone beyond one."""
    bucket = swift.make_bucket()
    for number in range(101):
        swift.client.put_object(Bucket=bucket, Key=str(number))
    page = swift.client.list_objects_v2(Bucket=bucket)
    assert (len(page["Contents"]), page["IsTruncated"]) == (100, True)


# ------------------------------------------------------------------------- keys


def test_keys_of_others_in_the_bucket_are_not_seen(swift: S3Server) -> None:
    bucket = swift.make_bucket()
    store = S3Store(bucket, "a/b", options_for(swift))
    store.put(KEY, b"content")
    assert swift.keys(bucket) == [f"a/b/{KEY}"]
    for key in ("a/b", "a/bc/x", "x", "a/b/", "a/b/dir/", "a/b/c//d", "a/b/..",
                "a/b/Upper", "a/b/é", "a/b/a b", "a/b/%2f"):  # fmt: skip
        swift.client.put_object(Bucket=bucket, Key=key, Body=b"foreign")
    for prefix in ("", "m", "models/", "models/yolo/v1"):
        assert [found.key for found in store.list(prefix)] == [KEY]
    for prefix in ("dir/", "c/", "u", "."):
        assert list(store.list(prefix)) == []
    store.close()


@pytest.mark.parametrize("prefix", ["/", "/a", "a/", "A", "a//b", ".."])
def test_what_cannot_be_a_prefix_is_refused(prefix: str) -> None:
    options = S3Options("http://127.0.0.1:9", "us-east-1", "key", "secret")
    with pytest.raises(StorageError, match="prefix"):
        S3Store("bucket", prefix, options)


# ------------------------------------------------------------ unfinished uploads


def begin_uploads(server: S3Server, bucket: str, *keys: str) -> None:
    for key in keys:
        begun = server.client.create_multipart_upload(Bucket=bucket, Key=key)
        server.client.upload_part(
            Bucket=bucket,
            Key=key,
            UploadId=begun["UploadId"],
            PartNumber=1,
            Body=b"half",
        )


@pytest.mark.parametrize("name", ["swift", "moto"])
def test_unfinished_uploads_are_removed_by_prefix(
    request: pytest.FixtureRequest, name: str
) -> None:
    server: S3Server = request.getfixturevalue(name)
    bucket = server.make_bucket()
    others = ["p/Foreign/v1.pt", "pp/models/a/v1.pt", "x"]
    ours = ["p/models/a/v1.pt", "p/models/a/v1.pt", "p/models/ab/v1.pt"]
    begin_uploads(server, bucket, *others, *ours)
    store = S3Store(bucket, "p", options_for(server))
    later = datetime.now(UTC) + timedelta(hours=1)
    assert list(store.list()) == []
    assert store.remove_unfinished("models/a/", before=later) == 2
    assert sorted(server.unfinished(bucket)) == sorted([*others, ours[2]])
    assert store.remove_unfinished("", before=later) == 1
    assert store.remove_unfinished("", before=later) == 0
    assert sorted(server.unfinished(bucket)) == sorted(others)
    store.close()


@pytest.mark.parametrize(
    "name",
    [
        "swift",
        pytest.param(
            "moto",
            marks=pytest.mark.xfail(
                strict=True, reason="moto tells one time for all uploads, in 2010."
            ),
        ),
    ],
)
def test_uploads_begun_later_are_left_alone(
    request: pytest.FixtureRequest, name: str
) -> None:
    server: S3Server = request.getfixturevalue(name)
    bucket = server.make_bucket()
    begin_uploads(server, bucket, "models/a/v1.pt")
    store = S3Store(bucket, "", options_for(server))
    earlier = datetime.now(UTC) - timedelta(hours=1)
    removed = store.remove_unfinished("", before=earlier)
    store.close()
    assert removed == 0
    assert server.unfinished(bucket) == ["models/a/v1.pt"]


def test_store_that_lists_no_uploads_keeps_them(localbucket: S3Server) -> None:
    bucket = localbucket.make_bucket()
    begin_uploads(localbucket, bucket, KEY)
    store = S3Store(bucket, "", options_for(localbucket))
    later = datetime.now(UTC) + timedelta(hours=1)
    assert store.remove_unfinished("", before=later) == 0
    with pytest.raises(StorageError, match="NotImplemented"):
        store.abort_uploads("", before=later)
    store.close()


# --------------------------------------------------------------- how it is reached


def test_wrong_secret_is_told_by_the_real_thing(swift: S3Server) -> None:
    options = options_for(swift, secret_access_key="wrong")
    with pytest.raises(StorageError, match="access key or its secret"):
        S3Store(swift.make_bucket(), "", options)


def test_wrong_region_is_wrong_for_reading_and_writing(swift: S3Server) -> None:
    """botocore would find the right one, and all but reading would work."""
    bucket = swift.make_bucket()
    options = options_for(swift, region="eu-central-1", conditional_put=False)
    store = S3Store(bucket, "", options)
    works: list[Callable[[], object]] = [
        lambda: list(store.list()),
        lambda: store.get(KEY, max_size=9),
        lambda: store.delete(KEY),
    ]
    for work in works:
        with pytest.raises(StorageError, match="another region"):
            work()
    store.close()


def test_nothing_is_read_from_the_environment(
    swift: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = swift.make_bucket()
    home = tmp_path / ".aws"
    home.mkdir()
    (home / "config").write_text("[default]\nregion = nowhere\nbroken\n")
    for name, value in {
        "HOME": str(tmp_path),
        "AWS_PROFILE": "absent",
        "AWS_ACCESS_KEY_ID": "other",
        "AWS_SECRET_ACCESS_KEY": "other",
        "AWS_SESSION_TOKEN": "other",
        "AWS_REGION": "nowhere",
        "AWS_DEFAULT_REGION": "nowhere",
        "AWS_ENDPOINT": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_REQUEST_PAYER": "true",
        "AWS_S3_EXPRESS": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        "AWS_CHECKSUM_ALGORITHM": "SHA256",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_supported",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "ALL_PROXY": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    store = S3Store(bucket, "p", options_for(swift))
    store.put(KEY, CONTENT)
    assert store.get(KEY, max_size=len(CONTENT)) == CONTENT
    assert asyncio.run(gather(store, KEY, 1, 9)) == CONTENT[1:9]
    assert [found.key for found in store.list()] == [KEY]
    url = store.presign_get(KEY, ttl_s=60) or ""
    assert url.startswith(f"{swift.endpoint}/{bucket}/p/{KEY}?")
    assert "Security-Token" not in url
    monkeypatch.undo()
    assert exchange("GET", url) == CONTENT
    store.close()


# ----------------------------------------------------------------- what it costs


def test_parts_on_their_way_are_limited_over_all_uploads(
    localbucket: S3Server, tmp_path: Path
) -> None:
    path = tmp_path / "upload"
    path.write_bytes(bytes(31 * MIB))
    before = set(threading.enumerate())
    options = options_for(localbucket, parallel_parts=2)
    store = S3Store(localbucket.make_bucket(), "", options)
    keys = [f"models/m/v{number}.pt" for number in range(1, 4)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda key: store.put_file(key, path), keys))
    senders = [
        thread
        for thread in set(threading.enumerate()) - before
        if thread.name.startswith("store-part")
    ]
    assert len(senders) == 2
    assert {found.size for found in store.list()} == {31 * MIB}
    store.close()
    for thread in senders:
        thread.join(60)
        assert not thread.is_alive()


_IN_A_PROCESS = """
import asyncio, resource, sys
from pathlib import Path
from vision_o3.storage.s3 import S3Options, S3Store

endpoint, bucket, path = sys.argv[1:]
options = S3Options(endpoint, "us-east-1", "test:tester", "testing",
                    multipart_bytes=int(48e6), part_bytes=8 << 20)
store = S3Store(bucket, "", options)
store.put("small", b"content")
small = Path(path).with_name("small")
small.write_bytes(bytes(40_000_000))

async def read(size):
    async for piece in store.stream("large", 0, size):
        assert not piece.count(1) if isinstance(piece, bytes) else True

store.get("small", max_size=9)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.put_file("whole", small)
store.put_file("large", Path(path))
asyncio.run(read(Path(path).stat().st_size))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) // 1024)
"""


def test_memory_is_bounded_whatever_the_size(
    localbucket: S3Server, tmp_path: Path
) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(192 * MIB)
    arguments = [localbucket.endpoint, localbucket.make_bucket(), str(path)]
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_PROCESS, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) < 24, "MiB more than before"


_STREAM_AND_END = """
import asyncio, sys
from vision_o3.storage.s3 import S3Options, S3Store

options = S3Options(sys.argv[1], "us-east-1", "k", "s", conditional_put=False)
store = S3Store(sys.argv[2], "", options)

async def read():
    async for _ in store.stream("large", 0, 4 << 20):
        pass

asyncio.run(read())
"""


def test_process_that_ends_after_a_stream_ends_well(localbucket: S3Server) -> None:
    """Threads of obstore are not cut off: that aborted one run in five."""
    bucket = localbucket.make_bucket()
    localbucket.client.put_object(Bucket=bucket, Key="large", Body=bytes(4 * MIB))
    command = [sys.executable, "-c", _STREAM_AND_END, localbucket.endpoint, bucket]
    for _ in range(8):
        subprocess.run(command, check=True)


def test_parts_grow_where_there_would_be_too_many(
    localbucket: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vision_o3.storage.s3_writing.MOST_PARTS", 3)
    content = random.Random(8).randbytes(21 * MIB)
    options = options_for(localbucket)
    store = S3Store(localbucket.make_bucket(), "", options)
    put_file(store, tmp_path, KEY, content)
    assert store.get(KEY, max_size=len(content)) == content
    store.close()


# ------------------------------------------------------------- facts of a bucket


def test_versions_and_lock_are_told(moto: S3Server) -> None:
    plain = S3Store(moto.make_bucket(), "", options_for(moto))
    assert (plain.versioning(), plain.object_lock()) == (False, "")
    locked = S3Store(
        moto.make_bucket(ObjectLockEnabledForBucket=True), "", options_for(moto)
    )
    assert (locked.versioning(), locked.object_lock()) == (True, "no default retention")
    plain.close()
    locked.close()


def test_default_retention_is_told(moto: S3Server) -> None:
    bucket = moto.make_bucket(ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 30}}
    moto.client.put_object_lock_configuration(
        Bucket=bucket,
        ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule},
    )
    store = S3Store(bucket, "", options_for(moto))
    assert store.object_lock() == "COMPLIANCE, 30 days"
    store.put(KEY, CONTENT)
    assert store.get(KEY, max_size=len(CONTENT)) == CONTENT
    store.close()


def test_store_that_does_not_tell_is_no_error(localbucket: S3Server) -> None:
    store = S3Store(localbucket.make_bucket(), "", options_for(localbucket))
    assert (store.versioning(), store.object_lock()) == (None, None)
    store.close()


def test_facts_of_an_absent_bucket_are_an_error(swift: S3Server) -> None:
    store = S3Store("no-such-bucket", "", options_for(swift, conditional_put=False))
    with pytest.raises(StorageError, match="no such bucket"):
        store.versioning()
    assert store.open_file(KEY) is None
    store.close()


# ----------------------------------------------------------- what a bucket remembers


def versioned_store(moto: S3Server, retention: str | None = None) -> S3Store:
    bucket = moto.make_bucket(ObjectLockEnabledForBucket=retention is not None)
    moto.client.put_bucket_versioning(
        Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    if retention is not None:
        rule = {"DefaultRetention": {"Mode": retention, "Days": 30}}
        moto.client.put_object_lock_configuration(
            Bucket=bucket,
            ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule},
        )
    return S3Store(bucket, "p", options_for(moto))


def remembered(moto: S3Server, store: S3Store) -> list[tuple[str, bool]]:
    """Return what the bucket knows of, but for probes, and whether it is current."""
    listed = moto.client.list_object_versions(Bucket=store._client._bucket)
    return sorted(
        (each["Key"], each["IsLatest"])
        for kind in ("Versions", "DeleteMarkers")
        for each in listed.get(kind, ())
        if "probe" not in each["Key"]
    )


def test_history_is_erased_and_what_is_there_stays(moto: S3Server) -> None:
    store = versioned_store(moto)
    for key in ("models/a/v1.pt", "models/a/v1.record.json", "models/a/v11.pt"):
        for content in (b"first", b"second"):
            store.put(key, content)
            store.delete(key)
    store.put("models/a/v1.record.json", b"third")
    # Two versions and two marks of each, but for the record's that is there.
    assert store.erase_history("models/a/v1.") == 2 * 4
    assert remembered(moto, store) == [
        ("p/models/a/v1.record.json", True),
        *[("p/models/a/v11.pt", False)] * 3,
        ("p/models/a/v11.pt", True),
    ]
    assert store.get("models/a/v1.record.json", max_size=9) == b"third"
    assert store.find("models/a/v1.pt") is None
    assert store.erase_history("models/a/v1.") == 0
    store.close()


def test_a_bucket_that_remembers_nothing_has_no_history(moto: S3Server) -> None:
    store = S3Store(moto.make_bucket(), "", options_for(moto))
    store.put(KEY, CONTENT)
    assert store.erase_history(KEY) == 0
    assert store.erase_history("/") == 0
    assert store.get(KEY, max_size=len(CONTENT)) == CONTENT
    store.close()


@pytest.mark.parametrize(
    ("mode", "yields"), [("GOVERNANCE", True), ("COMPLIANCE", False)]
)
def test_history_under_a_retention_goes_where_that_may_be(
    moto: S3Server, mode: str, yields: bool
) -> None:
    store = versioned_store(moto, mode)
    store.put(KEY, CONTENT)
    store.delete(KEY)
    if yields:
        assert store.erase_history(KEY) == 2
        assert remembered(moto, store) == []
    else:
        with pytest.raises(StorageError):
            store.erase_history(KEY)
        assert (f"p/{KEY}", False) in remembered(moto, store)
        assert store.find(KEY) is None, "it is not there again"
    store.close()


def test_threads_that_send_parts_know_the_request(moto: S3Server) -> None:
    store = S3Store(moto.make_bucket(), "", options_for(moto))
    contexts: list[dict[str, Any]] = []
    ask = store._client.ask

    def noting(operation: str, *arguments: Any, **parameters: Any) -> Any:
        if operation == "upload_part":
            contexts.append(dict(get_contextvars()))
        return ask(operation, *arguments, **parameters)

    store._client.ask = noting  # type: ignore[method-assign]  # to look on
    with bound_contextvars(request_id="of-the-request"):
        store.put(KEY, bytes(11 * MIB))
    store.close()
    assert contexts == [{"request_id": "of-the-request"}] * 3
