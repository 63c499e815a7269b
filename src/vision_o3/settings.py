"""The gateway's settings: one frozen object, read once from the environment."""

from __future__ import annotations

import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
)
from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from vision_o3.errors import ConfigurationError
from vision_o3.formats.limits import Limits
from vision_o3.storage.factory import parse_location

PREFIX = "VISION_O3_"
MIN_SECRET_SIZE = 32
"""Bytes of an HS256 key (RFC 7518, section 3.2)."""
_GENERATOR = "python3 -c 'import secrets; print(secrets.token_urlsafe(48))'"

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Bytes = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Limit = Annotated[int, Field(ge=0)]
"""At most so many; 0: no limit."""
Word = Annotated[str, Field(pattern=r"^[!-~]{1,255}$")]


_PEM = re.compile(r"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----", re.DOTALL)
_KEY_TEXT = re.compile(r"[!-~]+")
"""What an access key or secret key is made of: ASCII without white space."""


def _checked_location(text: str) -> str:
    try:
        parse_location(text)
    except ConfigurationError as error:
        raise ValueError(error.message.removesuffix(".")) from None
    return text


def _checked_endpoint(text: str) -> str:
    """Return an endpoint as clients want it, or say what is wrong, not showing it."""
    try:
        url = urlsplit(text)
        port_is_one = url.port is None or url.port > 0
    except ValueError:
        port_is_one, url = False, urlsplit("")
    if url.scheme not in {"http", "https"} or not url.hostname or not port_is_one:
        raise ValueError("not the URL of an S3 API, as https://o3-rc2.akave.xyz is one")
    if url.username is not None or url.password is not None:
        raise ValueError(
            "it holds a user or password. Keys belong into the variables for keys"
        )
    if "?" in text or "#" in text or re.search(r"\s", text):
        raise ValueError(
            "it must end after the host, the port or a path: no '?', '#' or spaces"
        )
    return text.rstrip("/")


def _checked_key(key: SecretStr) -> SecretStr:
    if not _KEY_TEXT.fullmatch(key.get_secret_value()):
        raise ValueError(
            "it holds white space or characters that no key has. "
            "Copy it again, without quotes or a line's end"
        )
    return key


def _aws(name: str) -> Any:  # noqa: ANN401 - as pydantic types a field
    """Return a field under the name that every S3 tool reads its keys from."""
    return Field(default=None, validation_alias=name)


def _checked_proxies(text: str) -> str:
    for each in _split(text):
        try:
            ip_network(each)
        except ValueError:
            raise ValueError(
                "one of them is not the address of a proxy or a network of proxies, as "
                "10.0.0.7 and 10.0.0.0/24 are; separate several by commas"
            ) from None
    return text


def _split(text: str) -> list[str]:
    return [word for each in text.split(",") if (word := each.strip())]


Location = Annotated[str, AfterValidator(_checked_location)]
Endpoint = Annotated[str, AfterValidator(_checked_endpoint)]
Region = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")]
Proxies = Annotated[str, AfterValidator(_checked_proxies)]
StoreKey = Annotated[SecretStr, AfterValidator(_checked_key)]


