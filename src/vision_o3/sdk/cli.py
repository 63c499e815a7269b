"""The command line of a device or a publisher; standard library only.

Exit codes:

==== ==========================================================
0    done
1    another error
2    wrong usage or settings
3    the input is wrong
4    not signed in, or not permitted
5    not found
6    another writer was first
7    bytes are not what the CID names
8    storage or cache
9    the network, or the gateway is not available
130  stopped by Ctrl-C
==== ==========================================================
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

from vision_o3 import __version__
from vision_o3.content.cid import CID
from vision_o3.errors import (
    AuthError,
    CacheError,
    ConfigurationError,
    ConflictError,
    DatabaseUnavailableError,
    GatewayBusyError,
    InputError,
    IntegrityError,
    NotFoundError,
    StorageError,
    TransportError,
    UnauthenticatedError,
    VisionO3Error,
)
from vision_o3.sdk.artifact_commands import MODELS, Commands, add_artifact_commands
from vision_o3.sdk.artifact_commands import Work as ClientWork
from vision_o3.sdk.cache import Cache, replace_text
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.dataset_commands import add_dataset_commands
from vision_o3.sdk.output import Shown, printable, printed, table
from vision_o3.sdk.progress import ProgressLine, in_units
from vision_o3.sdk.verifier import CIDVerifier

EXIT_CODES = (
    (ConfigurationError, 2),
    (InputError, 3),
    (AuthError, 4),
    (NotFoundError, 5),
    (ConflictError, 6),
    (IntegrityError, 7),
    (StorageError, 8),
    (CacheError, 8),
    (TransportError, 9),
    (DatabaseUnavailableError, 9),
    (GatewayBusyError, 9),
)
"""The only table of exit codes; any other error of ours is 1."""
INTERRUPTED = 130
"""As shells say it: 128 + SIGINT."""
DEFAULT_CACHE = "~/.vision-o3"

Parser = argparse.ArgumentParser
Work = Callable[[argparse.Namespace], Shown]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command of the edge side; return its exit code."""
    parser, _ = build_parser()
    return run(parser, argv)


def build_parser() -> Tuple[Parser, Commands]:
    """Return the parser with the edge's commands, and where more can be added.

    A command's parser sets ``work``: a function of the arguments that returns an exit
    code, or ``None`` for success.
    """
    parser = Parser(
        prog="vision-o3",
        description="Publish computer-vision models and datasets; fetch them "
        "verified, byte by byte.",
        epilog="The gateway and who you are come from 'vision-o3 login', or from the "
        "environment: VISION_O3_URL, and VISION_O3_TOKEN or VISION_O3_CLIENT_ID with "
        f"VISION_O3_CLIENT_SECRET. VISION_O3_CACHE ({DEFAULT_CACHE}) is where files "
        "are kept. Exit codes: 0 done, 1 other, 2 usage or settings, 3 input, "
        "4 sign-in or permission, 5 not found, 6 conflict, 7 integrity, 8 storage, "
        "9 network.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_edge_commands(commands)
    return parser, commands


def add_edge_commands(commands: Commands) -> None:
    """Add the commands of a device or publisher."""
    login = _add(commands, "login", _login, "sign in to a gateway, for a while")
    login.description = (
        "Sign in to a gateway. Asks for client id and secret unless "
        "VISION_O3_CLIENT_ID and VISION_O3_CLIENT_SECRET are set. The secret is not "
        "kept: a file that only you may read gets the token, which ends by itself. "
        "Devices set the two variables instead, and never need to sign in."
    )
    login.add_argument("url", metavar="URL", help="as https://models.example.com")
    add_artifact_commands(commands, _add_with_client, MODELS)
    add_dataset_commands(commands, _add_with_client)

    verify = _add(commands, "verify", _verify, "check a file against a CID")
    verify.add_argument("path", metavar="PATH", type=Path)
    verify.add_argument("cid", metavar="CID")

    cache = commands.add_parser("cache", help="look at the local cache, or clear it")
    actions = cache.add_subparsers(metavar="ACTION", required=True)
    _add(actions, "ls", _cache_ls, "list what is cached, least recently used first")
    _add(actions, "size", _cache_size, "print the bytes that are cached")
    _add(actions, "path", _cache_path, "print where the cache is")
    _add(actions, "clear", _cache_clear, "remove all files from the cache")


def run(parser: Parser, argv: Optional[Sequence[str]] = None) -> int:
    """Run the command that the arguments name; return its exit code.

    An error becomes one line on standard error, with its code in brackets.
    """
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stopped:  # wrong usage, or --help
        return stopped.code if isinstance(stopped.code, int) else 1
    try:
        code = arguments.work(arguments) or 0
        sys.stdout.flush()  # a closed pipe shows here, not when Python ends
    except VisionO3Error as error:
        print(printable(f"vision-o3: {error} [{error.code}]"), file=sys.stderr)
        code = exit_code(error)
    except BrokenPipeError:  # such as "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"vision-o3: {where}{error.strerror or error}", file=sys.stderr)
        code = 1
    except (KeyboardInterrupt, EOFError):
        print("vision-o3: stopped", file=sys.stderr)
        code = INTERRUPTED
    return int(code)


def exit_code(error: VisionO3Error) -> int:
    """Return the exit code of an error."""
    return next((code for cls, code in EXIT_CODES if isinstance(error, cls)), 1)


def _add(commands: Commands, name: str, work: Work, summary: str) -> Parser:
    """Add a command that shows what its work returns."""

    def run_and_show(arguments: argparse.Namespace) -> int:
        shown = work(arguments)
        for line in printed(shown, as_json=arguments.json):
            print(line)
        return shown.code

    description = summary[0].upper() + summary[1:] + "."
    parser: Parser = commands.add_parser(name, help=summary, description=description)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(work=run_and_show)
    return parser


def _add_with_client(
    commands: Commands, name: str, work: ClientWork, summary: str
) -> Parser:
    """Add a command whose work needs a client."""

    def run_with_client(arguments: argparse.Namespace) -> Shown:
        with _client(arguments) as client:
            return work(arguments, client)

    return _add(commands, name, run_with_client, summary)


# Commands


def _login(arguments: argparse.Namespace) -> Shown:
    client_id = os.environ.get("VISION_O3_CLIENT_ID")
    secret = os.environ.get("VISION_O3_CLIENT_SECRET")
    if not client_id or not secret:
        import getpass  # noqa: PLC0415 - only here

        client_id = client_id or input("Client id: ")
        secret = getpass.getpass("Secret: ")
    with VisionO3Client(arguments.url, credentials=(client_id, secret)) as client:
        signed_in = client.sign_in()
    ends_at = time.time() + signed_in.expires_in_s
    login = {"url": arguments.url, "token": signed_in.token, "ends_at": ends_at}
    path = _login_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(login), mode=0o600)
    until = datetime.fromtimestamp(ends_at, timezone.utc)
    document = {
        "url": arguments.url,
        "client_id": client_id,
        "scope": signed_in.scope,
        "until": until.isoformat(timespec="seconds"),
        "file": str(path),
    }
    who = f"Signed in to {arguments.url} as {client_id} until {until:%H:%M} UTC"
    where = f"The token, not the secret, is kept in {path}."
    return Shown(document, [f"{who}; may {signed_in.scope}.", where])


