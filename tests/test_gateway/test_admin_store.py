from __future__ import annotations

import json
import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from tests.fakes.fault_proxy import Fault, FaultProxy
from tests.fakes.quirky_s3 import BUCKET, QuirkyS3, quirky_s3
from tests.fakes.s3_servers import S3Server, running
from tests.test_gateway.running import SECRET
from vision_o3.__main__ import main
from vision_o3.gateway.o3_client import O3Client
from vision_o3.registry.store_checks import Finding, HttpAnswer, Status, check_store
from vision_o3.settings import Settings, variable_of
from vision_o3.storage.local import LocalStore

Capture = pytest.CaptureFixture[str]
OK, LIMITED, FAILED, UNKNOWN = Status.OK, Status.LIMITED, Status.FAILED, Status.UNKNOWN
KEY_ID = "canary-key-id"
SECRET_KEY = "canary-secret-key"
HASTY_S = 5
"""For what is waited for to the end."""
S3_ONLY = {
    "encryption",
    "multipart",
    "unfinished_uploads",
    "presigned_get",
    "presigned_put",
    "private",
    "versions",
    "object_lock",
}
ALL = S3_ONLY | {
    "reach",
    "put",
    "clock",
    "get",
    "put_if_absent",
    "range",
    "stream",
    "list",
    "delete",
}


@pytest.fixture
def quirky() -> Iterator[QuirkyS3]:
    with quirky_s3() as server:
        yield server


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[[str], S3Server]]:
    """Return a function that starts a server of this name, once."""
    with ExitStack() as stack:
        yield cache(lambda name: stack.enter_context(running(name)))


@pytest.fixture(params=["swift", "moto", "localbucket"])
def server(
    request: pytest.FixtureRequest, start: Callable[[str], S3Server]
) -> S3Server:
    return start(request.param)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields:
        monkeypatch.delenv(variable_of(field), raising=False)
    monkeypatch.setenv("VISION_O3_JWT_SECRET", SECRET)


def settings_of(endpoint: str, bucket: str = BUCKET, **values: Any) -> Settings:
    return Settings(
        **{
            "store": f"s3://{bucket}/vision-o3",
            "s3_endpoint": endpoint,
            "s3_region": "us-east-1",
            "aws_access_key_id": SecretStr(KEY_ID),
            "aws_secret_access_key": SecretStr(SECRET_KEY),
            "s3_timeout_s": 20,
            **values,
        }
    )


def settings_for(server: S3Server, bucket: str, **values: Any) -> Settings:
    keys = {
        "aws_access_key_id": SecretStr(server.access_key),
        "aws_secret_access_key": SecretStr(server.secret_key),
        "s3_region": server.region,
    }
    return settings_of(server.endpoint, bucket, **{**keys, **values})


def check(settings: Settings) -> dict[str, Finding]:
    """Return the findings; each is a sentence that shows no secret."""
    found = O3Client.check(settings)
    for finding in found:
        assert re.fullmatch(r"[A-Z'].*\.", finding.sentence, re.DOTALL), finding
        for canary in (KEY_ID, SECRET_KEY, "X-Amz-", "testing", "Signature="):
            assert canary not in finding.sentence
    return {finding.capability: finding for finding in found}


def statuses(found: dict[str, Finding], *but: Status) -> dict[str, Status]:
    """Return what is of another status than these."""
    return {name: each.status for name, each in found.items() if each.status not in but}


# Stores that can be had


def test_real_servers_are_found_as_they_are(server: S3Server) -> None:
    bucket = server.make_bucket()
    found = check(settings_for(server, bucket))
    assert set(found) == ALL
    assert server.keys(bucket) == []
    expected = {
        "swift": {"put_if_absent"},
        "moto": set(),
        "localbucket": {"private", "unfinished_uploads"},
    }[server.name]
    said = statuses(found, OK)
    for either in ("versions", "object_lock"):
        assert said.pop(either) in {LIMITED, UNKNOWN}
    assert said == dict.fromkeys(expected, LIMITED)
    if "unfinished_uploads" not in expected:
        assert server.unfinished(bucket) == []