class Settings(BaseSettings):
    """All that can be set on a gateway. Valid and complete once made.

    Each field is the environment variable ``VISION_O3_<FIELD>``, but for the first
    store's keys, which have the names that every S3 tool knows (``variable_of``).
    ``.env.example`` explains them one by one.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    database_url: SecretStr = SecretStr("sqlite:///./vision-o3/registry.db")
    """Secret, as it may hold a password."""
    store: Location = "./vision-o3/objects"
    s3_profile: Literal["akave-o3"] | None = None
    s3_endpoint: Endpoint | None = None
    s3_region: Region | None = None
    aws_access_key_id: StoreKey | None = _aws("AWS_ACCESS_KEY_ID")
    aws_secret_access_key: StoreKey | None = _aws("AWS_SECRET_ACCESS_KEY")
    aws_session_token: StoreKey | None = _aws("AWS_SESSION_TOKEN")
    s3_conditional_put: Literal["auto", "yes", "no"] = "auto"
    s3_multipart_bytes: int = Field(default=100_000_000, ge=5 << 20, le=5 << 30)
    s3_part_bytes: int = Field(default=16 << 20, ge=5 << 20, le=5 << 30)
    s3_parallel_parts: int = Field(default=4, ge=1, le=64)
    s3_timeout_s: Seconds = 30
    second_store: Location | None = None
    second_s3_endpoint: Endpoint | None = None
    second_s3_region: Region | None = None
    second_s3_access_key_id: StoreKey | None = None
    second_s3_secret_access_key: StoreKey | None = None
    spool_dir: Path | None = None
    cache_dir: Path | None = None
    cache_bytes: Bytes = 20 << 30
    metadata_ttl_s: float = Field(default=5, ge=0, le=3600)

    jwt_secret: SecretStr | None = None
    jwt_private_key: SecretStr | None = None
    jwt_verify_keys: SecretStr | None = None
    token_issuer: Word = "vision-o3"  # noqa: S105 - a name
    token_audience: Word = "vision-o3"  # noqa: S105 - a name
    token_ttl_s: int = Field(default=3600, ge=1, le=30 * 86_400)
    token_leeway_s: int = Field(default=5, ge=0, le=300)
    max_failed_sign_ins: Count = 10
    publish_to: Literal["own", "any"] = "own"

    direct_downloads: bool = False
    direct_downloads_ttl_s: int = Field(default=900, ge=1, le=7 * 86_400)

    max_upload_bytes: Count = 16 << 30
    min_free_bytes: Bytes = 256 << 20
    max_form_fields: Count = 100
    max_field_bytes: Count = 64 << 10
    max_concurrent_publishes: Count = 32
    upload_expires_s: float = Field(default=86_400, gt=0, le=30 * 86_400)

    max_requests_per_minute: Limit = 6000
    max_sign_ins_per_minute: Limit = 600
    max_downloads_per_user: Limit = 128
    max_uploads_per_user: Limit = 32
    max_partial_uploads_per_user: Limit = 64
    max_versions_per_user: Limit = 100_000
    max_bytes_per_user: Limit = 1 << 40

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

    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_key_password: SecretStr | None = None
    trusted_proxies: Proxies = ""
    max_connections: Count = 20_000
    max_head_bytes: int = Field(default=64 << 10, ge=8 << 10, le=1 << 20)
    head_timeout_s: Seconds = 15
    stall_timeout_s: Seconds = 60
    keep_alive_s: int = Field(default=30, ge=1)
    shutdown_timeout_s: int = Field(default=30, ge=0)

    metrics_token: SecretStr | None = None
    tracing: bool = False

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
        self.verifying_keys()
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

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError(
                f"{PREFIX}TLS_CERT_FILE and {PREFIX}TLS_KEY_FILE belong together: "
                "set both or neither"
            )
        if self.tls_key_password is not None and self.tls_key_file is None:
            raise ValueError(
                f"{PREFIX}TLS_KEY_PASSWORD is set, but {PREFIX}TLS_KEY_FILE is not: "
                "set both or neither"
            )
        return self

    @model_validator(mode="after")
    def _check_store_keys(self) -> Self:
        # The AWS_… may be there for other programs: O3Client looks at them when used.
        if (self.second_s3_access_key_id is None) != (
            self.second_s3_secret_access_key is None
        ):
            raise ValueError(
                f"{PREFIX}SECOND_S3_ACCESS_KEY_ID and "
                f"{PREFIX}SECOND_S3_SECRET_ACCESS_KEY belong together: "
                "set both or neither"
            )
        if self.second_store is None:
            for field in type(self).model_fields:
                if field.startswith("second_s3_") and getattr(self, field) is not None:
                    raise ValueError(
                        f"{variable_of(field)} is set, but {PREFIX}SECOND_STORE is "
                        "not: set both or neither"
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
        _check_size(secret, f"{PREFIX}JWT_SECRET")
        return secret

    def verifying_keys(self) -> list[str | Ed25519PublicKey]:
        """Return the keys whose tokens are accepted beside those of the signing key.

        Raises:
            ValueError: One is not such a key; the message does not show it.
        """
        if self.jwt_verify_keys is None:
            return []
        text = self.jwt_verify_keys.get_secret_value().replace("\\n", "\n")
        keys: list[str | Ed25519PublicKey] = [
            _parse_public_key(pem) for pem in _PEM.findall(text)
        ]
        for secret in re.split(r"[\s,]+", _PEM.sub(" ", text)):
            if secret:
                _check_size(secret, f"a secret in {PREFIX}JWT_VERIFY_KEYS")
                keys.append(secret)
        return keys

    @property
    def proxies(self) -> list[str]:
        """Whose word on where a request came from is taken; nobody's by default."""
        return _split(self.trusted_proxies)

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
    def cache_directory(self) -> Path | None:
        """Where artifacts that are asked for are kept, if anywhere.

        By default only what lies in an S3 store: a directory is as near as the cache.
        """
        if self.cache_bytes == 0:
            return None
        if self.cache_dir is not None:
            return self.cache_dir.expanduser()
        return Path("vision-o3/cache") if "://" in self.store else None

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


_METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""What ``prometheus_client`` looks at, once, when it is imported."""


def share_metrics(directory: Path) -> None:
    """Let the processes that this one starts keep their metrics in a directory."""
    os.environ[_METRICS_VARIABLE] = str(directory)


def shared_metrics_directory() -> Path | None:
    """Return where this process and others keep their metrics, if they share them."""
    directory = os.environ.get(_METRICS_VARIABLE)
    return Path(directory) if directory else None


def variable_of(field: str) -> str:
    """Return the environment variable that sets a field.

    Raises:
        KeyError: There is no such field.
    """
    alias = Settings.model_fields[field].validation_alias
    return alias if isinstance(alias, str) else f"{PREFIX}{field}".upper()


def _check_size(secret: str, what: str) -> None:
    size = len(secret.encode())
    if size < MIN_SECRET_SIZE:
        raise ValueError(
            f"{what} has {size} bytes and needs at least {MIN_SECRET_SIZE}. "
            f"This prints a good one: {_GENERATOR}"
        )


def _parse_public_key(pem: str) -> Ed25519PublicKey:
    """Return the public key of a PEM block of either half."""
    key: object
    try:
        if "PRIVATE" in pem.partition("\n")[0]:
            key = load_pem_private_key(pem.encode(), password=None).public_key()
        else:
            key = load_pem_public_key(pem.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(  # noqa: TRY004 - the value is wrong, pydantic's contract
            f"{PREFIX}JWT_VERIFY_KEYS holds PEM that is no unencrypted Ed25519 key"
        )
    return key


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
            # Where a variable was read, the place is the variable's own name.
            place = "".join(map(str, found["loc"][:1]))
            name = variable_of(place) if place in Settings.model_fields else place
            problems.append(f"{name}: {message}" if name else message)
        raise ConfigurationError("; ".join(problems) + ".") from None
