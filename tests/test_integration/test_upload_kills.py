"""`kill -9` of gateway and publisher, in turn, at random moments of one upload.

Four kills in the suite; VISION_O3_TEST_KILLS=100 for the full run, of 200 MiB.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.fakes.model_files import tflite
from tests.test_integration.counting_transport import CountingTransport
from tests.test_integration.gateways import RunningGateway, Site, start
from vision_o3.content.dag import cid_of_bytes
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.retry import RetryPolicy
from vision_o3.sdk.upload import PART_SIZE

pytestmark = pytest.mark.integration

KILLS = int(os.environ.get("VISION_O3_TEST_KILLS", "4"))
SIZE = (200 << 20) + 7 if KILLS >= 50 else (40 << 20) + 7
REPOSITORY = Path(__file__).parents[2]
PATIENT = RetryPolicy(attempts=1000, total_s=120, base_s=0.05, longest_s=0.2)
DYING = """
import os, signal, sys
from tests.test_integration.counting_transport import CountingTransport
from vision_o3 import VisionO3Client

url, client_id, secret, path, last = sys.argv[1:]

def die(sent):
    if sent >= int(last):
        os.write(1, str(sent).encode())
        os.kill(os.getpid(), signal.SIGKILL)

transport = CountingTransport(die)
with VisionO3Client(url, credentials=(client_id, secret), transport=transport) as own:
    own.upload_model(path, "m")
os.write(1, str(transport.sent).encode())
"""


class Campaign:
    """One upload, and those who are killed while it goes on."""

    def __init__(self, site: Site, path: Path) -> None:
        self.chance = random.Random(20261125)
        self.path = path
        self.site = site
        self.gateway: RunningGateway = start(site)
        self.credentials = site.add_user("ann", "model:read", "model:write")
        self.kills = 0
        self.sent = 0

    def publisher_dies(self, after: int) -> None:
        """Upload in a process that is killed after so many bytes."""
        arguments = [self.gateway.url, *self.credentials, str(self.path), str(after)]
        child = subprocess.run(
            [sys.executable, "-c", DYING, *arguments],
            cwd=REPOSITORY,
            capture_output=True,
            check=False,
            timeout=120,
        )
        assert child.stdout, child.stderr.decode()
        self.sent += int(child.stdout)
        if child.returncode:
            assert child.returncode == -9, child.stderr.decode()
            self.kills += 1

    def gateway_dies(self, after: int, *, finish: bool) -> None:
        """Upload while the gateway is killed after so many bytes, and started again.

        Unless the upload is to be finished, the publisher leaves when that is done. If
        it is, the gateway is killed while it publishes, too.
        """
        killed = False
        forms = 0
        killers: list[threading.Thread] = []

        def sent(count: int) -> None:
            nonlocal killed
            if not killed and count >= after:
                killed = True
                self.restart()
                if not finish:
                    raise KeyboardInterrupt

        def form() -> None:
            nonlocal forms
            forms += 1
            if finish and forms == 2:  # the first one asks
                moment_s = self.chance.uniform(0, 0.4)
                killers.append(threading.Timer(moment_s, self.restart))
                killers[0].start()

        transport = CountingTransport(sent, form)
        with VisionO3Client(
            self.gateway.url,
            credentials=self.credentials,
            transport=transport,
            retries=PATIENT,
        ) as client:
            try:
                client.upload_model(self.path, "m")
            except KeyboardInterrupt:
                assert not finish
        for killer in killers:
            killer.join()
        self.sent += transport.sent

    def restart(self) -> None:
        self.gateway.kill()
        self.gateway = start(self.site, self.gateway.port)
        self.kills += 1


def test_kill_either_side_at_any_moment_of_an_upload(tmp_path: Path) -> None:
    content = tflite(1, SIZE)
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    site = Site(
        tmp_path,
        f"sqlite:///{tmp_path}/registry.db",
        {"VISION_O3_LEASE_S": "1", "VISION_O3_SWEEP_INTERVAL_S": "0.2"},
    )
    campaign = Campaign(site, path)
    try:
        # Each gets so far that all of them together do not get to the end.
        for kill in range(KILLS - 1):
            after = round(campaign.chance.uniform(0, SIZE / KILLS))
            if kill % 2:
                campaign.publisher_dies(after)
            else:
                campaign.gateway_dies(after, finish=False)
        assert campaign.kills == KILLS - 1
        campaign.gateway_dies(SIZE, finish=True)
        sent_again = campaign.sent - SIZE
        print(f"{campaign.kills} kills, {sent_again} bytes sent again")  # noqa: T201 - the figure
        assert 0 <= sent_again <= 2 * PART_SIZE * campaign.kills
        with VisionO3Client(
            campaign.gateway.url,
            credentials=campaign.credentials,
            cache_dir=tmp_path / "cache",
        ) as client:
            info = client.get_model_info("m")
            assert (info.version, info.cid) == (1, str(cid_of_bytes(content)))
            assert client.download_model("m").read_bytes() == content
        spool = tmp_path / "spool"
        assert not [found for found in spool.rglob("*") if found.name == "data"]
    finally:
        campaign.gateway.kill()