def test_bucket_with_a_lock_is_praised(start: Callable[[str], S3Server]) -> None:
    moto = start("moto")
    bucket = moto.make_bucket(ObjectLockEnabledForBucket=True)
    found = check(settings_for(moto, bucket))
    assert found["versions"].status is OK
    assert found["object_lock"].status is LIMITED
    assert "no default retention" in found["object_lock"].sentence
    bucket = moto.make_bucket(ObjectLockEnabledForBucket=True)
    moto.client.put_object_lock_configuration(
        Bucket=bucket,
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Years": 5}},
        },
    )
    found = check(settings_for(moto, bucket))
    assert found["object_lock"].status is OK
    assert "GOVERNANCE, 5 years" in found["object_lock"].sentence


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"aws_secret_access_key": SecretStr(SECRET_KEY)}, "AWS_SECRET_ACCESS_KEY"),
        ({"aws_access_key_id": SecretStr(KEY_ID)}, "AWS_ACCESS_KEY_ID"),
        ({"store": "s3://no-such-bucket"}, "VISION_O3_STORE"),
    ],
)
def test_wrong_keys_and_bucket_are_told(
    start: Callable[[str], S3Server], wrong: dict[str, Any], said: str
) -> None:
    swift = start("swift")
    found = check(settings_for(swift, swift.make_bucket(), **wrong))
    assert found["reach"].status is FAILED
    assert said in found["reach"].sentence
    assert statuses(found, UNKNOWN, OK) == {"reach": FAILED}
    assert "'reach'" in found["put"].sentence


def test_local_directory_is_checked_for_what_applies(tmp_path: Path) -> None:
    found = check(Settings(store=str(tmp_path / "objects")))
    assert set(found) == ALL - S3_ONLY
    assert statuses(found, OK) == {}
    assert not list(LocalStore(tmp_path / "objects").list())


def test_local_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = check(Settings(store=str(tmp_path / "file" / "objects")))
    assert statuses(found) == {"reach": FAILED}


# Quirks


def test_good_server_has_every_capability(quirky: QuirkyS3) -> None:
    assert statuses(check(settings_of(quirky.endpoint)), OK) == {}
    assert quirky.objects == {}
    assert quirky.uploads == {}


def ignores_conditions(quirky: QuirkyS3) -> None:
    quirky.quirks.conditions = "ignored"


def refuses_conditions(quirky: QuirkyS3) -> None:
    quirky.quirks.conditions = "refused"


@pytest.mark.parametrize("quirk", [ignores_conditions, refuses_conditions])
def test_store_without_conditional_writes_is_limited(
    quirky: QuirkyS3, quirk: Callable[[QuirkyS3], None]
) -> None:
    quirk(quirky)
    found = check(settings_of(quirky.endpoint))
    assert statuses(found, OK) == {"put_if_absent": LIMITED}
    assert "publishing lease" in found["put_if_absent"].sentence


def test_conditional_writes_that_are_only_claimed_are_told(quirky: QuirkyS3) -> None:
    ignores_conditions(quirky)
    found = check(settings_of(quirky.endpoint, s3_conditional_put="yes"))
    assert statuses(found, OK) == {"put_if_absent": FAILED}
    assert "VISION_O3_S3_CONDITIONAL_PUT to auto" in found["put_if_absent"].sentence


