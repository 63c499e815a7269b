"""The gateway's commands: their arguments. What they do is in ``commands.py``.

This module is imported on devices too, where the gateway's libraries are absent: it
needs nothing but the standard library, and loads the rest when a command runs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vision_o3.errors import ConfigurationError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable
    from typing import Any

_GATEWAY = "vision_o3.gateway"


def add_commands(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not name the type
    """Add ``serve``, ``user`` and ``admin`` to a parser's commands.

    Each sets ``work``, a function of the parsed arguments.
    """
    serve = subparsers.add_parser(
        "serve",
        help="run the gateway",
        description="Run the gateway. Its settings are environment variables; "
        ".env.example lists them.",
    )
    serve.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    serve.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    serve.add_argument(
        "--workers", type=int, help="processes; default: VISION_O3_WORKERS, or 1"
    )
    serve.add_argument(
        "--migrate", action="store_true", help="first bring the database up to date"
    )
    _runs(serve, "serve")
    _add_user_commands(subparsers)
    _add_admin_commands(subparsers)


def _add_user_commands(subparsers: Any) -> None:  # noqa: ANN401 - as above
    user = subparsers.add_parser("user", help="manage the gateway's users")
    commands = user.add_subparsers(metavar="COMMAND", required=True)
    add = commands.add_parser("add", help="add a user; prints the secret, once")
    add.add_argument("name", metavar="NAME")
    add.add_argument(
        "--scope",
        action="append",
        required=True,
        metavar="SCOPE",
        help="what the user may do, such as model:read or model:write; repeat for more",
    )
    _runs(add, "add_user")
    listing = commands.add_parser("list", help="list the users")
    _runs(listing, "list_users")
    disable = commands.add_parser("disable", help="let a user sign in no more")
    disable.add_argument("name", metavar="NAME")
    _runs(disable, "disable_user")


def _add_admin_commands(subparsers: Any) -> None:  # noqa: ANN401 - as above
    admin = subparsers.add_parser("admin", help="maintain the gateway")
    commands = admin.add_subparsers(metavar="COMMAND", required=True)
    migrate = commands.add_parser("migrate", help="bring the database up to date")
    _runs(migrate, "migrate")
    sweep = commands.add_parser(
        "sweep",
        help="remove what uploads that died left behind",
        description="Remove what uploads that died left behind. The gateway does this "
        "by itself, but for objects that no version names: finding them lists the "
        "whole store.",
    )
    sweep.add_argument(
        "--grace-hours",
        type=float,
        default=24.0,
        help="keep unnamed objects that are younger; default: %(default)s",
    )
    _runs(sweep, "sweep")
    _add_store_commands(commands)
    _add_index_commands(commands)


def _add_store_commands(commands: Any) -> None:  # noqa: ANN401 - as above
    check = commands.add_parser(
        "check-store",
        help="try what the object store can do",
        description="Store, read, list and remove a small object under 'probe/', and "
        "say for each capability whether the store has it, and what to do if not.",
    )
    _runs(check, "check_store", "admin_store")
    scrub = commands.add_parser(
        "scrub",
        help="verify what is stored; repair it from a second store",
        description="Read every object that a version names and verify it against its "
        "CID; report what is missing or wrong.",
    )
    scrub.add_argument(
        "--rate",
        type=float,
        default=50.0,
        metavar="MB",
        help="megabytes read in a second at most; default: %(default)s; 0: no limit",
    )
    scrub.add_argument(
        "--marked",
        action="store_true",
        help="only what a gateway has found to be wrong while it handed it out",
    )
    scrub.add_argument(
        "--repair",
        action="store_true",
        help="replace what is wrong from VISION_O3_SECOND_STORE",
    )
    _runs(scrub, "scrub", "admin_copies")
    mirror = commands.add_parser(
        "mirror",
        help="copy one store to another, verified",
        description="Copy every published version from one store to another, each "
        "verified against its CID on the way. What is there already is left out, so a "
        "copy that was broken off is continued by the same command. SRC and DST are "
        "locations as for VISION_O3_STORE; one that equals VISION_O3_SECOND_STORE is "
        "reached by the settings of that.",
    )
    mirror.add_argument("source", metavar="SRC")
    mirror.add_argument("target", metavar="DST")
    mirror.add_argument(
        "--verify",
        action="store_true",
        help="also read and verify what is at DST already",
    )
    _runs(mirror, "mirror", "admin_copies")


def _add_index_commands(commands: Any) -> None:  # noqa: ANN401 - as above
    rebuild = commands.add_parser(
        "rebuild-index",
        help="fill the database from the records in the store",
        description="Read the record of every version in the store and add those that "
        "the database lacks. May be broken off and run again. Users and the audit "
        "trail are not in the store: see 'admin backup'.",
    )
    _runs(rebuild, "rebuild_index", "admin_index")
    backup = commands.add_parser(
        "backup",
        help="write users and audit trail to a file",
        description="Write what is only in the database, users (with the hashes of "
        "their secrets) and the audit trail, to a new file that only you can read.",
    )
    backup.add_argument("file", metavar="FILE")
    _runs(backup, "backup", "admin_index")
    restore = commands.add_parser(
        "restore",
        help="read users and audit trail from such a file",
        description="Add the users and audit events of a backup that the database "
        "lacks. May be broken off and run again.",
    )
    restore.add_argument("file", metavar="FILE")
    _runs(restore, "restore", "admin_index")


def _runs(parser: ArgumentParser, command: str, module: str = "commands") -> None:
    text = "print JSON" if command != "serve" else "no change: the log is JSON, always"
    parser.add_argument("--json", action="store_true", help=text)
    parser.set_defaults(work=_lazily(command, f"{_GATEWAY}.{module}"))


def _lazily(command: str, module: str) -> Callable[[Namespace], int]:
    """Return a function that loads the gateway's libraries only when it is called."""

    def work(arguments: Namespace) -> int:
        try:
            commands = importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"This command needs the gateway's libraries ({error.name} is not "
                "installed): pip install 'vision-o3[gateway]'",
            ) from error
        result: int = getattr(commands, command)(arguments)
        return result

    return work
