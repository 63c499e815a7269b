"""`kill -9` of one of two gateways on PostgreSQL and S3, under mixed load.

A few kills in the suite; VISION_O3_TEST_KILLS=50 for more, and
benchmarks/kill_campaign.py for a thousand.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fakes.s3_servers import running
from tests.test_integration.gateways import S3Site, postgres_database
from tests.test_integration.killing import SETTINGS, Campaign
from tests.test_integration.nursery import Nursery

pytestmark = pytest.mark.integration

KILLS = int(os.environ.get("VISION_O3_TEST_KILLS", "5"))


def test_kill_one_of_two_gateways(tmp_path: Path) -> None:
    with (
        running("localbucket") as server,
        postgres_database() as url,
        Nursery() as nursery,
    ):
        site = S3Site(
            tmp_path, url, SETTINGS, server=server, bucket=server.make_bucket()
        )
        campaign = Campaign(site, url, nursery.start, clients=3)
        figures = campaign.run(KILLS)
        assert not campaign.problems, "\n".join(campaign.problems)
        assert not figures.lost
        assert not figures.wrong
        assert not figures.strays
        # It was load, and all of its kinds.
        assert figures.uploads >= KILLS
        assert figures.versions >= figures.uploads
        assert figures.downloads + figures.ranges
