"""The image's and the compose files' promises, as far as they show without an engine.

nginx runs for real where it is installed, on the very configuration of the proxy.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from pydantic import SecretStr

from vision_o3.settings import PREFIX, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).parent.parent
DOCKER = REPOSITORY / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
NGINX_CONF = (DOCKER / "nginx.conf").read_text()
EXAMPLES = [DOCKER / ".env.example", DOCKER / "akave-o3.env.example"]
OURS = {"gateway", "gateway-2"}


class ComposeLoader(yaml.SafeLoader):
    """Reads Compose's own tags: what is reset is empty."""


ComposeLoader.add_constructor("!reset", lambda _loader, _node: None)


def load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.load(
        (DOCKER / name).read_text(),
        ComposeLoader,  # noqa: S506 - as its base is
    )
    return document


ONE = load("docker-compose.yml")
TWO = load("docker-compose.two-gateways.yml")
CONTAINERS = [
    *ONE["services"].items(),
    ("proxy", TWO["services"]["proxy"]),
]


def variables() -> dict[str, bool]:
    """Return every setting's variable, and whether it is a secret."""
    return {
        str(field.validation_alias or (PREFIX + name).upper()): SecretStr
        in (field.annotation, *getattr(field.annotation, "__args__", ()))
        for name, field in Settings.model_fields.items()
    }


