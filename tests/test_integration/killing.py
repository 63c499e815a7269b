"""Two gateways under mixed load, of which one at a time is killed and comes back.

Clients upload, download and ask, and go to the other gateway when one is gone. All
that they were answered is written down, and compared with what is there.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import psycopg
from botocore.exceptions import ClientError

from tests.fakes.model_files import tflite
from tests.test_integration.faulty_sites import MIB, dataset
from tests.test_integration.gateways import (
    RunningGateway,
    S3Site,
    free_port,
    get_token,
    start,
)
from vision_o3.content.dag import cid_of_bytes

BOUNDARY = "vision-o3-test"
TIMEOUT_S = 60
GIVE_UP_S = 120
"""Seconds after which a request that nobody answers is a failure of the product."""
LINES = [("models", f"m{number}") for number in range(12)] + [
    ("datasets", f"d{number}") for number in range(6)
]
SETTINGS = {
    "VISION_O3_LEASE_S": "4",
    "VISION_O3_S3_TIMEOUT_S": "3",
    "VISION_O3_SWEEP_INTERVAL_S": "1",
    "VISION_O3_CLAIM_WAIT_S": "20",
    "VISION_O3_TOKEN_TTL_S": str(30 * 86_400),
    "VISION_O3_LOG_LEVEL": "WARNING",
}
_AWAY = (OSError, http.client.HTTPException)
"""What a client sees of a gateway that was killed."""


@dataclass(frozen=True, order=True)
class Spec:
    """Content that can be made again: its kind, seed and size."""

    collection: str
    seed: int
    size: int


@functools.lru_cache(maxsize=256)
def content_of(spec: Spec) -> bytes:
    make = tflite if spec.collection == "models" else dataset
    return make(spec.seed, spec.size)


@dataclass(frozen=True)
class Named:
    """A content's names, which are found out once."""

    cid: str
    sha256: bytes


@functools.cache
def names_of(spec: Spec) -> Named:
    content = content_of(spec)
    return Named(str(cid_of_bytes(content)), hashlib.sha256(content).digest())


@dataclass
class Figures:
    """What a campaign counted."""

    kills: int = 0
    uploads: int = 0
    """Answered 201."""
    uploads_in_parts: int = 0
    equal: int = 0
    """Uploads answered with the version that had the content already."""
    downloads: int = 0
    ranges: int = 0
    questions: int = 0
    """Requests for metadata."""
    repeated: int = 0
    """Requests that were sent again as their gateway was gone, or busy."""
    lost: int = 0
    """Versions that were answered and are not there, or not as answered."""
    wrong: int = 0
    """Downloads of other bytes than were uploaded."""
    versions: int = 0
    """Visible at the end."""
    verified_bytes: int = 0
    """Read and hashed at the end."""
    strays: int = 0
    """Objects that no version names, after the last sweep."""
    killing_s: float = 0.0
    """From the first kill to the last gateway's return."""
    seconds: float = 0.0


@dataclass
class Answer:
    status: int
    document: Any
    body: bytes


