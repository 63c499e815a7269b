from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from pydantic import SecretStr, ValidationError

from vision_o3.errors import ConfigurationError
from vision_o3.settings import PREFIX, Settings, load_settings, variable_of

EXAMPLE = Path(__file__).parents[2] / ".env.example"
SECRET = "canary-secret-" * 4


def pem_of(key: object) -> str:
    pem: bytes = key.private_bytes(  # type: ignore[attr-defined]  # any kind of key
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    return pem.decode()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for field in Settings.model_fields:
        monkeypatch.delenv(variable_of(field), raising=False)
    return monkeypatch


def test_example_lists_every_setting_with_its_default_and_one_comment() -> None:
    blocks = re.findall(
        r"^# (.+)\n([A-Z0-9_]+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE
    )
    assert [name for _, name, _ in blocks] == [
        variable_of(field) for field in Settings.model_fields
    ]
    assert len(re.findall("^[A-Z]", EXAMPLE.read_text(), re.MULTILINE)) == len(blocks)
    for (_, name, value), field in zip(
        blocks, Settings.model_fields.values(), strict=True
    ):
        default = field.default
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        if name == "VISION_O3_DIRECT_DOWNLOADS_TTL_S":
            assert value == ""
        else:
            assert value == ("" if default is None else str(default)).replace(
                "False", "false"
            )


def test_example_with_a_secret_is_a_valid_environment(
    environment: pytest.MonkeyPatch,
) -> None:
    for line in EXAMPLE.read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            environment.setenv(name, value)
    environment.setenv("VISION_O3_JWT_SECRET", SECRET)
    assert load_settings() == Settings(jwt_secret=SecretStr(SECRET))


def test_missing_key_is_an_error_that_says_how_to_make_one(
    environment: pytest.MonkeyPatch,
) -> None:
    del environment
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    command = re.search(r"python3 (-c) '(.+?)'", caught.value.message)
    assert command
    made = subprocess.run(
        [sys.executable, *command.groups()], check=True, capture_output=True
    )
    Settings(jwt_secret=SecretStr(made.stdout.decode().strip()))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"JWT_SECRET": "canary-short"}, "has 12 bytes and needs at least 32"),
        ({"JWT_SECRET": SECRET, "JWT_PRIVATE_KEY": "canary"}, "both set"),
        ({"JWT_PRIVATE_KEY": "canary"}, "not an unencrypted Ed25519 key"),
        (
            {"JWT_PRIVATE_KEY": pem_of(generate_private_key(SECP256R1()))},
            "not an unencrypted Ed25519 key",
        ),
        ({"JWT_SECRET": SECRET, "TOKEN_TTL_S": "canary"}, "VISION_O3_TOKEN_TTL_S: "),
        ({"JWT_SECRET": SECRET, "DIRECT_DOWNLOADS_TTL_S": "5"}, "set both or neither"),
        *(
            ({"JWT_SECRET": SECRET, **values}, said)
            for values, said in [
                ({"STORE": "s3://canary:canary@b"}, "VISION_O3_STORE: The store's lo"),
                ({"SECOND_STORE": "s3://B"}, "VISION_O3_SECOND_STORE: The store's"),
                ({"S3_PROFILE": "canary"}, "VISION_O3_S3_PROFILE: "),
                ({"S3_ENDPOINT": "canary.example"}, "VISION_O3_S3_ENDPOINT: not the"),
                ({"S3_ENDPOINT": "https://canary:x1@h"}, "holds a user or password"),
                ({"S3_ENDPOINT": "https://h/?canary"}, "must end after the host"),
                ({"S3_REGION": "canary region"}, "VISION_O3_S3_REGION: "),
                ({"AWS_ACCESS_KEY_ID": "canary id"}, "AWS_ACCESS_KEY_ID: it holds"),
                ({"AWS_SECRET_ACCESS_KEY": "canary\n"}, "AWS_SECRET_ACCESS_KEY: it h"),
                ({"S3_PART_BYTES": "1"}, "VISION_O3_S3_PART_BYTES: "),
                ({"SECOND_S3_REGION": "canary"}, "SECOND_S3_REGION is set, but"),
                ({"TRUSTED_PROXIES": "10.0.0.1,canary"}, "VISION_O3_TRUSTED_PROXIES: "),
                ({"TRUSTED_PROXIES": "10.0.0.1/8"}, "not the address of a proxy"),
                ({"TRUSTED_PROXIES": "*"}, "not the address of a proxy"),
                ({"TLS_CERT_FILE": "canary.crt"}, "belong together"),
                ({"TLS_KEY_FILE": "canary.key"}, "belong together"),
                ({"TLS_KEY_PASSWORD": "canary"}, "TLS_KEY_FILE is not"),
                (
                    {"SECOND_STORE": "b", "SECOND_S3_ACCESS_KEY_ID": "canary"},
                    "belong together",
                ),
            ]
        ),
    ],
)
def test_wrong_settings_are_told_in_a_sentence_without_their_values(
    environment: pytest.MonkeyPatch, values: dict[str, str], said: str
) -> None:
    for name, value in values.items():
        environment.setenv(name if name.startswith("AWS_") else PREFIX + name, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert said in caught.value.message
    assert caught.value.message.endswith(".")
    assert "canary" not in repr(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "endpoint",
    [
        "ftp://h",
        "https://",
        "https://:443",
        "https://h:port",
        "https://h:0",
        "https://h:70000",
        "https://[h",
        "//h",
        "https://h/#",
        "https://h/ b",
        "https://@h",
        "https://h?",
    ],
)
def test_endpoint_that_no_client_could_use_is_refused(endpoint: str) -> None:
    with pytest.raises(ValidationError):
        Settings(jwt_secret=SecretStr(SECRET), s3_endpoint=endpoint)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("https://o3-rc2.akave.xyz/", "https://o3-rc2.akave.xyz"),
        ("http://[::1]:9000", "http://[::1]:9000"),
        ("https://h/storage/s3/", "https://h/storage/s3"),
    ],
)
def test_endpoint_ends_without_a_slash(written: str, meant: str) -> None:
    settings = Settings(jwt_secret=SecretStr(SECRET), s3_endpoint=written)
    assert settings.s3_endpoint == meant


