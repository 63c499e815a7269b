"""The command line of a device or a publisher; standard library only."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Callable, Optional, Sequence, Tuple

from vision_o3 import __version__
from vision_o3.content.cid import CID
from vision_o3.errors import (
    AuthError,
    CacheError,
    CancelledError,
    ConfigurationError,
    ConflictError,
    DatabaseUnavailableError,
    GatewayBusyError,
    InputError,
    IntegrityError,
    NotFoundError,
    QuotaExceededError,
    RateLimitedError,
    RequestTimeoutError,
    StorageError,
    TransportError,
    VisionO3Error,
    WithdrawnError,
)
from vision_o3.sdk.artifact_commands import MODELS, Commands, add_artifact_commands
from vision_o3.sdk.artifact_commands import Work as ClientWork
from vision_o3.sdk.cache_commands import add_cache_commands
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.completion import SHELLS, script
from vision_o3.sdk.dataset_commands import add_dataset_commands
from vision_o3.sdk.disk import replace_text
from vision_o3.sdk.environment import (
    DEFAULT_CACHE,
    login_path,
    open_client,
    sign_in_credentials,
)
from vision_o3.sdk.output import Shown, printable, printed
from vision_o3.sdk.progress import ProgressLine
from vision_o3.sdk.verifier import CIDVerifier

EXIT_CODES = (
    (ConfigurationError, 2),
    (InputError, 3),
    (AuthError, 4),
    (QuotaExceededError, 4),
    (NotFoundError, 5),
    (WithdrawnError, 5),
    (ConflictError, 6),
    (IntegrityError, 7),
    (StorageError, 8),
    (CacheError, 8),
    (TransportError, 9),
    (DatabaseUnavailableError, 9),
    (GatewayBusyError, 9),
    (RateLimitedError, 9),
    (RequestTimeoutError, 9),
    (CancelledError, 130),
)
"""The only table of exit codes; any other error of ours is 1."""
INTERRUPTED = 130
"""As shells say it: 128 + SIGINT."""
MEANINGS = {
    0: "done",
    1: "another error",
    2: "wrong usage or settings",
    3: "the input is wrong",
    4: "not signed in, or not permitted",
    5: "not found, or withdrawn",
    6: "another writer was first",
    7: "bytes are not what the CID names, or a record was changed",
    8: "storage or cache",
    9: "the network, or the gateway is not available",
    INTERRUPTED: "stopped by Ctrl-C",
}
"""What the exit codes say, for people."""
_EPILOG = f"""\
environment:
  VISION_O3_URL            the gateway; default: that of 'vision-o3 login'
  VISION_O3_TOKEN          a token, or instead:
  VISION_O3_CLIENT_ID      who you are, with
  VISION_O3_CLIENT_SECRET  your secret; default: what 'vision-o3 login' kept
  VISION_O3_CACHE          where files are kept; default: {DEFAULT_CACHE}
  VISION_O3_MIRRORS        URLs of mirrors, parted by spaces or commas
  VISION_O3_OFFLINE        1: use no network, only what is cached