@pytest.mark.parametrize("ranges", ["ignored", "misread", "unsaid"])
def test_store_without_ranges_is_told(quirky: QuirkyS3, ranges: str) -> None:
    quirky.quirks.ranges = ranges
    found = check(settings_of(quirky.endpoint))
    assert found["range"].status is FAILED
    assert "range" in found["range"].sentence.lower()
    assert statuses(found, OK).keys() <= {"range", "stream"}


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (403, "AccessDenied", "read, write, list and delete"),
        (404, "NoSuchBucket", "VISION_O3_STORE"),
        (400, "AuthorizationHeaderMalformed", "VISION_O3_S3_REGION"),
        (400, "ExpiredToken", "AWS_SESSION_TOKEN"),
        (503, "SlowDown", "busy"),
    ],
)
def test_refusal_of_everything_is_told_once(
    quirky: QuirkyS3, status: int, code: str, said: str
) -> None:
    quirky.quirks.refuse["*"] = (status, code)
    found = check(settings_of(quirky.endpoint, s3_timeout_s=HASTY_S))
    assert statuses(found, UNKNOWN, OK) == {"reach": FAILED}
    assert said in found["reach"].sentence
    assert not [each for each in quirky.requests if not each.startswith("GET")]


def test_wrong_clock_that_the_store_refuses_is_told(quirky: QuirkyS3) -> None:
    quirky.quirks.refuse["*"] = (403, "RequestTimeTooSkewed")
    found = check(settings_of(quirky.endpoint))
    assert statuses(found, UNKNOWN, OK) == {"clock": FAILED}
    assert "clock" in found["clock"].sentence
    assert "'clock'" in found["reach"].sentence


@pytest.mark.parametrize(
    ("minutes", "said"), [(7, "behind"), (-7, "ahead of"), (4, None)]
)
def test_wrong_clock_that_the_store_still_accepts_is_told(
    quirky: QuirkyS3, minutes: int, said: str | None
) -> None:
    quirky.quirks.clock_ahead = timedelta(minutes=minutes)
    found = check(settings_of(quirky.endpoint))
    if said is None:
        assert statuses(found, OK) == {}
    else:
        assert statuses(found, OK) == {"clock": FAILED}
        assert re.search(rf"clock is 4\d\d s {said}", found["clock"].sentence)


def test_store_that_is_not_there_is_told() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        found = check(settings_of(endpoint, s3_timeout_s=HASTY_S))
    assert statuses(found, UNKNOWN, OK) == {"reach": FAILED}
    assert "cannot be reached" in found["reach"].sentence
    assert "VISION_O3_S3_ENDPOINT" in found["reach"].sentence


def test_keys_that_may_not_write_are_told(quirky: QuirkyS3) -> None:
    quirky.quirks.refuse["PUT"] = (403, "AccessDenied")
    found = check(settings_of(quirky.endpoint))
    assert statuses(found, UNKNOWN, OK) == {"put": FAILED}
    assert found["versions"].status is OK
    assert found["get"].status is UNKNOWN


def test_full_store_is_told(quirky: QuirkyS3) -> None:
    quirky.quirks.refuse["PUT"] = (507, "InsufficientStorage")
    found = check(settings_of(quirky.endpoint))
    assert statuses(found, UNKNOWN, OK) == {"put": FAILED}
    assert re.search("full|space|quota", found["put"].sentence)


def test_keys_that_may_not_delete_are_told_with_what_is_left(quirky: QuirkyS3) -> None:
    quirky.quirks.refuse["DELETE"] = (403, "AccessDenied")
    found = check(settings_of(quirky.endpoint, s3_conditional_put="yes"))
    assert found["delete"].status is FAILED
    assert {key.split(".")[0] for key in quirky.objects} == {
        "vision-o3/" + re.findall("probe/[0-9a-f]+", found["delete"].sentence)[0]
    }


def test_store_that_does_not_delete_is_told(quirky: QuirkyS3) -> None:
    quirky.quirks.deletes = False
    found = check(settings_of(quirky.endpoint))
    assert statuses(found, OK) == {"delete": FAILED}
    assert "after it was deleted" in found["delete"].sentence


def test_store_that_lists_too_little_is_told(quirky: QuirkyS3) -> None:
    quirky.quirks.lists = False
    found = check(settings_of(quirky.endpoint))
    assert statuses(found, OK) == {"list": FAILED}


