"""Hand the gateway to uvicorn: its connections, TLS, proxies and open files."""

from __future__ import annotations

import asyncio
import resource
import signal
import ssl
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import structlog
import uvicorn
import uvloop
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates

from vision_o3.errors import ConfigurationError
from vision_o3.gateway.http_protocol import ConnectionLimits, http_protocol
from vision_o3.settings import share_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vision_o3.settings import Settings

_OTHER_FILES = 1024
"""Descriptors kept for what is not a connection: files, the store, the database."""
HANDSHAKE_S = 15.0
"""Seconds that a TLS handshake may take; connections are counted only after it."""
_log = structlog.get_logger(__name__)


class Loop(uvloop.Loop):
    """The event loop, whose servers do not wait long for a TLS handshake."""

    async def create_server(  # as it has it
        self,
        *arguments: Any,  # noqa: ANN401
        **options: Any,  # noqa: ANN401
    ) -> asyncio.Server:
        """Make a server; see ``asyncio.AbstractEventLoop.create_server``."""
        if options.get("ssl") is not None:
            options.setdefault("ssl_handshake_timeout", HANDSHAKE_S)
        server = await super().create_server(*arguments, **options)
        return cast("asyncio.Server", server)


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """A certificate and its key, which each process of the gateway opens."""

    certificate: Path
    key: Path
    password: str = field(repr=False)

    def context(self, *_: object) -> ssl.SSLContext:
        """Return what connections are made with: TLS 1.2 or newer.

        Raises:
            ConfigurationError: A file cannot be read, or they do not fit.
        """
        files = f"VISION_O3_TLS_CERT_FILE ({self.certificate}) and _KEY_FILE"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            for path in (self.certificate, self.key):
                path.open("rb").close()
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self.certificate, self.key, lambda: self.password)
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"{files} ({self.key}) cannot be used: {self._find_fault()}."
            ) from error
        except OSError as error:
            raise ConfigurationError(
                f"{error.filename} cannot be read ({error.strerror}). Mend {files}."
            ) from error
        return context

    def _find_fault(self) -> str:
        """Return what is wrong with them; OpenSSL does not always say it."""
        password = self.password.encode() or None
        try:
            load_pem_x509_certificates(self.certificate.read_bytes())
        except ValueError:
            return "the first is not a certificate in PEM"
        try:
            load_pem_private_key(self.key.read_bytes(), password)
        except TypeError:
            return "the key has a password: set VISION_O3_TLS_KEY_PASSWORD"
        except (ValueError, UnsupportedAlgorithm):
            if password is None:
                return "the second is not a key in PEM"
            return "VISION_O3_TLS_KEY_PASSWORD is not the key's password"
        return "the key is not that of the certificate"


def tls_files(settings: Settings) -> TLSFiles | None:
    """Return the certificate to serve HTTPS with, if the settings name one.

    Raises:
        ConfigurationError: It cannot be used.
    """
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    password = settings.tls_key_password
    files = TLSFiles(
        certificate=settings.tls_cert_file.expanduser(),
        key=settings.tls_key_file.expanduser(),
        password=password.get_secret_value() if password else "",
    )
    files.context()  # now, for a sentence and not a traceback of each process
    return files


def options(settings: Settings, limits: ConnectionLimits) -> dict[str, Any]:
    """Return uvicorn's options, but for the application and where it listens.

    Raises:
        ConfigurationError: The certificate cannot be used.
    """
    tls = tls_files(settings)
    return {
        "http": http_protocol(limits),
        "ws": "none",
        "lifespan": "on",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_keep_alive": settings.keep_alive_s,
        "timeout_graceful_shutdown": settings.shutdown_timeout_s,
        "proxy_headers": bool(settings.proxies),
        "forwarded_allow_ips": settings.proxies,
        "ssl_context_factory": None if tls is None else tls.context,
    }


def run(settings: Settings, host: str, port: int, workers: int) -> None:
    """Run the gateway until it is told to stop.

    Raises:
        ConfigurationError: The certificate cannot be used.
    """
    limits = _within_open_files(ConnectionLimits.of(settings))
    chosen = options(settings, limits)
    scheme = "http" if chosen["ssl_context_factory"] is None else "https"
    name = f"[{host}]" if ":" in host else host
    url = f"{scheme}://{name}:{port}"
    _log.info("gateway.starting", url=url, pages=f"{url}/docs")
    if limits.connections < settings.max_connections:
        _log.info(
            "connections.limited",
            allowed=limits.connections,
            wanted=settings.max_connections,
            reason="Each needs a file, and this process may not open so many.",
        )
    # What uvicorn sends itself again when all is answered: an orderly end, status 0.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _metrics_of(workers):
        uvicorn.run(
            "vision_o3.gateway.main:app_from_environment",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            loop=f"{__name__}:{Loop.__name__}",
            **chosen,
        )


@contextmanager
def _metrics_of(workers: int) -> Iterator[None]:
    """Let several processes keep their metrics where each can read those of all."""
    if workers == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="vision-o3-metrics-") as directory:
        share_metrics(Path(directory))
        yield


def _within_open_files(limits: ConnectionLimits) -> ConnectionLimits:
    """Allow this process all the files it may open, and no more connections."""
    # Each download holds a connection and up to three files.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most == resource.RLIM_INFINITY:
        return limits
    room = max(most // 2, most - _OTHER_FILES)
    return replace(limits, connections=min(limits.connections, room))
