"""Versions that are not to be used any more, as devices and publishers meet them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, Type

import pytest

from tests.fakes.fake_gateway import (
    CREATED_AT,
    Answer,
    FakeGateway,
    InMemoryTransport,
    drop_unanswered,
    refuse,
)
from tests.test_sdk.conftest import MIB, FakeClock, MakeClient, Run, content_of
from vision_o3 import errors
from vision_o3.content.dag import cid_of_bytes
from vision_o3.sdk.cache import Cache
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.resolving import Resolutions
from vision_o3.sdk.retry import RetryPolicy
from vision_o3.sdk.versions import DatasetInfo, ModelInfo, Withdrawal, parse_info

CONTENT = content_of(2 * MIB + 7)
FILES = {"a.txt": b"a", "b/c.txt": b"c"}
OFFLINE = InMemoryTransport({})
REASON = "It sees ghosts."
LONG = 301.0
"""Seconds after which a device asks again whether a version was withdrawn."""

Fetch = Callable[..., Any]


def by_number(client: VisionO3Client, **options: Any) -> Path:
    return client.download_model("m", 1, **options)


def by_cid(client: VisionO3Client, **options: Any) -> Path:
    return client.download_model_by_cid(str(cid_of_bytes(CONTENT)), **options)


def by_info(client: VisionO3Client, **options: Any) -> Path:
    return client.download(client.get_model_info("m", 1), **options)


# What devices refuse


@pytest.mark.parametrize("fetch", [by_number, by_cid, by_info])
def test_a_blocked_version_is_refused_with_its_reason(
    gateway: FakeGateway, client: VisionO3Client, fetch: Fetch
) -> None:
    gateway.publish("m", CONTENT)
    gateway.withdraw("m", 1, "blocked", REASON)
    with pytest.raises(errors.VersionBlockedError) as caught:
        fetch(client)
    assert caught.value.values["reason"] == REASON
    assert gateway.count("/download") == gateway.count("/dag") == 0
    assert client.get_cache_size() == 0


@pytest.mark.parametrize("fetch", [by_number, by_cid, by_info])
def test_a_blocked_version_is_fetched_by_who_insists(
    gateway: FakeGateway,
    client: VisionO3Client,
    fetch: Fetch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway.publish("m", CONTENT)
    gateway.withdraw("m", 1, "blocked", REASON)
    assert fetch(client, allow_blocked=True).read_bytes() == CONTENT
    asked = [s for s in gateway.seen if s.path.endswith(("/download", "/dag"))]
    assert asked
    assert all(each.query["allow_blocked"] == ["true"] for each in asked)
    assert f"Version 1 of m is blocked: {REASON} Use another version." in caplog.text


@pytest.mark.parametrize("fetch", [by_number, by_cid, by_info])
@pytest.mark.parametrize("allow_blocked", [False, True])
def test_a_purged_version_is_gone_for_all(
    gateway: FakeGateway, client: VisionO3Client, fetch: Fetch, allow_blocked: bool
) -> None:
    gateway.publish("m", CONTENT)
    gateway.withdraw("m", 1, "purged", "A court said so.")
    with pytest.raises(errors.VersionPurgedError) as caught:
        fetch(client, allow_blocked=allow_blocked)
    assert caught.value.values["reason"] == "A court said so."


def test_a_state_of_a_newer_gateway_is_refused(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("m", CONTENT)
    gateway.withdraw("m", 1, "recalled")
    for allow_blocked in (False, True):
        with pytest.raises(errors.WithdrawnError, match="is recalled") as caught:
            by_number(client, allow_blocked=allow_blocked)
        assert caught.value.code == "withdrawn"


def test_a_mirror_is_not_asked_for_what_is_blocked(
    gateway: FakeGateway, make_client: MakeClient
) -> None:
    gateway.publish("m", CONTENT)
    gateway.withdraw("m", 1, "blocked")
    mirror = FakeGateway()
    transport = InMemoryTransport({gateway.url: gateway, "http://mirror.test": mirror})
    client = make_client(transport=transport, mirrors=["http://mirror.test"])
    with pytest.raises(errors.VersionBlockedError):
        by_number(client)
    assert mirror.seen == []


@pytest.mark.parametrize(
    ("state", "error"),
    [("blocked", errors.VersionBlockedError), ("purged", errors.VersionPurgedError)],
)
@pytest.mark.parametrize("fetch", [by_number, by_cid, by_info])
def test_what_is_cached_is_refused_once_the_gateway_has_said_so(
    gateway: FakeGateway,
    make_client: MakeClient,
    clock: FakeClock,
    fetch: Fetch,
    state: str,
    error: Type[errors.WithdrawnError],
) -> None:
    gateway.publish("m", CONTENT)
    client = make_client()
    path = fetch(client)
    gateway.withdraw("m", 1, state, REASON)
    assert fetch(client) == path, "it was asked a moment ago"
    clock.now += LONG
    with pytest.raises(error):
        fetch(client)
    for away in (make_client(offline=True), make_client(transport=OFFLINE)):
        with pytest.raises(error) as caught:
            fetch(away)
        assert caught.value.values["reason"] == REASON
    if state == "blocked":
        assert fetch(make_client(offline=True), allow_blocked=True) == path
    gateway.withdraw("m", 1, None)
    if state == "blocked":  # what is refused is asked for each time
        assert fetch(client) == path
        assert fetch(make_client(offline=True)) == path


@pytest.mark.parametrize("state", ["blocked", "purged"])
def test_a_line_without_a_version_left_says_why(
    gateway: FakeGateway, make_client: MakeClient, state: str
) -> None:
    gateway.publish("m", CONTENT)
    client = make_client()
    client.download_model("m")
    gateway.withdraw("m", 1, state, REASON)
    for each in (client, make_client(offline=True), make_client(transport=OFFLINE)):
        with pytest.raises(errors.WithdrawnError) as caught:
            each.download_model("m")
        assert caught.value.values["reason"] == REASON
        assert caught.value.code == f"version_{state}"
    assert client.list_models() == []


def test_latest_steps_back_from_a_blocked_version(
    gateway: FakeGateway, make_client: MakeClient
) -> None:
    gateway.publish("m", b"good")
    gateway.publish("m", b"bad")
    client = make_client()
    assert client.download_model("m").read_bytes() == b"bad"
    gateway.withdraw("m", 2, "blocked")
    assert client.download_model("m").read_bytes() == b"good"
    gateway.withdraw("m", 2, None)
    assert client.download_model("m").read_bytes() == b"bad"


def test_latest_that_was_found_blocked_by_its_number_is_refused_offline(
    gateway: FakeGateway, make_client: MakeClient, clock: FakeClock
) -> None:
    gateway.publish("m", CONTENT)
    client = make_client()
    client.download_model("m")
    gateway.withdraw("m", 1, "blocked")
    clock.now += LONG
    assert client.get_model_info("m", 1).withdrawal is not None
    with pytest.raises(errors.VersionBlockedError):
        make_client(offline=True).download_model("m")


def test_one_owner_does_not_block_anothers_copy(
    gateway: FakeGateway, make_client: MakeClient, clock: FakeClock
) -> None:
    gateway.publish("other", CONTENT)
    gateway.publish("m", CONTENT)
    client = make_client()
    path = by_cid(client)
    gateway.withdraw("m", 1, "blocked")
    clock.now += LONG
    with pytest.raises(errors.VersionBlockedError):
        by_number(client)
    assert by_cid(client).read_bytes() == path.read_bytes()
    assert by_cid(make_client(offline=True)).read_bytes() == path.read_bytes()
    with pytest.raises(errors.VersionBlockedError):
        by_number(client)
    assert client.download_model("other").read_bytes() == CONTENT


def test_a_content_known_only_as_blocked_is_refused_offline_by_its_cid(
    gateway: FakeGateway, make_client: MakeClient
) -> None:
    gateway.publish("m", CONTENT)
    gateway.withdraw("m", 1, "blocked")
    path = by_number(make_client(), allow_blocked=True)
    offline = make_client(offline=True)
    with pytest.raises(errors.VersionBlockedError):
        by_cid(offline)
    assert by_cid(offline, allow_blocked=True) == path


def test_a_refusal_of_a_cid_is_kept_where_nothing_else_is_known(
    gateway: FakeGateway, make_client: MakeClient, tmp_path: Path
) -> None:
    """The file came by another gateway, say; this one has said only that it is bad."""
    gateway.publish("m", CONTENT)
    path = by_number(make_client())
    for kept in (tmp_path / "cache" / "resolved").rglob("*.json"):
        kept.unlink()
    offline = make_client(offline=True)
    assert by_cid(offline).read_bytes() == CONTENT
    gateway.withdraw("m", 1, "blocked", REASON)
    with pytest.raises(errors.VersionBlockedError):
        by_cid(make_client())
    with pytest.raises(errors.VersionBlockedError) as caught:
        by_cid(offline)
    assert caught.value.values["reason"] == REASON
    assert by_cid(offline, allow_blocked=True).read_bytes() == CONTENT
    path.unlink()
    for away in (offline, make_client(transport=OFFLINE)):
        with pytest.raises(errors.VersionBlockedError):
            by_cid(away)
    assert by_cid(make_client(), allow_blocked=True).read_bytes() == CONTENT


@pytest.mark.parametrize("ending", ["/dag", "/download"])
def test_a_mirror_is_not_believed_more_than_the_gateway(
    gateway: FakeGateway, make_client: MakeClient, ending: str
) -> None:
    gateway.publish("m", CONTENT)
    mirror = FakeGateway()
    transport = InMemoryTransport({gateway.url: gateway, "http://mirror.test": mirror})
    client = make_client(transport=transport, mirrors=["http://mirror.test"])
    artifact = Answer(200, {}, CONTENT)
    sidecar = Answer(200, {}, gateway.published["models"][0].dag.sidecar() or b"")

    def serve(answer: Answer) -> Callable[[Answer], None]:
        return lambda asked: vars(asked).update(vars(answer))

    mirror.lie("v1.dag.car", serve(sidecar), times=99)
    mirror.lie("v1.onnx", drop_unanswered, *[serve(artifact)] * 99)
    gateway.lie(ending, refuse(403, "version_blocked"), times=99)
    with pytest.raises(errors.VersionBlockedError):
        by_number(client)


def test_a_version_blocked_between_two_looks_is_refused_by_the_gateway(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("m", CONTENT)
    client.get_model_info("m", 1)
    gateway.withdraw("m", 1, "blocked", REASON)
    with pytest.raises(errors.VersionBlockedError) as caught:
        by_number(client)
    assert caught.value.values["reason"] == REASON
    assert client.get_cache_size() == 0
    assert by_number(client, allow_blocked=True).read_bytes() == CONTENT


# When the gateway is asked again


def test_a_known_version_is_asked_for_again_now_and_then(
    gateway: FakeGateway, client: VisionO3Client, clock: FakeClock
) -> None:
    gateway.publish("m", CONTENT)
    for _ in range(3):
        by_number(client)
        by_cid(client)
    assert gateway.count("/versions/1") == 1
    clock.now += LONG
    for _ in range(3):
        by_number(client)
        by_cid(client)
    assert gateway.count("/versions/1") == 2
    clock.now -= 1_000_000  # a device without a battery starts in 1970
    by_number(client)
    assert gateway.count("/versions/1") == 3


def test_a_gateway_that_does_not_answer_is_asked_once_and_briefly(
    gateway: FakeGateway,
    make_client: MakeClient,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway.publish("m", CONTENT)
    gateway.publish("n", CONTENT)
    client = make_client()
    path = by_number(client)
    client.download_model("n", 1)
    clock.now += LONG
    gateway.lie("/versions/1", *[drop_unanswered] * 99)
    for _ in range(5):
        assert by_number(client) == path
        assert by_cid(client) == path
        assert client.download_model("n", 1).read_bytes() == CONTENT
    assert clock.slept == []
    assert gateway.count("/versions/1") == 3
    assert caplog.text.count("version.not_asked_again") == 1
    clock.now += 61
    by_number(client)
    assert gateway.count("/versions/1") == 4


@pytest.mark.parametrize(
    ("status", "code"), [(401, "unauthenticated"), (404, "not_found"), (500, None)]
)
def test_a_gateway_that_refuses_to_say_does_not_stop_a_device(
    gateway: FakeGateway,
    client: VisionO3Client,
    clock: FakeClock,
    status: int,
    code: Optional[str],
) -> None:
    gateway.publish("m", CONTENT)
    path = by_number(client)
    clock.now += LONG
    gateway.lie("/versions/1", *[refuse(status, code)] * 99)
    for _ in range(3):
        assert by_number(client) == path
    assert gateway.count("/versions/1") == 2


def test_a_gateway_that_hangs_costs_half_of_a_call_at_most(
    gateway: FakeGateway, make_client: MakeClient, clock: FakeClock
) -> None:
    gateway.publish("m", CONTENT)
    path = by_number(make_client())
    clock.now += LONG

    class Hanging(InMemoryTransport):
        def request(self, *arguments: Any, **_: Any) -> Any:
            bounds = arguments[4]
            clock.now += bounds.left_s()
            return super().request(*arguments)

    client = make_client(transport=Hanging({gateway.url: gateway}), deadline=4.0)
    began = clock.now
    assert by_number(client) == path
    assert clock.now - began == 2.0
    client = make_client(transport=Hanging({gateway.url: gateway}))
    began = clock.now
    assert by_number(client) == path
    assert clock.now - began == 5.0


def test_a_cancelled_call_ends_while_it_looks(
    gateway: FakeGateway, client: VisionO3Client, clock: FakeClock
) -> None:
    gateway.publish("m", CONTENT)
    by_number(client)
    clock.now += LONG

    def cancel(answer: Answer) -> None:
        client.cancel()
        drop_unanswered(answer)

    gateway.lie("/versions/1", cancel)
    with pytest.raises(errors.CancelledError):
        by_number(client)


def test_a_content_that_the_gateway_does_not_know_serves_from_the_cache(
    gateway: FakeGateway, make_client: MakeClient, tmp_path: Path
) -> None:
    gateway.publish("m", CONTENT)
    path = by_number(make_client())
    for kept in (tmp_path / "cache" / "resolved").rglob("*.json"):
        kept.unlink()
    gateway.published["models"].clear()
    client = make_client()
    for _ in range(3):
        assert by_cid(client) == path
    assert gateway.count(str(cid_of_bytes(CONTENT))) == 1


def test_what_an_older_release_kept_is_read(
    gateway: FakeGateway, make_client: MakeClient, tmp_path: Path
) -> None:
    gateway.publish("m", CONTENT)
    path = by_number(make_client())
    for kept in (tmp_path / "cache" / "resolved").rglob("*.json"):
        content = json.loads(kept.read_text())
        del content["asked_at"], content["document"]["withdrawal"]
        content["sha256"] = as_kept(content["document"])
        kept.write_text(json.dumps(content))
    offline = make_client(offline=True)
    assert by_number(offline) == by_cid(offline) == path
    assert offline.get_model_info("m", 1).withdrawal is None
    gateway.withdraw("m", 1, "blocked")
    with pytest.raises(errors.VersionBlockedError):
        by_number(make_client())


def as_kept(document: Dict[str, Any]) -> str:
    """Return the digest of a document, as releases before withdrawal wrote it."""
    import hashlib  # noqa: PLC0415 - only here

    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("damage", ["x", None, [], {}])
def test_a_damaged_time_is_as_no_answer(cache_path: Path, damage: Any) -> None:
    resolutions = Resolutions(Cache(cache_path), "http://a")
    resolutions.keep("models", "m@1", {"version": 1}, 7.0)
    (path,) = cache_path.rglob("m@1.json")
    content = json.loads(path.read_text())
    assert content["asked_at"] == 7.0
    path.write_text(json.dumps({**content, "asked_at": damage}))
    assert resolutions.look("models", "m@1") is None


@pytest.mark.parametrize(
    "refused", [5, {}, {"code": "not_found"}, {"code": "of_a_newer_release"}]
)
def test_a_refusal_that_is_not_understood_is_as_no_answer(
    make_client: MakeClient, gateway: FakeGateway, cache_path: Path, refused: Any
) -> None:
    kept = Resolutions(Cache(cache_path), gateway.url)
    kept.keep("models", "m@latest", {"refused": refused})
    with pytest.raises(errors.OfflineError):
        make_client(offline=True).get_model_info("m")


def test_a_cache_that_cannot_be_written_still_learns(
    gateway: FakeGateway, make_client: MakeClient, cache_path: Path, clock: FakeClock
) -> None:
    gateway.publish("m", CONTENT)
    by_number(make_client())
    resolved = cache_path / "resolved"
    resolved.rename(cache_path / "moved")
    resolved.touch()  # no directory can be made in its place
    client = make_client()
    by_number(client)
    gateway.withdraw("m", 1, "blocked")
    clock.now += LONG
    for _ in range(2):
        with pytest.raises(errors.VersionBlockedError):
            by_number(client)
    gateway.lie("/versions/1", *[drop_unanswered] * 99)
    with pytest.raises(errors.VersionBlockedError):
        by_number(client)
    client.clear_cache()
    with pytest.raises(errors.TransportError):
        by_number(client)


@pytest.fixture
def cache_path(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_a_purged_dataset_may_have_lost_its_list_of_files(
    gateway: FakeGateway, client: VisionO3Client, clock: FakeClock
) -> None:
    document = gateway.publish_archive("d", FILES)
    client.download_dataset("d", 1)
    gateway.withdraw("d", 1, "purged", collection="datasets")
    document["manifest_cid"] = None
    clock.now += LONG
    with pytest.raises(errors.VersionPurgedError):
        client.download_dataset("d", 1)
    document["cid"] = str(cid_of_bytes(b"something else"))
    clock.now += LONG
    with pytest.raises(errors.IntegrityError, match="Versions never change"):
        client.get_dataset_info("d", 1)


def test_a_rotten_copy_of_a_blocked_version_is_not_mended(
    gateway: FakeGateway, client: VisionO3Client, clock: FakeClock
) -> None:
    gateway.publish("m", CONTENT)
    path = by_number(client)
    gateway.withdraw("m", 1, "blocked")
    clock.now += LONG
    with pytest.raises(errors.VersionBlockedError):
        by_number(client)
    path.write_bytes(CONTENT[:-1] + b"x")
    before = gateway.count("/download")
    (checked,) = client.repair_cache()
    assert isinstance(checked.error, errors.VersionBlockedError)
    assert gateway.count("/download") == before


# Deprecation


def test_a_deprecated_version_is_served_with_one_warning(
    gateway: FakeGateway, client: VisionO3Client, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.publish("m", CONTENT)
    gateway.withdraw("m", 1, "deprecated", "Old.\x1b[31m\nIt has a successor.")
    with caplog.at_level(logging.WARNING):
        for fetch in (client.download_model, by_number, by_cid):
            argument: Any = "m" if fetch == client.download_model else client
            assert fetch(argument).read_bytes() == CONTENT
    (line,) = [each.getMessage() for each in caplog.records]
    assert line == (
        "version.withdrawn: Version 1 of m is deprecated: Old.�[31m�It has a "
        "successor. Use another version."
    )


# Files of datasets

USES: Dict[str, Callable[..., Any]] = {
    "whole": lambda client, _, **more: client.download_dataset("d", 1, **more),
    "manifest": lambda client, _, **more: client.get_dataset_manifest("d", 1, **more),
    "file": lambda client, _, **more: client.download_dataset_file(
        "d", "a.txt", 1, **more
    ),
    "open": lambda client, _, **more: client.open_dataset_file(
        "d", "b/c.txt", 1, **more
    ).close(),
    "extract": lambda client, to, **more: client.extract_dataset("d", to, 1, **more),
    "some": lambda client, to, **more: client.extract_dataset(
        "d", to, 1, ["a.txt"], **more
    ),
    "compare": lambda client, _, **more: client.compare_datasets("d", 1, 2, **more),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("is_cached", [False, True])
def test_the_files_of_a_blocked_dataset(
    gateway: FakeGateway,
    client: VisionO3Client,
    clock: FakeClock,
    tmp_path: Path,
    use: str,
    is_cached: bool,
) -> None:
    gateway.publish_archive("d", FILES)
    gateway.publish_archive("d", {**FILES, "new.txt": b"new"})
    target = tmp_path / "out"
    if is_cached:
        USES[use](client, tmp_path / "before")
    gateway.withdraw("d", 1, "blocked", REASON, "datasets")
    clock.now += LONG
    asked = len(gateway.seen)
    with pytest.raises(errors.VersionBlockedError) as caught:
        USES[use](client, target)
    assert caught.value.values["reason"] == REASON
    assert not target.exists()
    assert [seen.path for seen in gateway.seen[asked:]] == ["/datasets/d/versions/1"]
    USES[use](client, target, allow_blocked=True)
    bytes_asked = [
        seen.query.get("allow_blocked")
        for seen in gateway.seen[asked:]
        if seen.path not in ("/datasets/d/versions/1", "/datasets/d/versions/2")
    ]
    assert set(map(str, bytes_asked)) <= {"['true']"}
    assert is_cached or bytes_asked


# Publishers


@pytest.mark.parametrize("collection", ["models", "datasets"])
@pytest.mark.parametrize("word", ["deprecate", "block"])
def test_publishers_withdraw_and_restore(
    gateway: FakeGateway, client: VisionO3Client, collection: str, word: str
) -> None:
    document = gateway.publish("m", CONTENT, collection)
    noun = collection[:-1]
    gateway.lie("/withdrawal", drop_unanswered)
    info = getattr(client, f"{word}_{noun}")("m", 1, REASON)
    kinds: Dict[str, Any] = {"models": ModelInfo, "datasets": DatasetInfo}
    assert isinstance(info, kinds[collection])
    state = {"deprecate": "deprecated", "block": "blocked"}[word]
    assert (info.withdrawal.state, info.withdrawal.reason) == (state, REASON)
    assert gateway.count("/withdrawal", "PUT") == 2
    assert json.loads(gateway.seen[-1].body) == {"state": state, "reason": REASON}
    assert gateway.seen[-1].headers["content-type"] == "application/json"
    asked = len(gateway.seen)
    download = getattr(client, f"download_{noun}")
    if word == "block":
        with pytest.raises(errors.VersionBlockedError):
            download("m", 1)
    gateway.lie("/withdrawal", drop_unanswered)
    getattr(client, f"restore_{noun}")("m", 1)
    getattr(client, f"restore_{noun}")("m", 1)
    assert document["withdrawal"] is None
    assert gateway.count("/withdrawal", "DELETE") == 3
    assert download("m", 1).read_bytes() == CONTENT
    by_its_cid = getattr(client, f"download_{noun}_by_cid")
    assert by_its_cid(document["cid"]).read_bytes() == CONTENT
    assert len(gateway.seen) > asked


@pytest.mark.parametrize("word", ["deprecate", "block"])
def test_withdrawing_what_cannot_be(
    gateway: FakeGateway, client: VisionO3Client, word: str
) -> None:
    withdraw = getattr(client, f"{word}_model")
    with pytest.raises(errors.InvalidNameError):
        withdraw("../m", 1, REASON)
    with pytest.raises(errors.InvalidVersionError):
        withdraw("m", 0, REASON)
    assert gateway.seen == []
    with pytest.raises(errors.NotFoundError):
        withdraw("m", 1, REASON)
    gateway.publish("m", CONTENT)
    with pytest.raises(errors.InputError):
        withdraw("m", 1, "")
    gateway.withdraw("m", 1, "purged")
    with pytest.raises(errors.VersionPurgedError):
        withdraw("m", 1, REASON)


def test_an_answer_about_another_version_is_not_believed(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("m", CONTENT)
    other = json.dumps(gateway.publish("n", CONTENT)).encode()

    def lie(answer: Answer) -> None:
        answer.body = other

    gateway.lie("/withdrawal", lie)
    with pytest.raises(errors.TransportError, match="it is about n@1"):
        client.block_model("m", 1, REASON)


# What the gateway says


def test_a_withdrawal_is_parsed_and_printed(gateway: FakeGateway) -> None:
    given = gateway.publish("m", b"abc")
    gateway.withdraw("m", 1, "deprecated", REASON)
    info = parse_info(ModelInfo, given)
    assert isinstance(info.withdrawal, Withdrawal)
    assert info.document()["withdrawal"] == given["withdrawal"]
    assert info.withdrawal.at.isoformat() == CREATED_AT.replace("Z", "+00:00")
    assert parse_info(ModelInfo, info.document()) == info
    assert hash(info) == hash(parse_info(ModelInfo, info.document()))


@pytest.mark.parametrize(
    "withdrawal",
    [
        "blocked",
        5,
        [],
        {},
        {"state": "blocked", "reason": "x"},
        {"state": "blocked", "at": CREATED_AT},
        {"reason": "x", "at": CREATED_AT},
        {"state": 5, "reason": "x", "at": CREATED_AT},
        {"state": "blocked", "reason": None, "at": CREATED_AT},
        {"state": "blocked", "reason": "x", "at": "yesterday"},
    ],
)
def test_what_is_no_withdrawal_is_not_taken_for_none(
    gateway: FakeGateway, withdrawal: Any
) -> None:
    given = gateway.publish("m", b"abc", withdrawal=withdrawal)
    with pytest.raises(errors.TransportError, match="not understood"):
        parse_info(ModelInfo, given)


# Files for fsspec


def test_fsspec_says_permission(gateway: FakeGateway, tmp_path: Path) -> None:
    pytest.importorskip("fsspec", reason="the extra is not installed")
    from vision_o3.sdk.filesystem import (  # noqa: PLC0415 - an extra
        VisionO3FileSystem,
    )

    def files(**options: Any) -> VisionO3FileSystem:
        return VisionO3FileSystem(
            gateway.url,
            cache_dir=tmp_path / "cache",
            transport=InMemoryTransport({gateway.url: gateway}),
            retries=RetryPolicy(attempts=1),
            skip_instance_cache=True,
            **options,
        )

    gateway.publish("m", CONTENT)
    gateway.publish_archive("d", FILES)
    gateway.withdraw("m", 1, "blocked", REASON)
    gateway.withdraw("d", 1, "blocked", REASON, "datasets")
    refusing = files()
    for path in ("models/m@1", "models/m", "datasets/d@1", "datasets/d@1/a.txt"):
        with pytest.raises(PermissionError, match=REASON):
            refusing.cat_file(path)
    with pytest.raises(PermissionError, match=REASON):
        refusing.ls("datasets/d@1")
    assert refusing.ls("models") == []
    assert refusing.exists("models/m@1")
    insisting = files(allow_blocked=True)
    assert insisting.cat_file("models/m@1") == CONTENT
    assert insisting.cat_file("datasets/d@1/a.txt") == b"a"
    assert len(insisting.ls("datasets/d@1")) == 2
    gateway.withdraw("m", 1, "purged", REASON)
    with pytest.raises(PermissionError, match="gone for good"):
        files().cat_file("models/m@1")


# Commands


@pytest.mark.parametrize("group", [[], ["dataset"]])
def test_commands_block_and_unblock(
    run: Run, served: FakeGateway, group: List[str]
) -> None:
    served.publish("m", CONTENT, "datasets" if group else "models")
    code, out, _ = run(*group, "deprecate", "m", "1", "--reason", REASON)
    assert (code, out) == (0, f"m@1   deprecated: {REASON}\n")
    code, out, _ = run(*group, "block", "m", "1", "--reason", REASON, "--json")
    assert json.loads(out)["withdrawal"]["state"] == "blocked"
    code, out, err = run(*group, "pull", "m@1")
    assert (code, out) == (5, "")
    assert err == (
        "vision-o3: Version 1 of m is blocked: It sees ghosts. Use another version; "
        "to use this one all the same, pass allow_blocked=True (--allow-blocked). "
        "[version_blocked]\n"
    )
    code, out, _ = run(*group, "pull", "m@1", "--allow-blocked")
    assert (code, Path(out.strip()).read_bytes()) == (0, CONTENT)
    code, out, _ = run(*group, "unblock", "m", "1")
    assert (code, out) == (0, "m@1   served as before\n")
    code, out, _ = run(*group, "unblock", "m", "1", "--json")
    assert json.loads(out) == {"name": "m", "version": 1, "withdrawal": None}
    assert run(*group, "pull", "m@1")[0] == 0


def test_commands_need_a_reason_and_a_version(run: Run, served: FakeGateway) -> None:
    served.publish("m", CONTENT)
    assert run("block", "m", "1")[0] == 2
    assert run("block", "m", "x", "--reason", REASON)[0] == 3
    assert run("block", "m", "2", "--reason", REASON)[0] == 5
    assert served.published["models"][0].document.get("withdrawal") is None


def test_pull_by_cid_and_purged(run: Run, served: FakeGateway) -> None:
    cid = served.publish("m", CONTENT)["cid"]
    served.withdraw("m", 1, "blocked")
    assert run("pull", cid)[0] == 5
    assert run("pull", cid, "--allow-blocked")[0] == 0
    served.withdraw("m", 1, "purged")
    code, _, err = run("pull", cid, "--allow-blocked")
    assert (code, "[version_purged]" in err) == (5, True)


def test_info_and_ls_show_the_state(run: Run, served: FakeGateway) -> None:
    served.publish("m", CONTENT)
    served.publish("n", b"abc")
    assert "STATE" not in run("ls")[1]
    served.withdraw("m", 1, "deprecated", REASON)
    rows = run("ls")[1].splitlines()
    assert rows[0].split()[-1] == "STATE"
    assert rows[1].endswith(f"deprecated: {REASON}")
    assert f"withdrawal:   deprecated: {REASON} ({CREATED_AT})\n" in run("info", "m")[1]
    assert "withdrawal" not in run("info", "n")[1]


def test_dataset_commands_refuse_and_insist(
    run: Run, served: FakeGateway, tmp_path: Path
) -> None:
    served.publish_archive("d", FILES)
    served.withdraw("d", 1, "blocked", REASON, "datasets")
    for words in (
        ["files", "d@1"],
        ["cat", "d@1", "a.txt", "--json"],
        ["extract", "d@1", "--to", str(tmp_path / "out")],
        ["diff", "d", "1", "1"],
    ):
        assert run("dataset", *words)[0] == 5
        assert run("dataset", *words, "--allow-blocked")[0] == 0
    assert (tmp_path / "out" / "a.txt").read_bytes() == b"a"


def test_a_process_says_on_standard_error_that_a_version_is_deprecated(
    served: FakeGateway, tmp_path: Path
) -> None:
    served.publish("m", CONTENT)
    served.withdraw("m", 1, "deprecated", REASON)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "VISION_O3_URL": served.url,
        "VISION_O3_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "vision_o3", "pull", "m@1"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert Path(done.stdout.strip()).read_bytes() == CONTENT
    assert done.stderr == (
        f"version.withdrawn: Version 1 of m is deprecated: {REASON} "
        "Use another version.\n"
    )


def test_errors_are_a_line_of_json_where_json_was_asked_for(
    run: Run, served: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.publish("m", CONTENT)
    served.withdraw("m", 1, "blocked", "A\nline.")
    code, out, err = run("pull", "m@1", "--json")
    assert (code, out, err.count("\n")) == (5, "", 1)
    told = json.loads(err)["error"]
    assert told["code"] == "version_blocked"
    assert told["message"].startswith("Version 1 of m is blocked: A\nline. Use")
    failures: List[Tuple[BaseException, int, Dict[str, str]]] = [
        (
            OSError(28, "No space", "/x"),
            1,
            {"code": "internal", "message": "/x: No space"},
        ),
        (KeyboardInterrupt(), 130, {"code": "cancelled", "message": "stopped"}),
    ]
    for failure, expected, document in failures:

        def fail(*_: Any, failure: BaseException = failure) -> None:
            raise failure

        monkeypatch.setattr("vision_o3.sdk.client.VisionO3Client.list_models", fail)
        code, out, err = run("ls", "--json")
        assert (code, out) == (expected, "")
        assert json.loads(err) == {"error": document}
