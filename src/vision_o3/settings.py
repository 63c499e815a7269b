"""The gateway's settings: one frozen object, read once from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from vision_o3.errors import ConfigurationError
from vision_o3.formats.limits import Limits

PREFIX = "VISION_O3_"
MIN_SECRET_SIZE = 32
"""Bytes of an HS256 key (RFC 7518, section 3.2)."""
_GENERATOR = "python3 -c 'import secrets; print(secrets.token_urlsafe(48))'"

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Bytes = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """All that can be set on a gateway. Valid and complete once made.

    Each field is the environment variable ``VISION_O3_<FIELD>``; ``.env.example``
    explains them one by one.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    database_url: SecretStr = SecretStr("sqlite:///./vision-o3/registry.db")
    """Secret, as it may hold a password."""
    store: str = Field(default="./vision-o3/objects", min_length=1)
    spool_dir: Path | None = None

    jwt_secret: SecretStr | None = None
    jwt_private_key: SecretStr | None = None
    token_ttl_s: int = Field(default=3600, ge=1, le=30 * 86_400)

    direct_downloads: bool = False
    direct_downloads_ttl_s: int = Field(default=900, ge=1, le=7 * 86_400)

    max_upload_bytes: Count = 16 << 30
    min_free_bytes: Bytes = 256 << 20
    max_form_fields: Count = 100
    max_field_bytes: Count = 64 << 10
    max_concurrent_publishes: Count = 32

    allow_unsafe_content: bool = False
    inspect_timeout_s: Seconds = 600
    inspect_memory_bytes: int = Field(default=2 << 30, ge=256 << 20)
    max_concurrent_inspections: Count = 2
    max_archive_files: Count = 500_000
    max_unpacked_bytes: Count = 64 << 30
    max_unpack_ratio: Count = 200
    max_manifest_bytes: Count = 128 << 20
    max_path_bytes: int = Field(default=1024, ge=1, le=4096)
    max_path_depth: Count = 32
    max_json_bytes: Count = 1 << 30
    max_json_depth: int = Field(default=64, ge=1, le=1000)
    max_xml_bytes: Count = 64 << 20
    max_xml_depth: int = Field(default=64, ge=1, le=1000)

    claim_wait_s: Seconds = 60
    lease_s: Seconds = 60
    sweep_interval_s: Seconds = 60

    stall_timeout_s: Seconds = 60
    keep_alive_s: int = Field(default=30, ge=1)
    shutdown_timeout_s: int = Field(default=30, ge=0)

    workers: Count = 1
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="after")
    def _check_key(self) -> Self:
        if self.jwt_secret is None and self.jwt_private_key is None:
            raise ValueError(
                f"no key to sign tokens with: set {PREFIX}JWT_SECRET, for example to "
                f"what this prints: {_GENERATOR} (or {PREFIX}JWT_PRIVATE_KEY to an "
                "Ed25519 key in PEM, from: openssl genpkey -algorithm ed25519)"
            )
        if self.jwt_secret is not None and self.jwt_private_key is not None:
            raise ValueError(
                f"{PREFIX}JWT_SECRET and {PREFIX}JWT_PRIVATE_KEY are both set: "
                "keep one of them"
            )
        self.signing_key()
        return self

    @model_validator(mode="after")
    def _check_switches(self) -> Self:
        ttl_set = "direct_downloads_ttl_s" in self.model_fields_set
        if ttl_set and not self.direct_downloads:
            raise ValueError(
                f"{PREFIX}DIRECT_DOWNLOADS_TTL_S is set, but "
                f"{PREFIX}DIRECT_DOWNLOADS is not true: set both or neither"
            )
        return self

    def signing_key(self) -> str | Ed25519PrivateKey:
        """Return what tokens are signed with: a secret, or an Ed25519 key.

        Raises:
            ValueError: It is not such a key; the message does not show it.
        """
        if self.jwt_private_key is not None:
            return _parse_private_key(self.jwt_private_key.get_secret_value())
        secret = self.jwt_secret.get_secret_value() if self.jwt_secret else ""
        size = len(secret.encode())
        if size < MIN_SECRET_SIZE:
            raise ValueError(
                f"{PREFIX}JWT_SECRET has {size} bytes and needs at least "
                f"{MIN_SECRET_SIZE}. This prints a good one: {_GENERATOR}"
            )
        return secret

    @property
    def inspection_limits(self) -> Limits:
        """What the inspection of a file may meet and cost."""
        return Limits(
            archive_files=self.max_archive_files,
            unpacked_bytes=self.max_unpacked_bytes,
            unpack_ratio=self.max_unpack_ratio,
            manifest_bytes=self.max_manifest_bytes,
            path_bytes=self.max_path_bytes,
            path_depth=self.max_path_depth,
            json_bytes=self.max_json_bytes,
            json_depth=self.max_json_depth,
            xml_bytes=self.max_xml_bytes,
            xml_depth=self.max_xml_depth,
            time_s=self.inspect_timeout_s,
            memory_bytes=self.inspect_memory_bytes,
            allow_unsafe=self.allow_unsafe_content,
        )

    @property
    def spool_directory(self) -> Path:
        """Where uploads are received; beside a local store unless set.

        Beside it, so that both are on one file system and storing is a hard link.
        """
        if self.spool_dir is not None:
            return self.spool_dir.expanduser()
        if "://" in self.store:
            return Path("vision-o3/spool")
        return Path(self.store).expanduser().resolve().parent / "spool"


def _parse_private_key(text: str) -> Ed25519PrivateKey:
    # An environment variable on one line may carry its line ends as "\\n".
    pem = text.replace("\\n", "\n").encode()
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(  # noqa: TRY004 - the value is wrong, pydantic's contract
            f"{PREFIX}JWT_PRIVATE_KEY is not an unencrypted Ed25519 key in PEM. "
            "This makes one: openssl genpkey -algorithm ed25519"
        )
    return key


def load_settings() -> Settings:
    """Return the settings that the environment states.

    Raises:
        ConfigurationError: One is missing, wrong, or contradicts another. The message
            says which and what to do, and shows no values.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = []
        for found in error.errors(include_input=False, include_url=False):
            message = found["msg"].removeprefix("Value error, ")
            name = "".join(f"{PREFIX}{part}".upper() for part in found["loc"][:1])
            problems.append(f"{name}: {message}" if name else message)
        raise ConfigurationError("; ".join(problems) + ".") from None
