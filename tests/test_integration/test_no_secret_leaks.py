"""Real gateways with canaries for secrets, at DEBUG: nobody else ever sees one.

Whatever the processes write, and every answer (heads, documents, metrics) is searched
for each secret that they were given or have handed out. The one allowed place of a
presigned URL is the ``Location`` of the redirect to it.
"""

from __future__ import annotations

import base64
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import psycopg
import pytest
from psycopg import sql

from tests.canaries import Canaries
from tests.fakes.certificates import make_certificate
from tests.fakes.model_files import tflite
from tests.fakes.otlp import collector
from tests.fakes.s3_servers import S3Server, free_ports
from tests.fakes.s3_servers import running as running_s3
from tests.test_integration.gateways import (
    POSTGRES,
    VISION_O3,
    RunningGateway,
    Site,
    postgres_database,
    running,
)

pytestmark = pytest.mark.integration

PATIENCE_S = 60


def canary(name: str) -> str:
    """Return a secret that is hard to write: nothing in it may be left unescaped."""
    return f"canary-{name}-{secrets.token_hex(8)}+/=%2F"


@dataclass
class Watched:
    """What must stay secret, and all that was seen."""

    canaries: Canaries = field(default_factory=Canaries)

    def hide(self, name: str, secret: str) -> str:
        """Take a secret for a canary, in each form that it may be written in."""
        for form in {secret, quote(secret), quote(secret, safe="")}:
            self.canaries.add(form, name, always=True)
        self.canaries.add(base64.b64encode(secret.encode()).decode().rstrip("="), name)
        return secret

    def see(self, where: str, text: str) -> None:
        self.canaries.see(where, text)

    def see_answer(self, answer: httpx.Response) -> httpx.Response:
        where = f"the answer to {answer.request.method} {answer.request.url.path}"
        hides_location = answer.status_code == 307
        for name, value in answer.headers.items():
            if not (hides_location and name == "location"):
                self.see(where, f"{name}: {value}")
        hands_out = answer.request.url.path in {"/auth/token", "/admin/users"}
        if "octet-stream" not in answer.headers.get("content-type", "") and not (
            hands_out and answer.request.method == "POST" and answer.is_success
        ):
            self.see(where, answer.text)
        return answer

    def see_log(self, gateway: RunningGateway) -> str:
        text = gateway.log.read_text()
        self.see("the log", text)
        return text

    def see_ended(self, ended: subprocess.CompletedProcess[str]) -> None:
        self.see(f"the output of {' '.join(ended.args[2:])}", ended.stdout)
        self.see(f"the errors of {' '.join(ended.args[2:])}", ended.stderr)


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    assert watched.canaries.check() == []


@contextmanager
def database_with_password(watched: Watched) -> Iterator[str]:
    """Make a database that a role with a password of its own owns."""
    password = canary("database-password")
    watched.hide("the database's password", password)
    role = f"vision_o3_{secrets.token_hex(6)}"
    with ExitStack() as stack:
        url = stack.enter_context(postgres_database())
        server = stack.enter_context(psycopg.connect(POSTGRES, autocommit=True))
        name = url.rpartition("/")[2]
        server.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                sql.Identifier(role), sql.Literal(password)
            )
        )

        def drop_role() -> None:
            with psycopg.connect(POSTGRES, autocommit=True) as again:
                again.execute(
                    sql.SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(
                        sql.Identifier(name)
                    )
                )
                again.execute(
                    sql.SQL(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE usename = {}"
                    ).format(sql.Literal(role))
                )
                with psycopg.connect(url, autocommit=True) as inside:
                    inside.execute(
                        sql.SQL("REASSIGN OWNED BY {} TO CURRENT_USER").format(
                            sql.Identifier(role)
                        )
                    )
                    inside.execute(
                        sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role))
                    )
                again.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))

        server.execute(
            sql.SQL("ALTER DATABASE {} OWNER TO {}").format(
                sql.Identifier(name), sql.Identifier(role)
            )
        )
        stack.callback(drop_role)
        place = urlsplit(url)
        host = f"{place.hostname}:{place.port or 5432}"
        yield f"postgresql://{role}:{quote(password, safe='')}@{host}/{name}"


