from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.test_gateway.running import SECRET
from vision_o3.errors import (
    ConfigurationError,
    StorageError,
    TransientStorageError,
)
from vision_o3.gateway import o3_client
from vision_o3.gateway.o3_client import O3Client
from vision_o3.settings import Settings, variable_of
from vision_o3.storage.memory import MemoryStore
from vision_o3.storage.s3 import S3Options

FIRST: dict[str, Any] = {
    "store": "s3://first-bucket/vision-o3",
    "s3_endpoint": "https://s3.first.example",
    "s3_region": "first-1",
    "aws_access_key_id": SecretStr("first-id"),
    "aws_secret_access_key": SecretStr("canary-first"),
}
SECOND: dict[str, Any] = {
    "second_store": "s3://second-bucket",
    "second_s3_endpoint": "https://s3.second.example",
    "second_s3_region": "second-1",
    "second_s3_access_key_id": SecretStr("second-id"),
    "second_s3_secret_access_key": SecretStr("canary-second"),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields:
        monkeypatch.delenv(variable_of(field), raising=False)
    monkeypatch.setenv("VISION_O3_JWT_SECRET", SECRET)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, S3Options | None]]:
    """Return what the client opens, instead of opening it."""
    opened: list[tuple[str, S3Options | None]] = []

    def open_store(location: str, options: S3Options | None) -> MemoryStore:
        opened.append((location, options))
        return MemoryStore()

    monkeypatch.setattr(o3_client, "open_store", open_store)
    return opened


Opened = list[tuple[str, S3Options | None]]


def options_of(opened: Opened) -> S3Options:
    options = opened.pop()[1]
    assert options is not None
    return options


def test_directory_is_opened_and_closed(tmp_path: Path) -> None:
    with O3Client.open(Settings(store=str(tmp_path / "objects"))) as client:
        client.store.put("probe/a", b"content")
        assert client.location == str(tmp_path / "objects")
    client.close()
    assert (tmp_path / "objects/probe/a").read_bytes() == b"content"


def test_every_setting_reaches_the_store(opened: Opened) -> None:
    settings = Settings(
        **FIRST,
        aws_session_token=SecretStr("canary-token"),
        s3_conditional_put="no",
        s3_multipart_bytes=7 << 20,
        s3_part_bytes=6 << 20,
        s3_parallel_parts=9,
        s3_timeout_s=11,
    )
    client = O3Client.open(settings)
    assert client.location == "s3://first-bucket/vision-o3"
    assert opened == [
        (
            client.location,
            S3Options(
                endpoint="https://s3.first.example",
                region="first-1",
                access_key_id="first-id",
                secret_access_key="canary-first",
                session_token="canary-token",
                conditional_put=False,
                multipart_bytes=7 << 20,
                part_bytes=6 << 20,
                parallel_parts=9,
                timeout_s=11,
            ),
        )
    ]
    assert "canary" not in repr(opened)


@pytest.mark.parametrize(
    ("setting", "option"), [("auto", None), ("yes", True), ("no", False)]
)
def test_conditional_writes_are_found_out_unless_said(
    opened: Opened, setting: Any, option: bool | None
) -> None:
    O3Client.open(Settings(**FIRST, s3_conditional_put=setting))
    assert options_of(opened).conditional_put is option


def test_profile_stands_for_endpoint_and_region(opened: Opened) -> None:
    keys: dict[str, Any] = {
        name: FIRST[name]
        for name in ("store", "aws_access_key_id", "aws_secret_access_key")
    }
    O3Client.open(Settings(**keys, s3_profile="akave-o3"))
    options = options_of(opened)
    assert options.endpoint == "https://o3-rc2.akave.xyz"
    assert options.region == "akave-network"
    O3Client.open(Settings(**keys, s3_profile="akave-o3", s3_region="us-south-1"))
    options = options_of(opened)
    assert options.endpoint == "https://o3-rc2.akave.xyz"
    assert options.region == "us-south-1"


