"""A bad version from the publisher's word to the device, and what outlives a disk."""

from __future__ import annotations

import json
import logging
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fakes.archive_files import zip_file
from tests.fakes.model_files import tflite
from tests.test_integration.gateways import (
    VISION_O3,
    RunningGateway,
    Site,
    postgres_database,
    running,
    start,
)
from vision_o3.errors import VersionBlockedError, VersionPurgedError
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.versions import VersionInfo

pytestmark = pytest.mark.integration

LATER_S = 3600
"""After so long a device asks again what became of a version."""
REFUSED = 5
"""The exit code for what is withdrawn."""


@dataclass
class Collection:
    """What the test does to a line, alike for models and datasets."""

    collection: str
    first: bytes
    second: bytes
    third: bytes
    fourth: bytes
    suffix: str
    words: tuple[str, ...]
    """Of the command line, before ``pull`` and the like."""

    def publish(
        self, client: VisionO3Client, home: Path, content: bytes
    ) -> VersionInfo:
        path = home / f"new.{self.suffix}"
        path.write_bytes(content)
        if self.collection == "models":
            return client.upload_model(path, "m")
        return client.upload_dataset(path, "m")

    def info(self, client: VisionO3Client, number: int | None = None) -> VersionInfo:
        if self.collection == "models":
            return client.get_model_info("m", number)
        return client.get_dataset_info("m", number)

    def fetch(
        self, client: VisionO3Client, number: int | None = None, **more: bool
    ) -> bytes:
        if self.collection == "models":
            return client.download_model("m", number, **more).read_bytes()
        return client.download_dataset("m", number, **more).read_bytes()

    def fetch_cid(self, client: VisionO3Client, cid: str, **more: bool) -> bytes:
        if self.collection == "models":
            return client.download_model_by_cid(cid, **more).read_bytes()
        return client.download_dataset_by_cid(cid, **more).read_bytes()

    def withdraw(self, client: VisionO3Client, what: str, *which: object) -> None:
        noun = self.collection.removesuffix("s")
        getattr(client, f"{what}_{noun}")("m", *which)


MODELS = Collection(
    "models", tflite(1), tflite(2, 3 << 20), tflite(3), tflite(4), "tflite", ()
)
DATASETS = Collection(
    "datasets",
    zip_file("a.txt"),
    zip_file("a.txt", "b.txt"),
    zip_file("c.txt"),
    zip_file("d.txt"),
    "zip",
    ("dataset",),
)


@dataclass
class LaterClock:
    """Real time, but for what a test lets pass."""

    passed_s: float = 0

    def monotonic(self) -> float:
        return time.monotonic() + self.passed_s

    def time(self) -> float:
        return time.time() + self.passed_s

    def sleep(self, seconds: float, /) -> None:
        time.sleep(seconds)