def site_on(
    home: Path, url: str, server: S3Server, watched: Watched, **more: str
) -> Site:
    """Return a site whose every secret is a canary."""
    key_id = watched.hide("the S3 access key", f"AKID{secrets.token_hex(12).upper()}")
    extra = {
        "AWS_ACCESS_KEY_ID": key_id,
        "AWS_SECRET_ACCESS_KEY": watched.hide("the S3 secret key", canary("s3-key")),
        "AWS_SESSION_TOKEN": watched.hide("the S3 session token", canary("s3-session")),
        "VISION_O3_STORE": f"s3://{server.make_bucket()}/registry",
        "VISION_O3_S3_ENDPOINT": server.endpoint,
        "VISION_O3_S3_REGION": server.region,
        "VISION_O3_S3_TIMEOUT_S": "2",
        "VISION_O3_S3_MULTIPART_BYTES": str(5 << 20),
        "VISION_O3_S3_PART_BYTES": str(5 << 20),
        "VISION_O3_SPOOL_DIR": str(home / "spool"),
        "VISION_O3_CACHE_DIR": str(home / "cache"),
        "VISION_O3_METRICS_TOKEN": watched.hide(
            "the scraper's token", canary("scrape")
        ),
        "VISION_O3_LOG_LEVEL": "DEBUG",
        **more,
    }
    secret = watched.hide("the signing key", canary("signing-key-of-the-gateway"))
    return Site(home, url, extra, secret)


class Caller:
    """Sends requests to a gateway, and shows what comes back."""

    def __init__(self, gateway: RunningGateway, watched: Watched) -> None:
        self.gateway = gateway
        self.watched = watched
        self.token = "none-yet"

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {
            "Authorization": f"Bearer {self.token}",
            **options.pop("headers", {}),
        }
        answer = httpx.request(
            method,
            self.gateway.url + path,
            headers=headers,
            timeout=PATIENCE_S,
            follow_redirects=False,
            **options,
        )
        return self.watched.see_answer(answer)

    def sign_in(self, user: str, secret: str) -> httpx.Response:
        form = {
            "grant_type": "client_credentials",
            "client_id": user,
            "client_secret": secret,
        }
        answer = self.ask("POST", "/auth/token", data=form)
        if answer.status_code == 200:
            token = answer.json()["access_token"]
            self.watched.hide("a token", token)
            self.watched.hide("a token's signature", token.rpartition(".")[2])
            self.token = token
        return answer

    def publish(self, content: bytes, name: str = "m", **more: Any) -> httpx.Response:
        return self.ask(
            "POST",
            "/models",
            data={"name": name, **more},
            files={"file": ("m.tflite", content)},
        )

    def put_secrets_in_wrong_places(self, user: str, secret: str) -> None:
        """Do what people do: a secret where none belongs. All is refused."""
        token = self.token
        for place in (
            f"/models/{token}",
            f"/models/{quote(secret, safe='')}",
            f"/models?access_token={token}",
            f"/models?q={secret}&page=x",
            f"/models/cid/{token}",
            f"/models/m/versions/{token}",
            f"/uploads/{token}",
        ):
            assert self.ask("GET", place).status_code in {401, 404, 422}, place
        self.sign_in(user, secret + "x")
        self.sign_in(secret, user)
        self.ask("POST", "/auth/token", data={"grant_type": secret})
        self.ask("POST", "/auth/token", json={"client_secret": secret})
        self.ask("GET", "/models", headers={"Authorization": f"Basic {secret}"})
        self.ask("GET", "/models", headers={"Authorization": f"Bearer {token[:-2]}"})
        self.ask("GET", "/models", headers={"Authorization": secret})
        self.ask("GET", "/metrics", headers={"Authorization": f"Bearer {secret}"})
        self.publish(b"not a model", name=token)
        self.publish(tflite(), name="m", cid=token)
        self.publish(tflite(), name="m", unknown=secret)


