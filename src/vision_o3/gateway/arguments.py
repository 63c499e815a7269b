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
    user = subparsers.add_parser(
        "user", help="manage the gateway's users and their secrets"
    )
    commands = user.add_subparsers(metavar="COMMAND", required=True)
    add = commands.add_parser(
        "add",
        help="add a user; prints the secret, once",
        description="Add a person, a device or a program. Prints the secret, once.",
    )
    add.add_argument("name", metavar="NAME")
    _add_grants(add, [])
    _add_secret_arguments(add, needed=False)
    _runs(add, "add_user", "admin_users")
    listing = commands.add_parser("list", help="list the users")
    _runs(listing, "list_users", "admin_users")
    change = commands.add_parser(
        "change",
        help="change what a user may do",
        description="Replace the roles, the permissions or the quotas of a user; what "
        "is left out stays. 'none' takes all away.",
    )
    change.add_argument("name", metavar="NAME")
    _add_grants(change, None)
    _runs(change, "change_user", "admin_users")
    for command, work, text in (
        ("show", "show_user", "show a user and their secrets"),
        ("disable", "disable_user", "let a user in no more, nor their tokens"),
        ("enable", "enable_user", "let a user in again"),
        ("end-tokens", "end_tokens", "end all tokens that a user has now"),
    ):
        parser = commands.add_parser(command, help=text)
        parser.add_argument("name", metavar="NAME")
        _runs(parser, work, "admin_users")
    add_secret = commands.add_parser(
        "add-secret",
        help="add a secret beside the others; prints it, once",
        description="Add a secret beside those that the user has, so that one can be "
        "replaced without a gap. Prints it, once.",
    )
    add_secret.add_argument("name", metavar="NAME")
    _add_secret_arguments(add_secret, needed=True)
    _runs(add_secret, "add_secret", "admin_users")
    remove_secret = commands.add_parser(
        "remove-secret", help="remove a secret; tokens given for it end"
    )
    remove_secret.add_argument("name", metavar="NAME")
    remove_secret.add_argument("id", metavar="ID", help="as 'user show' lists it")
    _runs(remove_secret, "remove_secret", "admin_users")


def _add_grants(parser: ArgumentParser, absent: list[str] | None) -> None:
    parser.add_argument(
        "--role",
        action="append",
        default=absent,
        metavar="ROLE",
        help="reader, publisher, device or admin; repeat for more",
    )
    parser.add_argument(
        "--scope",
        action="append",
        default=absent,
        metavar="SCOPE",
        help="a permission beside the roles', such as model:read, or for one name, "
        "model:read:yolov11-nano; repeat for more",
    )
    parser.add_argument(
        "--max-versions",
        type=int,
        metavar="N",
        help="versions the user may publish (0: any number); default: the settings'",
    )
    parser.add_argument(
        "--max-bytes",
        type=int,
        metavar="N",
        help="bytes the user may publish (0: any number); default: the settings'",
    )


def _add_secret_arguments(parser: ArgumentParser, *, needed: bool) -> None:
    parser.add_argument(
        "--label",
        required=needed,
        metavar="TEXT",
        help="says which secret this is, such as where it is kept",
    )
    parser.add_argument(
        "--expires-days",
        type=float,
        metavar="DAYS",
        help="how long the secret lasts; default: until it is removed",
    )


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
    doctor = commands.add_parser(
        "doctor",
        help="look at all that a gateway needs",
        description="Look at settings, keys, disks, store, database, clocks, users "
        "and the audit trail, and say of each in a line whether it is as it should be "
        "and what to do if not. Ends with 1 if the gateway would not run well.",
    )
    _runs(doctor, "doctor", "admin_doctor")
    _add_store_commands(commands)
    _add_index_commands(commands)
    _add_withdrawal_commands(commands)
    _add_audit_commands(commands)


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
        "their secrets), revoked tokens and the audit trail, to a new file that only "
        "you can read.",
    )
    backup.add_argument("file", metavar="FILE")
    _runs(backup, "backup", "admin_index")
    restore = commands.add_parser(
        "restore",
        help="read users and audit trail from such a file",
        description="Add the users, revoked tokens and audit events of a backup that "
        "the database lacks. What is there is not changed. May be broken off and run "
        "again.",
    )
    restore.add_argument("file", metavar="FILE")
    _runs(restore, "restore", "admin_index")


