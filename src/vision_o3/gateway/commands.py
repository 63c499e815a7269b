"""What the gateway's commands do. Each takes the parsed arguments, returns 0."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

from vision_o3.db import migrate as migrations
from vision_o3.gateway import serving
from vision_o3.gateway.logs import configure_logging, log_to_stderr
from vision_o3.gateway.o3_client import O3Client
from vision_o3.gateway.opening import open_database, open_spool, timing_of
from vision_o3.gateway.redaction import secrets_of
from vision_o3.registry.maintenance import Sweeper
from vision_o3.registry.partial_uploads import PartialUploads
from vision_o3.registry.rebuilding import require_index
from vision_o3.settings import load_settings

if TYPE_CHECKING:
    from argparse import Namespace


def serve(arguments: Namespace) -> int:
    """Run the gateway until it is told to stop."""
    settings = load_settings()
    if arguments.migrate:
        migrations.migrate(settings.database_url.get_secret_value())
    # Here, not only in each process: said in a sentence, before anything starts.
    with open_database(settings) as database, O3Client.open(settings) as client:
        require_index(database, client.store)
    configure_logging(settings.log_level, secrets_of(settings))
    serving.run(
        settings,
        arguments.host,
        arguments.port,
        workers=arguments.workers or settings.workers,
    )
    return 0


def migrate(arguments: Namespace) -> int:
    """Bring the database to this version's schema."""
    migrations.migrate(load_settings().database_url.get_secret_value())
    if arguments.json:
        print(json.dumps({"up_to_date": True}))
    else:
        print("The database is up to date.")
    return 0


def sweep(arguments: Namespace) -> int:
    """Remove what died uploads left behind; print what was removed."""
    log_to_stderr()
    settings = load_settings()
    with (
        open_database(settings) as database,
        O3Client.open(settings) as client,
        open_spool(settings) as spool,
    ):
        partial = PartialUploads(spool, expires_s=settings.upload_expires_s)
        timing = timing_of(settings)
        sweeper = Sweeper(database, client.store, spool, timing, partial)
        swept = sweeper.sweep()
        strays = sweeper.sweep_strays(grace=timedelta(hours=arguments.grace_hours))
    if arguments.json:
        print(json.dumps({"expired": asdict(swept), "unnamed": asdict(strays)}))
        return 0
    print(
        f"Removed: {swept.claims} expired claims, {swept.spool_files} spool files, "
        f"{swept.partial_uploads} expired uploads, "
        f"{strays.objects} objects without a version, {strays.unfinished} unfinished "
        f"ones. Failures: {swept.failures}."
    )
    return 0