def add_user(site: Site, watched: Watched) -> tuple[str, str]:
    """Add a user who may do everything. The command's output is theirs to read."""
    user, secret = site.add_user("ann", "model:read", "model:write", "admin")
    return user, watched.hide("the user's secret", secret)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_no_secret_leaks_from_a_gateway_whatever_is_asked_of_it(
    tmp_path: Path, watched: Watched
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(running_s3("moto"))
        url = stack.enter_context(database_with_password(watched))
        traces, spans = stack.enter_context(collector())
        site = site_on(
            tmp_path,
            url,
            server,
            watched,
            VISION_O3_DIRECT_DOWNLOADS="true",
            VISION_O3_WORKERS="2",
            VISION_O3_TRACING="true",
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=traces,
        )
        gateway = stack.enter_context(running(site))[0]
        user, secret = add_user(site, watched)
        caller = Caller(gateway, watched)
        assert caller.sign_in(user, secret).status_code == 200
        large = tflite(1, 6 << 20)
        for content in (tflite(), large, large):
            assert caller.publish(content).status_code in {200, 201}
        redirect = caller.ask("GET", "/models/m/download")
        assert redirect.status_code == 307
        presigned = redirect.headers["location"]
        query = parse_qs(urlsplit(presigned).query)
        watched.hide("a presigned signature", query["X-Amz-Signature"][0])
        assert httpx.get(presigned, timeout=PATIENCE_S).content == large
        caller.ask("GET", "/models/m/download?version=1")
        for path in ("/models", "/models/m", "/models/m/versions", "/openapi.json"):
            assert caller.ask("GET", path).status_code == 200
        assert caller.ask("GET", "/health/ready").status_code == 200
        added = caller.ask(
            "POST", "/admin/users", json={"name": "bea", "roles": ["reader"]}
        )
        assert added.status_code == 201
        watched.hide("another user's secret", added.json()["secret"])
        assert caller.ask("GET", "/admin/users").status_code == 200
        assert caller.ask("GET", "/admin/audit").status_code == 200
        caller.put_secrets_in_wrong_places(user, secret)
        assert caller.ask("GET", "/metrics").status_code == 200
        for words in (
            ("admin", "doctor"),
            ("admin", "check-store"),
            ("user", "list"),
            ("admin", "audit", "export", "-"),
        ):
            watched.see_ended(site.run(*words))
        gateway.process.terminate()
        assert gateway.process.wait(timeout=PATIENCE_S) == 0
        log = watched.see_log(gateway)
        assert "request.answered" in log
        assert spans
        for request in spans:
            watched.see("the spans", str(request))


def test_no_secret_leaks_when_store_and_database_are_lost(
    tmp_path: Path, watched: Watched
) -> None:
    with ExitStack() as stack:
        s3 = stack.enter_context(ExitStack())
        server = s3.enter_context(running_s3("moto"))
        url = stack.enter_context(database_with_password(watched))
        site = site_on(tmp_path, url, server, watched)
        gateway = stack.enter_context(running(site))[0]
        user, secret = add_user(site, watched)
        caller = Caller(gateway, watched)
        assert caller.sign_in(user, secret).status_code == 200
        assert caller.publish(tflite(1, 6 << 20)).status_code == 201
        s3.close()  # the store's process is killed
        assert caller.ask("GET", "/models/m/download").status_code >= 500
        assert caller.publish(tflite(2, 6 << 20)).status_code == 503
        assert caller.ask("GET", "/health/ready").status_code == 503
        role = urlsplit(url).username or ""
        with psycopg.connect(POSTGRES, autocommit=True) as connection:
            connection.execute(
                sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(role))
            )
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE usename = %s",
                [role],
            )
        assert caller.ask("GET", "/models/m/versions").status_code == 503
        assert caller.sign_in(user, secret).status_code == 503
        assert caller.publish(tflite(3)).status_code == 503
        wait_until(lambda: "changes.lost" in gateway.log.read_text())
        for words in (("admin", "doctor"), ("admin", "check-store"), ("user", "list")):
            watched.see_ended(run_failing(site, *words))
        caller.ask("GET", "/metrics")
        log = watched.see_log(gateway)
        assert "request.failed" in log
        assert "store.unreachable" in log