def _add_withdrawal_commands(commands: Any) -> None:  # noqa: ANN401 - as above
    deprecate = commands.add_parser(
        "deprecate",
        help="say that a version should not be used any more",
        description="Say of a version that another one should be used. It is served as "
        "before, and clients warn.",
    )
    _add_version_arguments(deprecate, by_cid=False)
    _add_reason(deprecate)
    _runs(deprecate, "deprecate", "admin_withdrawals")
    block = commands.add_parser(
        "block",
        help="stop a bad version",
        description="Block a version: it is not the latest any more, in no list, and "
        "its bytes are handed out only to who asks for them all the same. With --cid, "
        "all versions of that content. Only an admin can lift it.",
    )
    _add_version_arguments(block, by_cid=True)
    _add_reason(block)
    _runs(block, "block", "admin_withdrawals")
    unblock = commands.add_parser(
        "unblock",
        help="let a version be used again",
        description="Lift a block or a deprecation. With --cid, those of all versions "
        "of that content.",
    )
    _add_version_arguments(unblock, by_cid=True)
    unblock.add_argument(
        "--reason", metavar="TEXT", help="one line, for the audit trail"
    )
    _runs(unblock, "unblock", "admin_withdrawals")
    purge = commands.add_parser(
        "purge",
        help="delete a version's bytes for good, as the law may demand",
        description="Delete the bytes of a version from the store, from "
        "VISION_O3_SECOND_STORE, and from the gateways' caches, with its description, "
        "tags and facts. All versions of the same content go with it: they share the "
        "bytes. Their numbers stay taken, and are answered with 410. This cannot be "
        "undone; broken off, it is finished by the same command.",
    )
    _add_version_arguments(purge, by_cid=True)
    _add_reason(purge)
    purge.add_argument("--yes", action="store_true", help="do not ask once more")
    _runs(purge, "purge", "admin_withdrawals")


def _add_version_arguments(parser: ArgumentParser, *, by_cid: bool) -> None:
    count = "?" if by_cid else None
    parser.add_argument(
        "line", nargs=count, metavar="COLLECTION/NAME", help="as models/yolov11-nano"
    )
    parser.add_argument("version", nargs=count, metavar="VERSION")
    if by_cid:
        parser.add_argument("--cid", metavar="CID", help="all versions of a content")


def _add_reason(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--reason",
        required=True,
        metavar="TEXT",
        help="one line, shown to all who ask for the version",
    )


def _add_audit_commands(admin: Any) -> None:  # noqa: ANN401 - as above
    audit = admin.add_parser("audit", help="read and verify the audit trail")
    commands = audit.add_subparsers(metavar="COMMAND", required=True)
    verify = commands.add_parser(
        "verify",
        help="find out whether the audit trail was tampered with",
        description="Verify the hash of every event and its link to the event before, "
        "and where the trail ends. Exit status 7 if something is wrong.",
    )
    verify.add_argument(
        "--head",
        action="append",
        default=[],
        metavar="CHAIN:SEQ:HASH",
        help="an end of the trail that was noted earlier, from 'admin audit head' or a "
        "log line 'audit.recorded', which must still be in it; repeat for more",
    )
    _runs(verify, "verify", "admin_audit")
    listing = commands.add_parser("list", help="list events, newest first")
    _add_audit_filters(listing)
    listing.add_argument("--page", type=int, default=1, metavar="N")
    listing.add_argument("--page-size", type=int, default=50, metavar="N")
    _runs(listing, "list_events", "admin_audit")
    export = commands.add_parser(
        "export",
        help="write events to a file, a line of JSON each",
        description="Write events, a line of JSON each, in the order in which the "
        "database got them, to a new file that only you can read.",
    )
    export.add_argument("file", metavar="FILE", help="'-': to the output")
    _add_audit_filters(export)
    _runs(export, "export", "admin_audit")
    head = commands.add_parser(
        "head",
        help="print where the trail ends",
        description="Print where the trail ends now. Keep it elsewhere: 'admin audit "
        "verify --head' then finds out whether what followed was cut off or replaced.",
    )
    _runs(head, "head", "admin_audit")


def _add_audit_filters(parser: ArgumentParser) -> None:
    parser.add_argument("--principal", metavar="NAME", help="who did it")
    parser.add_argument(
        "--action",
        metavar="ACTION",
        help="what was done, such as version.published, or as far as a dot",
    )
    parser.add_argument(
        "--subject",
        metavar="SUBJECT",
        help="to what, such as models/yolov11-nano/v2, or as far as a slash",
    )
    parser.add_argument(
        "--since", metavar="TIME", help="a day (UTC), or a time with its zone"
    )
    parser.add_argument("--until", metavar="TIME", help="likewise; not included")


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