def _verify(arguments: argparse.Namespace) -> Shown:
    expected = str(CID.parse(arguments.cid))
    actual = CIDVerifier.compute_cid(arguments.path)
    right = actual == expected
    document = {"verified": right, "expected": expected, "actual": actual}
    text = f"{arguments.path} is {'what' if right else 'NOT what'} {expected} names."
    return Shown(document, [text], 0 if right else exit_code(IntegrityError("")))


def _cache_ls(_: argparse.Namespace) -> Shown:
    rows = [("SIZE", "PATH")]
    documents = []
    for entry in _cache().entries():
        paths = [str(path) for path in entry.files]
        rows += [(in_units(entry.size), path) for path in paths]
        documents.append({"cid": entry.cid, "size": entry.size, "paths": paths})
    return Shown(documents, table(rows))


def _cache_size(_: argparse.Namespace) -> Shown:
    size = _cache().size()
    return Shown({"size": size}, [str(size)])


def _cache_path(_: argparse.Namespace) -> Shown:
    path = str(_cache().directory)
    return Shown({"path": path}, [path])


def _cache_clear(_: argparse.Namespace) -> Shown:
    cache = _cache()
    size = cache.size()
    cache.clear()
    return Shown({"removed": size}, [f"Removed {in_units(size)}."])


# Where the gateway is and who asks


def _client(arguments: argparse.Namespace) -> VisionO3Client:
    """Return a client from the environment, completed by what login kept."""
    environment = os.environ
    token: Optional[str] = environment.get("VISION_O3_TOKEN") or None
    client_id = environment.get("VISION_O3_CLIENT_ID")
    secret = environment.get("VISION_O3_CLIENT_SECRET")
    credentials = None
    if token is None and (client_id or secret):
        if not client_id or not secret:
            raise ConfigurationError(
                "Set both VISION_O3_CLIENT_ID and VISION_O3_CLIENT_SECRET, or neither."
            )
        credentials = (client_id, secret)
    login = _kept_login()
    url = environment.get("VISION_O3_URL") or login.get("url")
    if not url:
        raise ConfigurationError(
            "No gateway is named. Run 'vision-o3 login URL', or set VISION_O3_URL."
        )
    if token is None and credentials is None and url == login.get("url"):
        token = login.get("token")
        if token is not None and login.get("ends_at", 0) < time.time():
            raise UnauthenticatedError(
                f"The sign-in has ended. Run 'vision-o3 login {url}' again."
            )
    quiet = arguments.json or not sys.stderr.isatty()
    progress = None if quiet else ProgressLine(sys.stderr)
    return VisionO3Client(
        url, token, _cache_directory(), credentials=credentials, progress=progress
    )


def _cache_directory() -> str:
    return os.environ.get("VISION_O3_CACHE") or DEFAULT_CACHE


def _cache() -> Cache:
    return Cache(_cache_directory())


def _login_path() -> Path:
    return Path(_cache_directory()).expanduser() / "login.json"


def _kept_login() -> Dict[str, Any]:
    try:
        kept = json.loads(_login_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