def run_failing(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command that must not succeed."""
    ended = subprocess.run(
        [*VISION_O3, *words],
        env=site.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode != 0, ended.stdout
    return ended


def test_no_secret_leaks_when_a_gateway_cannot_start(
    tmp_path: Path, watched: Watched
) -> None:
    [closed] = free_ports(1)
    certificate = make_certificate(
        tmp_path, password=watched.hide("the TLS key's password", canary("tls-right"))
    )
    with running_s3("moto") as server:
        url = f"sqlite:///{tmp_path}/registry.db"
        site = site_on(tmp_path, url, server, watched)
        site.run("admin", "migrate")
        password = watched.hide("the database's password", canary("password-of-none"))
        other = watched.hide("a wrong TLS password", canary("tls-wrong"))
        short = watched.hide("a short signing key", "canary-short-key")
        where = f"ann:{quote(password, safe='')}@127.0.0.1:{closed}"
        broken = Site(tmp_path, url, secret=site.secret)
        for changes in (
            {"VISION_O3_S3_ENDPOINT": server.endpoint.replace("http:", "https:")},
            {"VISION_O3_S3_ENDPOINT": f"http://127.0.0.1:{closed}"},
            {"VISION_O3_S3_ENDPOINT": f"http://{where}"},
            {"VISION_O3_STORE": "s3://no-such-bucket"},
            {"VISION_O3_DATABASE_URL": f"postgresql://{where}/registry"},
            {"VISION_O3_DATABASE_URL": f"postgresql://ann:{password}@@/registry"},
            {"VISION_O3_DATABASE_URL": f"mysql://{where}/registry"},
            {"VISION_O3_JWT_SECRET": short},
            {"VISION_O3_JWT_PRIVATE_KEY": password},
            {"VISION_O3_JWT_VERIFY_KEYS": f"{password * 2},{short}"},
            {"AWS_SECRET_ACCESS_KEY": f"{password} {password}"},
            {
                "VISION_O3_TLS_CERT_FILE": str(certificate.certificate),
                "VISION_O3_TLS_KEY_FILE": str(certificate.key),
                "VISION_O3_TLS_KEY_PASSWORD": other,
            },
        ):
            broken.extra = {**site.extra, **changes}
            ended = run_failing(broken, "serve", "--port", str(closed))
            watched.see_ended(ended)
            assert "Traceback" not in ended.stderr, ended.stderr
        watched.see_ended(run_failing(broken, "admin", "doctor"))


def test_no_secret_leaks_when_the_store_refuses_the_keys(
    tmp_path: Path, watched: Watched
) -> None:
    with running_s3("swift") as server:
        url = f"sqlite:///{tmp_path}/registry.db"
        right = {
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
        }
        site = site_on(tmp_path, url, server, watched)
        site.run("admin", "migrate")
        for changes in ({}, {"AWS_ACCESS_KEY_ID": server.access_key}):
            refused = Site(tmp_path, url, {**site.extra, **changes}, site.secret)
            for words in (("serve",), ("admin", "doctor")):
                watched.see_ended(run_failing(refused, *words))
        del site.extra["AWS_SESSION_TOKEN"]
        with running(Site(tmp_path, url, {**site.extra, **right}, site.secret)):
            pass


@pytest.mark.plants_secrets
def test_secret_that_leaks_is_found(watched: Watched) -> None:
    planted = watched.hide("the planted secret", canary("planted"))
    request = httpx.Request("GET", "http://gateway/models")
    for leak in (
        lambda: watched.see("the log", f'{{"event": "about {planted}"}}'),
        lambda: watched.see("the log", f"https://h/?key={quote(planted, safe='')}"),
        lambda: watched.see_answer(
            httpx.Response(200, headers={"x-debug": planted}, request=request)
        ),
        lambda: watched.see_answer(
            httpx.Response(404, json={"detail": planted}, request=request)
        ),
        lambda: watched.see_answer(
            httpx.Response(
                302,
                headers={"location": "http://h/?X-Amz-Signature=" + "0a" * 32},
                request=request,
            )
        ),
    ):
        leak()
        assert len(watched.canaries.check()) == 1