def test_keys_of_other_programs_are_no_error_where_none_is_needed(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("VISION_O3_JWT_SECRET", SECRET)
    environment.setenv("AWS_SESSION_TOKEN", "of-another-program")
    assert load_settings().store == "./vision-o3/objects"


def test_private_key_may_be_written_on_one_line() -> None:
    pem = pem_of(Ed25519PrivateKey.generate())
    for text in (pem, pem.replace("\n", "\\n")):
        settings = Settings(jwt_private_key=SecretStr(text))
        assert pem_of(settings.signing_key()) == pem


def test_settings_are_frozen_and_show_no_secret() -> None:
    settings = Settings(
        jwt_secret=SecretStr(SECRET),
        database_url=SecretStr("postgresql://u:canary@h/d"),
        aws_access_key_id=SecretStr("canary"),
        aws_secret_access_key=SecretStr("canary"),
        aws_session_token=SecretStr("canary"),
        second_store="s3://bucket",
        second_s3_access_key_id=SecretStr("canary"),
        second_s3_secret_access_key=SecretStr("canary"),
    )
    assert "canary" not in f"{settings!r} {settings}"
    with pytest.raises(ValidationError):
        settings.store = "elsewhere"  # type: ignore[misc]  # what is refused


def test_spool_lies_beside_a_local_store(tmp_path: Path) -> None:
    def spool(**values: object) -> Path:
        return Settings(jwt_secret=SecretStr(SECRET), **values).spool_directory  # type: ignore[arg-type]  # the test's business

    assert spool(store=f"{tmp_path}/a/objects") == tmp_path / "a" / "spool"
    assert spool(store="s3://bucket/prefix") == Path("vision-o3/spool")
    assert spool(store="s3://bucket", spool_dir=tmp_path) == tmp_path
    (tmp_path / "link").symlink_to(tmp_path / "b" / "objects")
    assert spool(store=f"{tmp_path}/link") == tmp_path / "b" / "spool"


def test_nobody_is_trusted_unless_named() -> None:
    assert Settings(jwt_secret=SecretStr(SECRET)).proxies == []
    named = Settings(
        jwt_secret=SecretStr(SECRET), trusted_proxies=" 10.0.0.1, 10.1.0.0/16,, ::1 "
    )
    assert named.proxies == ["10.0.0.1", "10.1.0.0/16", "::1"]