def seconds(text: str) -> float:
    """Return a duration, or the default of a variable that states one."""
    found = re.fullmatch(r"(?:\$\{\w+:-)?(\d+)s\}?", text)
    assert found, text
    return float(found[1])


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, comments and line ends taken out."""
    lines = [
        line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")
    ]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (found[1], " ".join(found[2].split()))
        for found in re.finditer(r"^([A-Z]+) (.+)$", joined, re.MULTILINE)
    ]


def final_stage() -> dict[str, str]:
    """Return the instructions of the image that is shipped, the last of each kind."""
    found = instructions()
    last = max(n for n, (name, _) in enumerate(found) if name == "FROM")
    return dict(found[last:])


def test_every_setting_reaches_the_gateway() -> None:
    passed = ONE["services"]["gateway"]["environment"]
    assert set(passed) == set(variables())
    for name, value in passed.items():
        assert value.startswith(("${" + name + "-", "${" + name + ":")), name


def test_no_secret_has_a_value_in_a_file() -> None:
    passed = ONE["services"]["gateway"]["environment"]
    for name, secret in variables().items():
        if secret and name != "VISION_O3_DATABASE_URL":
            empty_or_asked_for = r"\$\{" + name + r"(-|:\?[^}]+)\}"
            assert re.fullmatch(empty_or_asked_for, passed[name]), name
            assert name not in DOCKERFILE
    for service, container in CONTAINERS:
        for name, value in (container.get("environment") or {}).items():
            if re.search("PASSWORD|SECRET|KEY", name):
                assert str(value).startswith("${" + name), (service, name)
    for example in EXAMPLES:
        for name in re.findall(
            r"^(\w*(?:PASSWORD|SECRET|KEY)\w*)=.+$", example.read_text(), re.MULTILINE
        ):
            pytest.fail(f"{example.name} holds a value for {name}")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_names_all_that_must_be_set_and_nothing_unknown(
    example: Path,
) -> None:
    files = "".join(
        (DOCKER / name).read_text()
        for name in ("docker-compose.yml", "docker-compose.two-gateways.yml")
    )
    named = set(re.findall(r"^([A-Z0-9_]+)=", example.read_text(), re.MULTILINE))
    assert set(re.findall(r"\$\{(\w+):\?", files)) <= named
    assert "VISION_O3_JWT_SECRET" in named
    assert named <= set(re.findall(r"\$\{(\w+)", files)) | {"COMPOSE_PROFILES"}


def test_what_only_compose_reads_is_explained() -> None:
    text = (REPOSITORY / "docs" / "containers.md").read_text()
    for name in ("docker-compose.yml", "docker-compose.two-gateways.yml"):
        used = set(re.findall(r"\$\{(\w+)", (DOCKER / name).read_text()))
        for variable in used - set(variables()):
            assert f"`{variable}`" in text, variable


@pytest.mark.parametrize(
    ("name", "container"), CONTAINERS, ids=[n for n, _ in CONTAINERS]
)
def test_a_container_has_no_more_than_it_needs(
    name: str, container: dict[str, Any]
) -> None:
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert "cap_add" not in container
    assert "privileged" not in container
    assert container["mem_limit"]
    assert container["pids_limit"]
    assert any(mount.startswith("/tmp:") for mount in container["tmpfs"])  # noqa: S108 - in a container
    if name not in OURS:  # ours has a check and a user in its image
        assert container["healthcheck"]["test"][0] == "CMD"
        unprivileged = "nginx-unprivileged" in container["image"]
        assert unprivileged or re.fullmatch(
            r"[1-9]\d*:[1-9]\d*", container.get("user", "")
        )
        assert not container["image"].endswith(":latest")
        assert ":" in container["image"]


def test_only_one_door_is_open_and_on_loopback_unless_told_otherwise() -> None:
    assert [n for n, c in ONE["services"].items() if "ports" in c] == ["gateway"]
    assert ONE["services"]["gateway"]["ports"] == [
        "${VISION_O3_PUBLISH:-127.0.0.1:8000}:8000"
    ]
    two = TWO["services"]
    assert two["gateway"]["ports"] is None
    assert two["gateway-2"]["ports"] is None
    assert two["proxy"]["ports"] == ["${VISION_O3_PUBLISH:-127.0.0.1:8000}:8080"]


def test_database_and_store_are_on_a_network_without_a_way_out() -> None:
    assert ONE["networks"]["back"]["internal"] is True
    assert ONE["services"]["postgres"]["networks"] == ["back"]
    assert ONE["services"]["store"]["networks"] == ["back"]
    assert TWO["services"]["proxy"]["networks"] == ["front"]


def test_the_gateways_believe_their_proxy_and_nothing_elsewhere() -> None:
    network = TWO["networks"]["front"]["ipam"]["config"][0]["subnet"]
    for name in OURS:
        passed = TWO["services"][name]["environment"]["VISION_O3_TRUSTED_PROXIES"]
        assert passed == "${VISION_O3_TRUSTED_PROXIES:-" + network + "}"
    for name, service in ONE["services"].items():
        assert name in OURS or "front" not in service["networks"]


def test_each_gateway_has_a_volume_of_its_own() -> None:
    assert ONE["services"]["gateway"]["volumes"] == ["gateway:/data"]
    assert TWO["services"]["gateway-2"]["volumes"] == ["gateway-2:/data"]
    assert TWO["services"]["gateway-2"]["extends"]["service"] == "gateway"
    declared = set(ONE["volumes"]) | set(TWO["volumes"])
    assert {"gateway", "gateway-2", "postgres", "store"} == declared


def test_a_container_is_stopped_later_than_its_requests() -> None:
    fields = Settings.model_fields
    shutdown_s = fields["shutdown_timeout_s"].default
    for container in (ONE["services"]["gateway"], TWO["services"]["proxy"]):
        assert seconds(container["stop_grace_period"]) > shutdown_s


def test_the_proxy_is_more_patient_than_a_gateway() -> None:
    def directive(name: str) -> float:
        found = re.search(rf"^ *{name} (\d+)s;", NGINX_CONF, re.MULTILINE)
        assert found, name
        return float(found[1])

    fields = Settings.model_fields
    upstream = NGINX_CONF.split("upstream gateways")[1].split("server {")[0]
    kept = re.search(r"keepalive_timeout (\d+)s", upstream)
    assert kept
    # Otherwise a request could be sent into a connection that is being closed.
    assert int(kept[1]) < fields["keep_alive_s"].default
    for name in ("client_body_timeout", "send_timeout", "proxy_send_timeout"):
        assert directive(name) > fields["stall_timeout_s"].default, name
    assert directive("proxy_read_timeout") > fields["inspect_timeout_s"].default


def test_the_image_runs_as_a_number_that_is_not_root() -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", final_stage()["USER"])


def test_the_image_starts_a_gateway_that_can_be_stopped_and_watched() -> None:
    final = final_stage()
    assert json.loads(final["ENTRYPOINT"]) == ["vision-o3"]
    command = json.loads(final["CMD"])
    assert command == ["serve", "--host", "0.0.0.0", "--migrate"]  # noqa: S104 - in a container
    assert final["STOPSIGNAL"] == "SIGTERM"
    assert final["VOLUME"] == "/data"
    check = json.loads(final["HEALTHCHECK"].split(" CMD ")[1])
    assert check[:2] == ["python", "-c"]
    compile(check[2], "HEALTHCHECK", "exec")
    assert "/health/ready" in check[2]


def test_whatever_the_image_writes_lies_under_its_volume() -> None:
    defaults = re.findall(r"VISION_O3_(\w+)=(\S+)", final_stage()["ENV"])
    assert {name for name, _ in defaults} == {
        "DATABASE_URL",
        "STORE",
        "SPOOL_DIR",
        "CACHE_DIR",
    }
    for _, value in defaults:
        assert value.removeprefix("sqlite:///").startswith("/data/")


def test_the_image_installs_only_what_is_locked() -> None:
    runs = [value for name, value in instructions() if name == "RUN"]
    installs = re.findall(r"pip [^&]*?install [^&]*", " && ".join(runs))
    assert installs
    for install in installs:
        assert "--require-hashes" in install or "--no-index" in install, install
    assert "ADD" not in {name for name, _ in instructions()}
    assert not re.search(r"https?://(?!127\.0\.0\.1)", " ".join(runs))


def test_the_builder_gets_only_what_it_copies() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        source
        for name, value in instructions()
        if name == "COPY" and not value.startswith("--from")
        for source in value.split()[:-1]
    }
    assert copied == allowed
    for source in copied:
        assert (REPOSITORY / source).exists()


# The proxy, with servers in place of the gateways.

CLOSE = b"Connection: close\r\n"


class Upstream:
    """A server that answers as the test says, and keeps what it was sent.

    A connection serves one request, and answers must say so (``CLOSE``): otherwise the
    proxy may send its next one into a connection that is being closed.
    """

    def __init__(self, answer: Callable[[socket.socket, bytes], None]) -> None:
        self._answer = answer
        self.heads: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            thread.start()
            self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(30)
            head = b""
            while b"\r\n\r\n" not in head:
                piece = connection.recv(65536)
                if not piece:
                    return
                head += piece
            head, _, rest = head.partition(b"\r\n\r\n")
            self.heads.append(head)
            self._answer(connection, rest)
            # What is closed with bytes unread is reset, and its answer may be lost.
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._accepting.join()
        for thread in self._threads:
            thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def proxied(home: Path, *ports: int) -> Iterator[int]:
    """Run nginx in front of two ports; yield its own."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        if os.environ.get("CI") == "true":
            pytest.fail("nginx is not installed, and CI needs it")
        pytest.skip("nginx is not installed")
    own = free_port()
    text = re.sub(r"\n *resolver .*?;", "", NGINX_CONF).replace(" resolve ", " ")
    for name, port in zip(("gateway-2:8000", "gateway:8000"), ports, strict=True):
        text = text.replace(f"server {name}", f"server 127.0.0.1:{port}")
    text = text.replace("listen 8080", f"listen 127.0.0.1:{own}")
    text = re.sub(r"/tmp\b", str(home), text)  # noqa: S108 - taken out
    text = text.replace("/dev/stderr", f"{home}/errors")
    text = text.replace("/dev/stdout", f"{home}/log")
    text = text.replace("worker_processes auto", "worker_processes 1")
    (home / "nginx.conf").write_text(f"daemon off;\n{text}")
    process = subprocess.Popen(
        [binary, "-c", str(home / "nginx.conf"), "-e", str(home / "errors")]
    )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", own)).close()
                break
            assert process.poll() is None, (home / "errors").read_text()
            time.sleep(0.05)
        yield own
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextlib.contextmanager
def call(port: int, head: str) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        yield connection