exit codes:
""" + "\n".join(f"  {code:<5}{meaning}" for code, meaning in MEANINGS.items())

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
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_edge_commands(commands, parser)
    return parser, commands


def add_edge_commands(commands: Commands, parser: Parser) -> None:
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

    completion = _add(
        commands,
        "completion",
        partial(_completion, parser),
        "print what completes this program's words in a shell",
    )
    completion.description = (
        "Print what completes this program's words in a shell. For this session: "
        'eval "$(vision-o3 completion bash)"; zsh likewise; fish: '
        "vision-o3 completion fish | source. Names of models and datasets are not "
        "completed: no network at a TAB."
    )
    completion.add_argument("shell", metavar="SHELL", choices=SHELLS)

    verify = _add(commands, "verify", _verify, "check a file against a CID")
    verify.add_argument("path", metavar="PATH", type=Path)
    verify.add_argument("cid", metavar="CID")

    add_cache_commands(commands, _add, _add_with_client)


def run(parser: Parser, argv: Optional[Sequence[str]] = None) -> int:
    """Run the command that the arguments name; return its exit code.

    An error becomes one line on standard error, with its code in brackets; if the
    command was asked for JSON, a line of JSON with ``code`` and ``message``. Wrong
    usage, which is told before it is known what was asked for, is always plain.
    """
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stopped:  # wrong usage, or --help
        return stopped.code if isinstance(stopped.code, int) else 1
    as_json = getattr(arguments, "json", False)
    try:
        code = arguments.work(arguments) or 0
        sys.stdout.flush()  # a closed pipe shows here, not when Python ends
    except VisionO3Error as error:
        _tell(error.message, error.code, f" [{error.code}]", as_json=as_json)
        code = exit_code(error)
    except BrokenPipeError:  # such as "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{error.strerror or error}"
        _tell(message, VisionO3Error.code, as_json=as_json)
        code = 1
    except (KeyboardInterrupt, EOFError):
        _tell("stopped", CancelledError.code, as_json=as_json)
        code = INTERRUPTED
    return int(code)


def _tell(message: str, code: str, ending: str = "", *, as_json: bool) -> None:
    """Print why a command failed, on one line of standard error."""
    if as_json:
        line = json.dumps({"error": {"code": code, "message": message}})
    else:
        line = printable(f"vision-o3: {message}{ending}")
    print(line, file=sys.stderr)


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """Return what parses a number above zero, for argparse."""

    def parse(text: str) -> float:
        number = kind(text)
        if not number > 0:
            raise ValueError
        return number

    parse.__name__ = "number above zero"  # argparse says "invalid … value"
    return parse


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
        line = ProgressLine(sys.stderr)
        with open_client(
            mirrors=arguments.mirrors,
            connections=arguments.connections,
            deadline=arguments.deadline,
            offline=arguments.offline,
            progress=None if arguments.json else line,
        ) as client:
            try:
                return work(arguments, client)
            finally:
                line.clear()

    parser = _add(commands, name, run_with_client, summary)
    network = parser.add_argument_group("network")
    network.add_argument(
        "--offline",
        action="store_true",
        default=None,
        help="use no network, only what is cached",
    )
    network.add_argument(
        "--mirror",
        action="append",
        dest="mirrors",
        metavar="URL",
        help="fetch bytes from there too; repeat for more",
    )
    network.add_argument(
        "--connections", type=_positive(int), metavar="N", help="at once, for one file"
    )
    network.add_argument(
        "--deadline",
        type=_positive(float),
        metavar="SECONDS",
        help="for the whole transfer",
    )
    return parser


# Commands


def _login(arguments: argparse.Namespace) -> Shown:
    client_id, secret = sign_in_credentials()
    if not client_id or not secret:
        import getpass  # noqa: PLC0415 - only here

        client_id = client_id or input("Client id: ")
        secret = getpass.getpass("Secret: ")
    with VisionO3Client(arguments.url, credentials=(client_id, secret)) as client:
        signed_in = client.sign_in()
    ends_at = time.time() + signed_in.expires_in_s
    login = {"url": arguments.url, "token": signed_in.token, "ends_at": ends_at}
    path = login_path()
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
    line = ProgressLine(sys.stderr, "hashing")
    try:
        actual = CIDVerifier.compute_cid(
            arguments.path, progress=None if arguments.json else line
        )
    finally:
        line.clear()
    right = actual == expected
    document = {"verified": right, "expected": expected, "actual": actual}
    text = f"{arguments.path} is {'what' if right else 'NOT what'} {expected} names."
    return Shown(document, [text], 0 if right else exit_code(IntegrityError("")))


def _completion(parser: Parser, arguments: argparse.Namespace) -> Shown:
    text = script(parser, arguments.shell)
    document = {"shell": arguments.shell, "script": text}
    return Shown(document, text.splitlines())