@dataclass
class Parties:
    """A gateway, who publishes there, and a device."""

    site: Site
    gateway: RunningGateway
    publisher: tuple[str, str]
    reader: tuple[str, str]
    clock: LaterClock = field(default_factory=LaterClock)

    def client(self, who: str) -> VisionO3Client:
        return VisionO3Client(
            self.gateway.url,
            cache_dir=self.site.home / who,
            credentials=self.publisher if who == "publisher" else self.reader,
            clock=self.clock,
        )

    def command(self, who: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a person does, from an empty cache."""
        name, secret = self.publisher if who == "publisher" else self.reader
        home = self.site.home / f"command-{time.monotonic_ns()}"
        environment = {
            **self.site.environment,
            "HOME": str(home),
            "VISION_O3_URL": self.gateway.url,
            "VISION_O3_CLIENT_ID": name,
            "VISION_O3_CLIENT_SECRET": secret,
            "VISION_O3_CACHE": str(home / "cache"),
        }
        return subprocess.run(
            [*VISION_O3, *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


@contextmanager
def parties_on(database: str, tmp_path: Path) -> Iterator[Parties]:
    on_sqlite = nullcontext(f"sqlite:///{tmp_path / 'registry.db'}")
    with on_sqlite if database == "sqlite" else postgres_database() as url:
        site = Site(tmp_path, url, {"VISION_O3_CACHE_DIR": str(tmp_path / "hot")})
        with running(site) as (gateway,):
            scopes = ("model:write", "model:read", "dataset:write", "dataset:read")
            yield Parties(
                site,
                gateway,
                site.add_user("ann", *scopes),
                site.add_user("camera", "model:read", "dataset:read"),
            )


@pytest.mark.parametrize(
    ("database", "of"),
    [
        pytest.param("sqlite", MODELS, id="models-sqlite"),
        pytest.param("postgresql", DATASETS, id="datasets-postgresql"),
    ],
)
def test_a_bad_version_is_stopped_everywhere_and_for_good(
    database: str, of: Collection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        parties_on(database, tmp_path) as parties,
        parties.client("publisher") as ann,
        parties.client("device") as camera,
    ):
        good = of.publish(ann, tmp_path, of.first)
        bad = of.publish(ann, tmp_path, of.second)
        assert [good.version, bad.version] == [1, 2]
        assert of.fetch(camera) == of.second

        check_deprecated(parties, of, (ann, camera), caplog)
        check_blocked(parties, of, (ann, camera), bad)
        check_unblocked(parties, of, (ann, camera), bad)
        check_purged(parties, of, (ann, camera), bad)

        # The number stays taken, and the content is not published again.
        with pytest.raises(VersionPurgedError, match=r"A court said so\."):
            of.publish(ann, tmp_path, of.second)
        assert of.publish(ann, tmp_path, of.third).version == 3
        of.withdraw(ann, "block", 1, "Too small.")
        assert of.fetch(camera) == of.third
        before = histories(parties, of)

        rebuild_elsewhere(parties, tmp_path)
        assert histories(parties, of) == before
        with pytest.raises(VersionPurgedError, match=r"A court said so\."):
            of.publish(ann, tmp_path, of.second)
        assert of.publish(ann, tmp_path, of.fourth).version == 4
        verified = parties.site.run("admin", "audit", "verify", "--json")
        assert json.loads(verified.stdout)["whole"] is True


def check_deprecated(
    parties: Parties,
    of: Collection,
    clients: tuple[VisionO3Client, VisionO3Client],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The version is served as before, with a word of warning."""
    ann, camera = clients
    of.withdraw(ann, "deprecate", 2, "Use the next one.")
    with caplog.at_level(logging.WARNING, "vision_o3"):
        assert of.fetch(camera) == of.second
    assert "Version 2 of m is deprecated: Use the next one." in caplog.text
    pulled = parties.command("device", *of.words, "pull", "m@2", "--json")
    assert pulled.returncode == 0
    assert json.loads(pulled.stdout)["withdrawal"]["state"] == "deprecated"
    assert "deprecated: Use the next one." in pulled.stderr


def check_blocked(
    parties: Parties,
    of: Collection,
    clients: tuple[VisionO3Client, VisionO3Client],
    bad: VersionInfo,
) -> None:
    """It is refused by number and CID, but to those who insist; v1 is the latest."""
    ann, camera = clients
    of.withdraw(ann, "block", 2, "It sees ghosts.")
    parties.clock.passed_s += LATER_S
    assert of.info(camera).version == 1
    assert of.fetch(camera) == of.first
    refused: tuple[Callable[[], bytes], ...] = (
        lambda: of.fetch(camera, 2),
        lambda: of.fetch_cid(camera, bad.cid),
    )
    for fetch in refused:
        with pytest.raises(VersionBlockedError, match=r"It sees ghosts\.") as caught:
            fetch()
        assert caught.value.values["reason"] == "It sees ghosts."
    assert of.fetch(camera, 2, allow_blocked=True) == of.second
    assert of.fetch_cid(camera, bad.cid, allow_blocked=True) == of.second
    for which in ("m@2", bad.cid):  # a device that never had it
        pulled = parties.command("device", *of.words, "pull", which)
        assert (pulled.returncode, pulled.stdout) == (REFUSED, "")
        assert "It sees ghosts." in pulled.stderr
        insists = parties.command("device", *of.words, "pull", which, "--allow-blocked")
        assert insists.returncode == 0, insists.stderr
        assert Path(insists.stdout.strip()).read_bytes() == of.second
    pulled = parties.command("device", *of.words, "pull", "m")
    assert Path(pulled.stdout.strip()).read_bytes() == of.first


def check_unblocked(
    parties: Parties,
    of: Collection,
    clients: tuple[VisionO3Client, VisionO3Client],
    bad: VersionInfo,
) -> None:
    """Who may not write cannot lift it; then all is as it was."""
    _, camera = clients
    denied = parties.command("device", *of.words, "unblock", "m", "2")
    assert denied.returncode == 4
    lifted = parties.command("publisher", *of.words, "unblock", "m", "2", "--json")
    assert lifted.returncode == 0, lifted.stderr
    parties.clock.passed_s += LATER_S
    found = of.info(camera)
    assert (found.version, found.withdrawal) == (2, None)
    assert of.fetch(camera) == of.fetch_cid(camera, bad.cid) == of.second


def check_purged(
    parties: Parties,
    of: Collection,
    clients: tuple[VisionO3Client, VisionO3Client],
    bad: VersionInfo,
) -> None:
    """Its bytes are gone from store and cache, and whoever asks is told why."""
    _, camera = clients
    site = parties.site
    purged = json.loads(
        site.run(
            *("admin", "purge", f"{of.collection}/m", "2", "--yes", "--json"),
            *("--reason", "A court said so."),
        ).stdout
    )
    assert [each["version"] for each in purged["versions"]] == [2]
    assert purged["kept"] == []
    stored = site.keys()
    assert {key for key in stored if key.startswith(f"{of.collection}/m/v2.")} == {
        f"{of.collection}/m/v2.record.json",
        *(f"{of.collection}/m/v2.withdrawal-{number}.json" for number in range(1, 5)),
    }
    assert not any(
        of.second[-4096:] in path.read_bytes()
        for folder in (site.objects, site.home / "hot")
        for path in folder.rglob("*")
        if path.is_file()
    )
    parties.clock.passed_s += LATER_S
    assert of.info(camera).version == 1
    gone: tuple[Callable[[], bytes], ...] = (
        lambda: of.fetch(camera, 2, allow_blocked=True),
        lambda: of.fetch_cid(camera, bad.cid, allow_blocked=True),
    )
    for fetch in gone:
        with pytest.raises(VersionPurgedError, match=r"A court said so\."):
            fetch()
    pulled = parties.command("device", *of.words, "pull", "m@2", "--allow-blocked")
    assert (pulled.returncode, pulled.stdout) == (REFUSED, "")
    assert "A court said so." in pulled.stderr


def histories(parties: Parties, of: Collection) -> list[tuple[object, ...]]:
    """Return what the gateway says of all versions, newest first."""
    with parties.client("looking") as client:
        path = f"/{of.collection}/m/versions"
        items = client._session.get_object(path, [])["items"]
    return [tuple(json.dumps(item[name]) for name in sorted(item)) for item in items]


def rebuild_elsewhere(parties: Parties, home: Path) -> None:
    """Lose the database: another one is filled from the bucket and a backup."""
    site, gateway = parties.site, parties.gateway
    backup = str(home / "users.backup")
    site.run("admin", "backup", backup)
    gateway.process.terminate()
    gateway.process.wait(timeout=40)
    site.database_url = f"sqlite:///{home / 'rebuilt.db'}"
    site.run("admin", "migrate")
    site.run("admin", "restore", backup)
    rebuilt = json.loads(site.run("admin", "rebuild-index", "--json").stdout)
    assert rebuilt["added"] == 3
    again = start(site, gateway.port)
    gateway.process = again.process