def read_all(connection: socket.socket) -> bytes:
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def ok(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n" + CLOSE + b"Content-Length: 2\r\n\r\nok")


@pytest.mark.integration
def test_the_proxy_passes_on_a_token_for_many_lines(tmp_path: Path) -> None:
    upstream = Upstream(ok)
    token = "a" * (24 << 10)
    try:
        with (
            proxied(tmp_path, upstream.port, upstream.port) as port,
            call(
                port,
                "GET /models HTTP/1.1\nHost: h\nConnection: close\n"
                f"Authorization: Bearer {token}",
            ) as connection,
        ):
            assert read_all(connection).startswith(b"HTTP/1.1 200 ")
        assert token.encode() in upstream.heads[0]
    finally:
        upstream.close()


@pytest.mark.integration
def test_the_proxy_streams_both_ways(tmp_path: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def answer(connection: socket.socket, rest: bytes) -> None:
        while len(rest) < 5:
            rest += connection.recv(65536)
        reached.set()  # the first half, before the second was sent
        while len(rest) < 10:
            rest += connection.recv(65536)
        head = b"HTTP/1.1 200 OK\r\n" + CLOSE + b"Content-Length: 10\r\n\r\n"
        connection.sendall(head + rest[:5])
        go_on.wait(30)
        connection.sendall(rest[5:])

    upstream = Upstream(answer)
    try:
        with (
            proxied(tmp_path, upstream.port, upstream.port) as port,
            call(
                port, "POST /models HTTP/1.1\nHost: h\nContent-Length: 10"
            ) as connection,
        ):
            connection.sendall(b"01234")
            assert reached.wait(30)
            connection.sendall(b"56789")
            received = b""
            while not received.endswith(b"01234"):  # before the rest was sent
                piece = connection.recv(65536)
                assert piece
                received += piece
            go_on.set()
            while not received.endswith(b"0123456789"):
                piece = connection.recv(65536)
                assert piece
                received += piece
    finally:
        go_on.set()
        upstream.close()


@pytest.mark.integration
def test_the_proxy_passes_ranges_ids_and_large_bodies(tmp_path: Path) -> None:
    def partial(connection: socket.socket, _: bytes) -> None:
        connection.sendall(
            b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-3/9\r\n"
            + CLOSE
            + b"X-Request-ID: mine\r\nContent-Length: 2\r\n\r\nab"
        )

    upstream = Upstream(partial)
    try:
        with proxied(tmp_path, upstream.port, upstream.port) as port:
            with call(
                port,
                "GET /models/m/download HTTP/1.1\nHost: h:81\nRange: bytes=2-3\n"
                "X-Request-ID: mine\nConnection: close",
            ) as connection:
                answer = read_all(connection)
            assert b" 206 " in answer.splitlines()[0]
            assert b"Content-Range: bytes 2-3/9" in answer
            head = upstream.heads[-1]
            assert b"Range: bytes=2-3" in head
            assert b"X-Request-ID: mine" in head
            assert b"Host: h:81" in head
            with call(
                port,
                f"POST /models HTTP/1.1\nHost: h\nContent-Length: {1 << 40}\n"
                "X-Request-ID: not (harmless)\nConnection: close",
            ) as connection:
                connection.sendall(b"x")
                assert b" 206 " in connection.recv(65536)  # not 413
            given = re.search(rb"X-Request-ID: (\S+)\r\n", upstream.heads[-1])
            assert given
            assert re.fullmatch(rb"[0-9a-f]{32}", given[1])
    finally:
        upstream.close()


@pytest.mark.integration
def test_the_proxy_says_who_asks_and_not_who_they_say_they_are(tmp_path: Path) -> None:
    upstream = Upstream(ok)
    try:
        with (
            proxied(tmp_path, upstream.port, upstream.port) as port,
            call(
                port,
                "GET /health HTTP/1.1\nHost: h\nX-Forwarded-For: 203.0.113.9\n"
                "X-Forwarded-Proto: https\nConnection: close",
            ) as connection,
        ):
            read_all(connection)
        head = upstream.heads[-1] + b"\r\n"
        assert re.findall(rb"X-Forwarded-For: (.+)\r\n", head) == [b"127.0.0.1"]
        assert re.findall(rb"X-Forwarded-Proto: (.+)\r\n", head) == [b"http"]
    finally:
        upstream.close()


@pytest.mark.integration
def test_the_proxy_passes_over_a_dead_gateway(tmp_path: Path) -> None:
    upstream = Upstream(ok)
    try:
        with socket.socket() as dead:
            dead.bind(("127.0.0.1", 0))  # without listening: so nobody else does
            ports = (dead.getsockname()[1], upstream.port)
            with proxied(tmp_path, *ports) as port:
                for _ in range(8):
                    with call(
                        port, "GET /health HTTP/1.1\nHost: h\nConnection: close"
                    ) as connection:
                        assert b" 200 " in read_all(connection).splitlines()[0]
    finally:
        upstream.close()


@pytest.mark.integration
def test_the_proxy_sends_all_of_an_upload_to_one_gateway(tmp_path: Path) -> None:
    def receive(connection: socket.socket, rest: bytes) -> None:
        while len(rest) < 2:
            rest += connection.recv(65536)
        ok(connection, rest)

    upstreams = [Upstream(receive), Upstream(receive)]
    # So many that they do not all belong to one, whatever the ports.
    cids = [f"bafybei{first}{second}" for first in "abcdefgh" for second in "klmno"]
    try:
        with proxied(tmp_path, *(upstream.port for upstream in upstreams)) as port:
            for cid in cids:
                for line in (
                    f"PUT /uploads/{cid} HTTP/1.1\nHost: h",
                    f"PUT /uploads/{cid}/parts/0 HTTP/1.1\nHost: h",
                    f"PUT /uploads/{cid}?start=0&end=1 HTTP/1.1\nHost: h",
                    f"POST /models HTTP/1.1\nHost: h\nX-Vision-O3-CID: {cid}",
                ):
                    head = f"{line}\nConnection: close\nContent-Length: 2"
                    with call(port, head) as connection:
                        connection.sendall(b"hi")
                        assert read_all(connection).startswith(b"HTTP/1.1 200")
        for cid in cids:
            counts = [
                sum(cid.encode() in head for head in upstream.heads)
                for upstream in upstreams
            ]
            assert sorted(counts) == [0, 4]
        assert all(upstream.heads for upstream in upstreams)
    finally:
        for upstream in upstreams:
            upstream.close()


@pytest.mark.integration
def test_the_proxy_never_sends_an_upload_twice(tmp_path: Path) -> None:
    def die(connection: socket.socket, _: bytes) -> None:
        connection.close()

    upstreams = [Upstream(die), Upstream(die)]
    try:
        with proxied(tmp_path, *(upstream.port for upstream in upstreams)) as port:
            with call(
                port,
                "POST /models HTTP/1.1\nHost: h\nContent-Length: 1\nConnection: close",
            ) as connection:
                connection.sendall(b"x")
                assert b" 502 " in read_all(connection).splitlines()[0]
            assert sum(len(upstream.heads) for upstream in upstreams) == 1
    finally:
        for upstream in upstreams:
            upstream.close()