def test_second_store_is_reached_as_the_first_but_for_what_is_set(
    opened: Opened,
) -> None:
    first: dict[str, Any] = {**FIRST, "aws_session_token": SecretStr("token")}
    assert O3Client.open_second(Settings(**first)) is None
    O3Client.open_second(Settings(**first, second_store="s3://second-bucket"))
    options = options_of(opened)
    assert options.endpoint == "https://s3.first.example"
    assert (options.access_key_id, options.session_token) == ("first-id", "token")
    O3Client.open_second(Settings(**first, **SECOND))
    options = options_of(opened)
    assert options.endpoint == "https://s3.second.example"
    assert options.region == "second-1"
    assert options.access_key_id == "second-id"
    assert options.secret_access_key == "canary-second"
    assert options.session_token is None


def test_location_is_reached_by_the_settings_of_its_store(
    opened: Opened, tmp_path: Path
) -> None:
    settings = Settings(**FIRST, **SECOND)
    for location, key_id in [
        ("s3://second-bucket", "second-id"),
        ("s3://second-bucket/", "second-id"),
        ("s3://second-bucket/other", "first-id"),
        ("s3://third-bucket", "first-id"),
        (str(FIRST["store"]), "first-id"),
    ]:
        assert O3Client.open_at(settings, location).location == location
        assert options_of(opened).access_key_id == key_id
    O3Client.open_at(settings, str(tmp_path))
    assert opened == [(str(tmp_path), None)]


def test_location_that_names_both_stores_is_refused(opened: Opened) -> None:
    both: dict[str, Any] = {**FIRST, **SECOND, "second_store": FIRST["store"]}
    settings = Settings(**both)
    with pytest.raises(ConfigurationError, match="the same name"):
        O3Client.open_at(settings, settings.store)
    O3Client.open(settings)
    assert options_of(opened).access_key_id == "first-id"
    O3Client.open_second(settings)
    assert options_of(opened).access_key_id == "second-id"


@pytest.mark.parametrize("missing", sorted(FIRST.keys() - {"store"}))
def test_what_is_missing_is_named(missing: str) -> None:
    values: dict[str, Any] = {name: FIRST[name] for name in FIRST if name != missing}
    with pytest.raises(ConfigurationError) as caught:
        O3Client.open(Settings(**values))
    needed = caught.value.message.partition(". ")[0]
    assert needed == f"A store at s3://… needs {variable_of(missing)}"
    assert not re.search("canary|first-", caught.value.message)


def test_absent_second_store_cannot_be_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="VISION_O3_SECOND_STORE is not set"):
        O3Client.check(Settings(store=str(tmp_path)), second=True)


@pytest.mark.parametrize(
    ("reason", "first", "second"),
    [
        (
            "SignatureDoesNotMatch",
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            (
                "VISION_O3_SECOND_S3_ACCESS_KEY_ID and "
                "VISION_O3_SECOND_S3_SECRET_ACCESS_KEY"
            ),
        ),
        ("NoSuchBucket", "VISION_O3_STORE", "VISION_O3_SECOND_STORE"),
        ("unreachable", "VISION_O3_S3_ENDPOINT", "VISION_O3_S3_ENDPOINT"),
    ],
)
def test_store_that_refuses_is_told_with_the_settings_to_look_at(
    monkeypatch: pytest.MonkeyPatch, reason: str, first: str, second: str
) -> None:
    def open_store(*_: object) -> MemoryStore:
        raise TransientStorageError("It is so.", reason=reason, status=400)

    monkeypatch.setattr(o3_client, "open_store", open_store)
    settings = Settings(**FIRST, **SECOND | {"second_s3_endpoint": None})
    with pytest.raises(TransientStorageError) as caught:
        O3Client.open(settings)
    assert caught.value.message == f"It is so. Look at {first}."
    assert caught.value.values == {"reason": reason, "status": 400}
    with pytest.raises(TransientStorageError, match=f"Look at {second}."):
        O3Client.open_second(settings)


def test_other_failures_of_a_store_are_told_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"[^.]*\.$"):
        O3Client.open(Settings(store=str(tmp_path / "file" / "objects")))
