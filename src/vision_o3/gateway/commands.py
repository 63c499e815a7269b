"""What the gateway's commands do. Each takes the parsed arguments, returns 0."""

from __future__ import annotations

import json
import resource
import signal
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
import uvicorn

from vision_o3.db import migrate as migrations
from vision_o3.db import queries
from vision_o3.gateway import auth
from vision_o3.gateway.logs import configure_logging, log_to_stderr
from vision_o3.gateway.o3_client import O3Client
from vision_o3.gateway.opening import open_database, open_spool, timing_of
from vision_o3.registry.maintenance import Sweeper
from vision_o3.registry.partial_uploads import PartialUploads
from vision_o3.registry.rebuilding import require_index
from vision_o3.settings import load_settings

if TYPE_CHECKING:
    from argparse import Namespace


_log = structlog.get_logger(__name__)


def serve(arguments: Namespace) -> int:
    """Run the gateway until it is told to stop."""
    settings = load_settings()
    if arguments.migrate:
        migrations.migrate(settings.database_url.get_secret_value())
    # Here, not only in each process: said in a sentence, before anything starts.
    with open_database(settings) as database, O3Client.open(settings) as client:
        require_index(database, client.store)
    configure_logging(settings.log_level)
    url = f"http://{arguments.host}:{arguments.port}"
    _log.info("gateway.starting", url=url, pages=f"{url}/docs")
    # Each download holds a connection and up to three files.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # What uvicorn sends itself again when all is answered: an orderly end, status 0.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    uvicorn.run(
        "vision_o3.gateway.main:app_from_environment",
        factory=True,
        host=arguments.host,
        port=arguments.port,
        workers=arguments.workers or settings.workers,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.shutdown_timeout_s,
    )
    return 0


def add_user(arguments: Namespace) -> int:
    """Add a user; print the secret, which is not kept."""
    with open_database(load_settings()) as database:
        secret = auth.add_user(database, arguments.name, arguments.scope)
    scopes = sorted(set(arguments.scope))
    if arguments.json:
        print(json.dumps({"user": arguments.name, "scopes": scopes, "secret": secret}))
    else:
        print(f"User {arguments.name!r} was added and may {' '.join(scopes)}.")
        print("The secret, shown only now:")
        print(secret)
    return 0


def list_users(arguments: Namespace) -> int:
    """Print the users: name, permissions, since when, disabled or not."""
    with open_database(load_settings()) as database, database.read() as session:
        users = queries.list_users(session)
    if arguments.json:
        listed = [
            {
                "user": user.id,
                "scopes": user.permissions,
                "created_at": user.created_at.isoformat(timespec="seconds"),
                "disabled": user.disabled_at is not None,
            }
            for user in users
        ]
        print(json.dumps(listed))
        return 0
    for user in users:
        disabled = "" if user.disabled_at is None else "   disabled"
        since = f"{user.created_at:%Y-%m-%d}"
        print(f"{user.id}   {' '.join(user.permissions)}   since {since}{disabled}")
    if not users:
        print("There are no users yet: vision-o3 user add NAME --scope model:read")
    return 0


def disable_user(arguments: Namespace) -> int:
    """Let a user sign in no more."""
    with open_database(load_settings()) as database:
        auth.disable_user(database, arguments.name)
    if arguments.json:
        print(json.dumps({"user": arguments.name, "disabled": True}))
    else:
        print(f"User {arguments.name!r} cannot sign in any more.")
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