def test_store_that_corrupts_is_told(quirky: QuirkyS3) -> None:
    quirky.quirks.corrupts = True
    found = check(settings_of(quirky.endpoint))
    assert found["get"].status is FAILED
    assert "Do not use this store" in found["get"].sentence
    assert found["put_if_absent"].status is UNKNOWN
    assert quirky.objects == {}


def test_store_without_parts_is_told(quirky: QuirkyS3) -> None:
    quirky.quirks.refuse_query["uploads"] = (501, "NotImplemented")
    found = check(settings_of(quirky.endpoint, s3_conditional_put="yes"))
    assert statuses(found, OK) == {"multipart": FAILED, "unfinished_uploads": LIMITED}
    assert "VISION_O3_S3_MULTIPART_BYTES" in found["multipart"].sentence
    assert "lifecycle rule" in found["unfinished_uploads"].sentence


@pytest.mark.parametrize(("direct", "status"), [(False, LIMITED), (True, FAILED)])
def test_store_without_presigned_urls_is_told(
    quirky: QuirkyS3, direct: bool, status: Status
) -> None:
    quirky.quirks.presigned = False
    found = check(settings_of(quirky.endpoint, direct_downloads=direct))
    assert statuses(found, OK) == {"presigned_get": status, "presigned_put": LIMITED}
    assert "VISION_O3_DIRECT_DOWNLOADS=false" in found["presigned_get"].sentence


def test_public_bucket_is_told(quirky: QuirkyS3) -> None:
    quirky.quirks.public = True
    found = check(settings_of(quirky.endpoint))
    assert statuses(found, OK) == {"private": LIMITED}


def test_bucket_without_lock_and_versions_is_limited(quirky: QuirkyS3) -> None:
    quirky.quirks.versions = quirky.quirks.lock = None
    found = check(settings_of(quirky.endpoint))
    assert statuses(found, OK) == {"versions": LIMITED, "object_lock": LIMITED}
    assert "while a bucket is empty" in found["object_lock"].sentence


@pytest.mark.parametrize("answer", [(501, "NotImplemented"), (403, "AccessDenied")])
def test_bucket_that_says_nothing_of_lock_and_versions_is_unknown(
    quirky: QuirkyS3, answer: tuple[int, str]
) -> None:
    quirky.quirks.refuse_query["versioning"] = answer
    quirky.quirks.refuse_query["object-lock"] = answer
    found = check(settings_of(quirky.endpoint))
    assert statuses(found, OK) == {"versions": UNKNOWN, "object_lock": UNKNOWN}


def test_plain_http_beyond_this_machine_is_limited(quirky: QuirkyS3) -> None:
    port = quirky.endpoint.rpartition(":")[2]
    found = check(settings_of(f"http://0.0.0.0:{port}"))
    assert statuses(found, OK) == {"encryption": LIMITED}


# The checks themselves, on a store that is told what to do


class Unreachable:
    """No URL can be fetched."""

    def __call__(self, method: str, url: str, body: bytes | None = None) -> HttpAnswer:
        raise OSError(f"{method} {url} {body!r}")


class Presigning(LocalStore):
    """A directory that claims to presign."""

    capabilities = LocalStore.capabilities.__class__(
        LocalStore.capabilities.put_if_absent, presign=True
    )

    def presign_get(self, key: str, *, ttl_s: int) -> str:
        return f"http://127.0.0.1/{key}?signature={ttl_s}"

    presign_put = presign_get


def test_urls_that_cannot_be_fetched_are_told_without_them(tmp_path: Path) -> None:
    store = Presigning(tmp_path / "objects")
    found = {
        finding.capability: finding
        for finding in check_store(
            store, clock=partial(datetime.now, UTC), http=Unreachable()
        )
    }
    assert statuses(found, OK) == {
        "presigned_get": LIMITED,
        "presigned_put": LIMITED,
        "private": UNKNOWN,
    }
    assert not [each for each in found.values() if "signature" in each.sentence]


