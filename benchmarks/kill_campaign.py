"""Kill one of two gateways again and again under mixed load; nothing may be lost.

    python benchmarks/kill_campaign.py --kills 1000 --server localbucket

Needs PostgreSQL (VISION_O3_TEST_POSTGRES_URL, a server where databases may be made) and
the S3 server named, as the tests do. Ends with 1, and says what is wrong, if a version
that was answered is not there, if bytes are other than were uploaded, if a number is
left out, if something is visible that nobody uploaded, or if objects are left over.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import harness

sys.path.insert(0, str(harness.REPOSITORY))

from tests.fakes.s3_servers import SERVERS, running
from tests.test_integration.gateways import S3Site, postgres_database
from tests.test_integration.killing import SETTINGS, Campaign, as_table
from tests.test_integration.nursery import Nursery


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=20261125)
    parser.add_argument("--server", choices=sorted(SERVERS), default="localbucket")
    options = parser.parse_args()
    harness.describe_machine()
    with (
        tempfile.TemporaryDirectory() as home,
        running(options.server) as server,
        postgres_database() as url,
        Nursery() as nursery,
    ):
        bucket = server.make_bucket()
        site = S3Site(Path(home), url, SETTINGS, server=server, bucket=bucket)
        campaign = Campaign(site, url, nursery.start, options.clients, options.seed)
        figures = campaign.run(options.kills)
    print(f"\n### kill -9 of one of two gateways ({server.name})\n")
    print(as_table(figures))
    for problem in campaign.problems:
        print(problem)
    return 1 if campaign.problems else 0


if __name__ == "__main__":
    sys.exit(main())
