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

_COMMANDS = "vision_o3.gateway.commands"


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
    add.add_argument("--json", action="store_true", help="print JSON")
    _runs(add, "add_user")
    listing = commands.add_parser("list", help="list the users")
    listing.add_argument("--json", action="store_true", help="print JSON")
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


def _runs(parser: ArgumentParser, command: str) -> None:
    parser.set_defaults(work=_lazily(command))


def _lazily(command: str) -> Callable[[Namespace], int]:
    """Return a function that loads the gateway's libraries only when it is called."""

    def work(arguments: Namespace) -> int:
        try:
            commands = importlib.import_module(_COMMANDS)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"This command needs the gateway's libraries ({error.name} is not "
                "installed): pip install 'vision-o3[gateway]'",
            ) from error
        result: int = getattr(commands, command)(arguments)
        return result

    return work