@pytest.mark.parametrize("body", [b"", b"other"])
def test_urls_that_give_other_bytes_are_told(tmp_path: Path, body: bytes) -> None:
    found = check_store(
        Presigning(tmp_path / "objects"),
        clock=partial(datetime.now, UTC),
        http=lambda *_: HttpAnswer(200, body),
        direct_downloads=True,
    )
    said = {finding.capability: finding for finding in found}
    assert said["presigned_get"].status is FAILED
    assert said["presigned_put"].status is FAILED  # nothing was stored


def test_probes_are_removed_when_a_check_breaks_off(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "objects")

    def stopped() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_store(
            store, clock=partial(datetime.now, UTC), http=Unreachable(), reopen=stopped
        )
    assert not list(store.list())


def test_no_room_for_a_temporary_file_is_told(
    quirky: QuirkyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    found = check(settings_of(quirky.endpoint))
    assert statuses(found, OK) == {"multipart": UNKNOWN}
    assert "TMPDIR" in found["multipart"].sentence


# The command


def set_environment(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("VISION_O3_STORE", f"s3://{BUCKET}/vision-o3")
    monkeypatch.setenv("VISION_O3_S3_ENDPOINT", endpoint)
    monkeypatch.setenv("VISION_O3_S3_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("VISION_O3_S3_TIMEOUT_S", "20")


def test_command_prints_a_row_for_each_capability(
    quirky: QuirkyS3, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    set_environment(monkeypatch, quirky.endpoint)
    assert main(["admin", "check-store"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"s3://{BUCKET}/vision-o3"
    assert "  ok       put if absent    " in "\n".join(lines)
    assert max(map(len, lines)) <= 88
    quirky.quirks.lists = False
    assert main(["admin", "check-store"]) == 1
    assert "\n  FAILED   list  " in capsys.readouterr().out


def test_command_checks_the_second_store_too(
    quirky: QuirkyS3,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    tmp_path: Path,
) -> None:
    set_environment(monkeypatch, quirky.endpoint)
    monkeypatch.setenv("VISION_O3_SECOND_STORE", str(tmp_path / "copy"))
    assert main(["admin", "check-store", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is True
    first, second = document["stores"]
    assert second["store"] == str(tmp_path / "copy")
    assert set(first["findings"][0]) == {
        "capability",
        "status",
        "sentence",
        "reason",
    }
    assert {each["capability"] for each in first["findings"]} == ALL
    (tmp_path / "copy").rename(tmp_path / "moved")
    (tmp_path / "copy").touch()
    assert main(["admin", "check-store", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_command_tells_missing_settings_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("VISION_O3_STORE", f"s3://{BUCKET}")
    assert main(["admin", "check-store"]) == 2
    error = capsys.readouterr().err
    assert "needs VISION_O3_S3_ENDPOINT and VISION_O3_S3_REGION" in error
    assert error.count("\n") == 1


def test_command_keeps_its_output_free_of_log_lines(
    quirky: QuirkyS3, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    configuration = structlog.get_config()
    with FaultProxy(quirky.endpoint) as proxy:
        set_environment(monkeypatch, proxy.endpoint)
        proxy.fail(Fault.SLOW_DOWN)
        try:
            assert main(["admin", "check-store", "--json"]) == 0
        finally:
            structlog.configure(**configuration)
    output = capsys.readouterr()
    assert json.loads(output.out)["ok"] is True
    assert "store.request_repeated" in output.err


def test_gateway_does_not_start_without_its_store(
    quirky: QuirkyS3,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    tmp_path: Path,
) -> None:
    set_environment(monkeypatch, quirky.endpoint)
    monkeypatch.setenv("VISION_O3_DATABASE_URL", f"sqlite:///{tmp_path}/registry.db")
    quirky.quirks.refuse["*"] = (403, "SignatureDoesNotMatch")
    assert main(["serve", "--migrate"]) == 8
    error = capsys.readouterr().err
    assert "AWS_SECRET_ACCESS_KEY" in error
    assert error.count("\n") == 1
    assert SECRET_KEY not in error
