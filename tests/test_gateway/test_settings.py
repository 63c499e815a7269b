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
from vision_o3.settings import PREFIX, Settings, load_settings

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
        monkeypatch.delenv((PREFIX + field).upper(), raising=False)
    return monkeypatch


def test_example_lists_every_setting_with_its_default_and_one_comment() -> None:
    blocks = re.findall(
        r"^# (.+)\n([A-Z0-9_]+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE
    )
    assert [name for _, name, _ in blocks] == [
        (PREFIX + field).upper() for field in Settings.model_fields
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
    ],
)
def test_wrong_settings_are_told_in_a_sentence_without_their_values(
    environment: pytest.MonkeyPatch, values: dict[str, str], said: str
) -> None:
    for name, value in values.items():
        environment.setenv(PREFIX + name, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert said in caught.value.message
    assert caught.value.message.endswith(".")
    assert "canary" not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_private_key_may_be_written_on_one_line() -> None:
    pem = pem_of(Ed25519PrivateKey.generate())
    for text in (pem, pem.replace("\n", "\\n")):
        settings = Settings(jwt_private_key=SecretStr(text))
        assert pem_of(settings.signing_key()) == pem


def test_settings_are_frozen_and_show_no_secret() -> None:
    settings = Settings(
        jwt_secret=SecretStr(SECRET),
        database_url=SecretStr("postgresql://u:canary@h/d"),
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