@dataclass
class Campaign:
    """The gateways, the clients and their notes.

    Attributes:
        problems: What must not be, in words; empty if all is well.
    """

    site: S3Site
    database_url: str
    start: Callable[[S3Site, int], RunningGateway] = start
    clients: int = 4
    seed: int = 20261125
    figures: Figures = field(default_factory=Figures)
    problems: list[str] = field(default_factory=list)
    gateways: list[RunningGateway | None] = field(default_factory=lambda: [None, None])

    def __post_init__(self) -> None:
        self._ports = [free_port(), free_port()]
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._token = ""
        self._seeds = itertools.count(1)
        self._answered: dict[tuple[str, str], dict[int, str]] = {
            line: {} for line in LINES
        }
        self._sent: dict[tuple[str, str], dict[str, Spec]] = {
            line: {} for line in LINES
        }
        self._counts: Counter[str] = Counter()

    # --------------------------------------------------------------------- the course

    def run(self, kills: int) -> Figures:
        """Kill that many times under load, then check all there is."""
        began = time.monotonic()
        try:
            for slot in (0, 1):
                self.gateways[slot] = self.start(self.site, self._ports[slot])
            self._sign_in()
            with ThreadPoolExecutor(self.clients) as pool:
                clients = [
                    pool.submit(self._client, random.Random(self.seed + number))
                    for number in range(self.clients)
                ]
                try:
                    self._kill_again_and_again(kills)
                finally:
                    self._stop.set()
                for client in clients:
                    client.result()
            self.check_what_is_visible()
            self._check_all_bytes()
            self._check_bucket()
        finally:
            for gateway in self.gateways:
                if gateway is not None:
                    gateway.kill()
        for name, count in self._counts.items():
            setattr(self.figures, name, count)
        self.figures.seconds = round(time.monotonic() - began, 1)
        return self.figures

    def _sign_in(self) -> None:
        scopes = ["model:read", "model:write", "dataset:read", "dataset:write"]
        credentials = self.site.add_user("ann", *scopes)
        self._token = get_token(self._url(0), credentials)

    def _kill_again_and_again(self, kills: int) -> None:
        chance = random.Random(self.seed)
        began = time.monotonic()
        for number in range(1, kills + 1):
            # At any moment of what is going on; both are ready here.
            time.sleep(chance.uniform(0, 0.5))
            slot = chance.randrange(2)
            gateway = self.gateways[slot]
            if gateway is None:
                raise RuntimeError("A gateway is not there.")
            gateway.kill()
            self.gateways[slot] = self.start(self.site, self._ports[slot])
            if number % 50 == 0:
                self.check_what_is_visible()
            self.figures.kills = number
            self.figures.killing_s = round(time.monotonic() - began, 1)
            if self.problems:
                return

    def _url(self, slot: int) -> str:
        return f"http://127.0.0.1:{self._ports[slot]}"

    # -------------------------------------------------------------------- the clients

    def _client(self, chance: random.Random) -> None:
        while not self._stop.is_set():
            todo = chance.choices(
                (self._upload, self._download, self._range, self._ask_about),
                weights=(4, 2, 3, 3),
            )[0]
            try:
                todo(chance)
            except Exception as error:  # noqa: BLE001 - it is written down, and fails the run
                self._problem(f"{todo.__name__}: {error!r}")
                return
            time.sleep(chance.uniform(0, 0.03))

    def _upload(self, chance: random.Random) -> None:
        line = chance.choice(LINES)
        spec = self._choose_content(chance, line)
        named = names_of(spec)
        with self._lock:
            self._sent[line][named.cid] = spec
        answer = self._until_answered(
            chance, "POST", f"/{line[0]}", *_form(line[1], spec)
        )
        if answer.status not in (200, 201):
            self._problem(f"upload to {line}: {answer.status} {answer.body[:300]!r}")
            return
        version, cid = answer.document["version"], answer.document["cid"]
        self._count("uploads" if answer.status == 201 else "equal")
        if answer.status == 201 and spec.size > 5 * MIB:
            self._count("uploads_in_parts")
        with self._lock:
            known = self._answered[line].setdefault(version, cid)
        if not cid == known == named.cid:
            self._lost(f"{line} v{version} was answered as {known} and as {cid}")

    def _choose_content(self, chance: random.Random, line: tuple[str, str]) -> Spec:
        """Content that is new, or was sent before, to any line."""
        if chance.random() < 0.25:
            with self._lock:
                known = list(self._sent[chance.choice(LINES)].values())
            known = [spec for spec in known if spec.collection == line[0]]
            if known:
                return chance.choice(known)
        size = chance.choices(
            (chance.randrange(200, 100_000), MIB + 77, 5 * MIB + 4321), (6, 2, 1)
        )[0]
        return Spec(line[0], next(self._seeds), size)

    def _choose_version(
        self, chance: random.Random
    ) -> tuple[tuple[str, str], int, Spec] | None:
        line = chance.choice(LINES)
        with self._lock:
            if not self._answered[line]:
                return None
            version = chance.choice(list(self._answered[line]))
            return line, version, self._sent[line][self._answered[line][version]]

    def _download(self, chance: random.Random) -> None:
        if (chosen := self._choose_version(chance)) is None:
            return
        line, version, spec = chosen
        answer = self._until_answered(chance, "GET", _path(line, version))
        self._count("downloads")
        if answer.status != 200:
            self._lost(f"download of {line} v{version}: {answer.status}")
        elif hashlib.sha256(answer.body).digest() != names_of(spec).sha256:
            self._wrong(f"{line} v{version}")

    def _range(self, chance: random.Random) -> None:
        if (chosen := self._choose_version(chance)) is None:
            return
        line, version, spec = chosen
        content = content_of(spec)
        start_ = chance.randrange(len(content))
        end = min(len(content), start_ + chance.randrange(1, 2 * MIB))
        answer = self._until_answered(
            chance,
            "GET",
            _path(line, version),
            headers={"Range": f"bytes={start_}-{end - 1}"},
        )
        self._count("ranges")
        if answer.status != 206:
            self._lost(f"range of {line} v{version}: {answer.status}")
        elif answer.body != content[start_:end]:
            self._wrong(f"{line} v{version}, {start_} to {end}")

    def _ask_about(self, chance: random.Random) -> None:
        if (chosen := self._choose_version(chance)) is None:
            return
        (collection, name), version, spec = chosen
        path = f"/{collection}/{name}/versions/{version}"
        answer = self._until_answered(chance, "GET", path)
        self._count("questions")
        if answer.status != 200 or answer.document["cid"] != names_of(spec).cid:
            self._lost(f"{path}: {answer.status} {answer.body[:200]!r}")

    # ------------------------------------------------------------------------ the wire

    def _until_answered(
        self,
        chance: random.Random,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send a request to one gateway, then the other, until one answers it."""
        ends = time.monotonic() + GIVE_UP_S
        slot = chance.randrange(2)
        while True:
            seen = "nobody answered"
            with suppress(*_AWAY):
                answer = self._send(slot, method, path, body, headers or {})
                if not _is_temporary(answer):
                    return answer
                seen = f"{answer.status} {answer.body[:300]!r}"
            if time.monotonic() > ends:
                raise RuntimeError(f"{method} {path}: {seen}")
            self._count("repeated")
            slot = 1 - slot
            time.sleep(chance.uniform(0.02, 0.2))

    def _send(
        self, slot: int, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> Answer:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self._ports[slot], timeout=TIMEOUT_S
        )
        with closing(connection):
            connection.request(
                method,
                path,
                body or None,
                {"Authorization": f"Bearer {self._token}", **headers},
            )
            answer = connection.getresponse()
            content = answer.read()
            is_json = "json" in (answer.getheader("Content-Type") or "")
            document = None
            if is_json and not path.endswith("/download"):
                document = json.loads(content)
            return Answer(answer.status, document, content)

    # --------------------------------------------------------------------- the notes

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    def _problem(self, text: str) -> None:
        with self._lock:
            self.problems.append(text)

    def _lost(self, text: str) -> None:
        self._count("lost")
        self._problem(f"lost: {text}")

    def _wrong(self, text: str) -> None:
        self._count("wrong")
        self._problem(f"wrong bytes: {text}")

    # --------------------------------------------------------------------- the checks

    def check_what_is_visible(self) -> None:
        """No hole, nothing answered is missing, and nothing that nobody sent."""
        for line in LINES:
            with self._lock:
                answered = dict(self._answered[line])
            visible = self._visible(line)
            if sorted(visible) != list(range(1, len(visible) + 1)):
                self._problem(f"a hole in {line}: {sorted(visible)}")
            for version, cid in answered.items():
                if visible.get(version) != cid:
                    self._lost(f"{line} v{version} {cid}, now {visible.get(version)}")
            with self._lock:
                unknown = set(visible.values()) - set(self._sent[line])
            if unknown:
                self._problem(f"nobody sent {unknown} to {line}")

    def _visible(self, line: tuple[str, str]) -> dict[int, str]:
        found: dict[int, str] = {}
        chance = random.Random(len(line[1]))
        for page in itertools.count(1):
            path = f"/{line[0]}/{line[1]}/versions?page={page}&page_size=100"
            answer = self._until_answered(chance, "GET", path)
            if answer.status == 404 and page == 1:
                return {}
            items = answer.document["items"]
            # New ones may push some from one page to the next; never out.
            found |= {item["version"]: item["cid"] for item in items}
            if not items or answer.document["total"] <= page * 100:
                return found
        raise RuntimeError("unreachable")

    def _check_all_bytes(self) -> None:
        """Hash every visible version, as a gateway sends it and as it is stored.

        The second is asked for past the gateways, which may have it in their cache.
        """
        stored = self._object_keys()
        for line in LINES:
            for version, cid in sorted(self._visible(line).items()):
                answer = self._until_answered(
                    random.Random(version), "GET", _path(line, version)
                )
                self._count("versions")
                sent = self._sent[line].get(cid)
                if answer.status != 200 or sent is None:
                    self._lost(f"{line} v{version}: {answer.status}")
                    continue
                self._verify(line, version, sent, answer.body)
                content = self._read_stored(stored[*line, version])
                if content is None:
                    self._lost(f"the object of {line} v{version}")
                    continue
                self._verify(line, version, sent, content)

    def _verify(
        self, line: tuple[str, str], version: int, sent: Spec, content: bytes
    ) -> None:
        self._counts["verified_bytes"] += len(content)
        if hashlib.sha256(content).digest() != names_of(sent).sha256:
            self._wrong(f"{line} v{version}")

    def _read_stored(self, key: str) -> bytes | None:
        client = self.site.server.client
        try:
            answer = client.get_object(Bucket=self.site.bucket, Key=f"registry/{key}")
        except ClientError:
            return None
        content: bytes = answer["Body"].read()
        return content

    def _object_keys(self) -> dict[tuple[str, str, int], str]:
        """Return where artifacts lie, by collection, name and number of the version."""
        found: dict[tuple[str, str, int], str] = {}
        with psycopg.connect(self.database_url) as connection:
            for collection, one in (("models", "model"), ("datasets", "dataset")):
                rows = connection.execute(
                    "SELECT line.name, version, object_key "  # noqa: S608 - the names above
                    f"FROM {one}_versions JOIN {collection} AS line "
                    f"ON line.id = {one}_id WHERE state <> 'storing'"
                )
                for name, version, key in rows:
                    found[collection, name, version] = key
        return found

    def _check_bucket(self) -> None:
        """After the leases ran out and a sweep, there is what versions name."""
        ends = time.monotonic() + GIVE_UP_S
        while True:
            self.site.run("admin", "sweep", "--grace-hours", "0")
            named, claims = self._named()
            stray, missing = self.site.keys() - named, named - self.site.keys()
            if not (stray or missing or claims) or time.monotonic() > ends:
                break
            time.sleep(1)
        self.figures.strays = len(stray)
        if stray:
            self._problem(f"strays after the sweep: {sorted(stray)[:20]}")
        if claims:
            self._problem(f"{claims} claims are left")
        for key in sorted(missing)[:20]:
            self._lost(f"the object {key}")

    def _named(self) -> tuple[set[str], int]:
        """Return the keys that versions name, and how many claims there are."""
        named: set[str] = set()
        claims = 0
        with psycopg.connect(self.database_url) as connection:
            for table, columns in (
                ("model_versions", "object_key, sidecar_key, record_key"),
                (
                    "dataset_versions",
                    "object_key, sidecar_key, record_key, manifest_key, index_key",
                ),
            ):
                rows = connection.execute(f"SELECT state, {columns} FROM {table}")  # noqa: S608 - the names above
                for state, *keys in rows:
                    if state == "storing":
                        claims += 1
                    else:
                        named |= {key for key in keys if key}
        return named, claims


def _is_temporary(answer: Answer) -> bool:
    """Say whether the answer tells to come again."""
    if answer.status in (503, 504):
        return True
    code = (answer.document or {}).get("code") if answer.document else None
    return answer.status == 409 and code == "upload_in_progress"


def _path(line: tuple[str, str], version: int) -> str:
    return f"/{line[0]}/{line[1]}/versions/{version}/download"


def _form(name: str, spec: Spec) -> tuple[bytes, dict[str, str]]:
    filename = "m.tflite" if spec.collection == "models" else "d.zip"
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="name"\r\n\r\n{name}\r\n'
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; '
        f'filename="{filename}"\r\n\r\n'
    ).encode()
    body = head + content_of(spec) + f"\r\n--{BOUNDARY}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def as_table(figures: Figures) -> str:
    """Return the figures as rows of a Markdown table."""
    rows = [
        f"| {name.replace('_', ' ')} | {n:,} |" for name, n in asdict(figures).items()
    ]
    return "\n".join(["| | |", "|---|--:|", *rows])
