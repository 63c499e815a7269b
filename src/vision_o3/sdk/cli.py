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
import shutil
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    List,
    Optional,
    Sequence,
    Tuple,
)

from vision_o3 import __version__
from vision_o3.content.cid import CID
from vision_o3.errors import (
    AuthError,
    CacheError,
    ConfigurationError,
    ConflictError,
    DatabaseUnavailableError,
    InputError,
    IntegrityError,
    InvalidCIDError,
    NotFoundError,
    StorageError,
    TransportError,
    UnauthenticatedError,
    VisionO3Error,
)
from vision_o3.naming import parse_version
from vision_o3.sdk.cache import Cache, replace_text
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.progress import ProgressLine, in_units
from vision_o3.sdk.verifier import CIDVerifier

if TYPE_CHECKING:
    from vision_o3.sdk.versions import VersionInfo

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
)
"""The only table of exit codes; any other error of ours is 1."""
INTERRUPTED = 130
"""As shells say it: 128 + SIGINT."""
DEFAULT_CACHE = "~/.vision-o3"

Parser = argparse.ArgumentParser
Commands = Any
"""What ``add_subparsers`` returns; argparse has no public name for it."""
Work = Callable[[argparse.Namespace], Optional[int]]


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
        description="Publish computer-vision models; fetch them verified, byte by "
        "byte.",
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
    _add_model_commands(commands)

    verify = _add(commands, "verify", _verify, "check a file against a CID")
    verify.add_argument("path", metavar="PATH", type=Path)
    verify.add_argument("cid", metavar="CID")

    cache = commands.add_parser("cache", help="look at the local cache, or clear it")
    actions = cache.add_subparsers(metavar="ACTION", required=True)
    _add(actions, "ls", _cache_ls, "list what is cached, least recently used first")
    _add(actions, "size", _cache_size, "print the bytes that are cached")
    _add(actions, "path", _cache_path, "print where the cache is")
    _add(actions, "clear", _cache_clear, "remove all files from the cache")


def _add_model_commands(commands: Commands) -> None:
    ls = _add(commands, "ls", _ls, "list models")
    ls.add_argument("--framework")
    ls.add_argument("--model-type")
    ls.add_argument("--format")
    ls.add_argument("--owner")
    ls.add_argument("--tag", action="append", dest="tags", help="repeat for more")
    ls.add_argument("--search", dest="q", help="part of the name or description")
    ls.add_argument("--sort", help="name, created_at or size; '-' before it: downwards")

    info = _add(commands, "info", _info, "show what is known of a model")
    info.add_argument("model", metavar="NAME[@VERSION]")

    pull = _add(commands, "pull", _pull, "fetch a model, verified; print its path")
    pull.add_argument("model", metavar="NAME[@VERSION]|CID")
    pull.add_argument(
        "-o", "--output", type=Path, metavar="PATH", help="copy it to a file or folder"
    )

    push = _add(commands, "push", _push, "publish a file as a model's next version")
    push.add_argument("path", metavar="PATH", type=Path)
    push.add_argument("--name", required=True)
    push.add_argument("--framework")
    push.add_argument("--model-type")
    push.add_argument("--format", help="default: the file's extension")
    push.add_argument("--description", default="")
    push.add_argument("--tag", action="append", dest="tags", help="repeat for more")


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
        print(f"vision-o3: {error} [{error.code}]", file=sys.stderr)
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
    description = summary[0].upper() + summary[1:] + "."
    parser: Parser = commands.add_parser(name, help=summary, description=description)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(work=work)
    return parser


# Commands


def _login(arguments: argparse.Namespace) -> None:
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
    text = (
        f"Signed in to {arguments.url} as {client_id} until {until:%H:%M} UTC; may "
        f"{signed_in.scope}.\nThe token, not the secret, is kept in {path}."
    )
    _show(arguments, document, text)


def _ls(arguments: argparse.Namespace) -> None:
    names = ("framework", "model_type", "format", "owner", "tags", "q", "sort")
    filters = {n: getattr(arguments, n) for n in names if getattr(arguments, n)}
    with _client(arguments) as client:
        models = client.list_models(filters)
    rows = [("NAME", "VERSION", "FRAMEWORK", "TYPE", "FORMAT", "SIZE", "CID")]
    for model in models:
        kinds = (model.framework or "-", model.model_type or "-", model.file_format)
        size = in_units(model.file_size)
        rows.append((model.name, str(model.version), *kinds, size, model.cid))
    _show(arguments, [model.document() for model in models], _table(rows))


def _info(arguments: argparse.Namespace) -> None:
    with _client(arguments) as client:
        document = client.get_model_info(*_parse_model(arguments.model)).document()
    lines = []
    for key, value in document.items():
        if value not in ("", [], {}, False):
            shown = ", ".join(value) if isinstance(value, list) else value
            shown = json.dumps(value) if isinstance(value, dict) else shown
            lines.append(f"{key + ':':14}{shown}")
    _show(arguments, document, "\n".join(lines))


def _pull(arguments: argparse.Namespace) -> None:
    document: Dict[str, Any] = {}
    with _client(arguments) as client:
        if _is_cid(arguments.model):
            path = client.download_model_by_cid(arguments.model)
            document["cid"] = arguments.model
        else:
            info: VersionInfo = client.get_model_info(*_parse_model(arguments.model))
            path = client.download(info)
            document.update(info.document())
    if arguments.output is not None:
        path = _copy(path, arguments.output)
    _show(arguments, {**document, "path": str(path)}, str(path))


def _push(arguments: argparse.Namespace) -> None:
    with _client(arguments) as client:
        model = client.upload_model(
            arguments.path,
            arguments.name,
            framework=arguments.framework,
            model_type=arguments.model_type,
            file_format=arguments.format,
            description=arguments.description,
            tags=arguments.tags or (),
        )
    note = "" if model.created else "   (the latest version had this content already)"
    text = f"{model.name}@{model.version}   {model.cid}{note}"
    _show(arguments, model.document(), text)


def _verify(arguments: argparse.Namespace) -> int:
    expected = str(CID.parse(arguments.cid))
    actual = CIDVerifier.compute_cid(arguments.path)
    right = actual == expected
    document = {"verified": right, "expected": expected, "actual": actual}
    text = f"{arguments.path} is {'what' if right else 'NOT what'} {expected} names."
    _show(arguments, document, text)
    return 0 if right else exit_code(IntegrityError(""))


def _cache_ls(arguments: argparse.Namespace) -> None:
    entries = _cache().entries()
    rows = [("SIZE", "PATH")]
    documents = []
    for entry in entries:
        paths = [str(path) for path in entry.files]
        rows += [(in_units(entry.size), path) for path in paths]
        documents.append({"cid": entry.cid, "size": entry.size, "paths": paths})
    _show(arguments, documents, _table(rows))


def _cache_size(arguments: argparse.Namespace) -> None:
    size = _cache().size()
    _show(arguments, {"size": size}, str(size))


def _cache_path(arguments: argparse.Namespace) -> None:
    path = str(_cache().directory)
    _show(arguments, {"path": path}, path)


def _cache_clear(arguments: argparse.Namespace) -> None:
    cache = _cache()
    size = cache.size()
    cache.clear()
    _show(arguments, {"removed": size}, f"Removed {in_units(size)}.")


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


# Arguments and output


def _parse_model(text: str) -> Tuple[str, Optional[int]]:
    name, at, version = text.partition("@")
    return name, parse_version(version) if at else None


def _is_cid(text: str) -> bool:
    try:
        CID.parse(text)
    except InvalidCIDError:
        return False
    return True


def _copy(source: Path, target: Path) -> Path:
    """Copy a file; what stood there is replaced at once. Return where it went."""
    if target.is_dir():
        target = target / source.name
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    except BaseException:
        if partial.exists():
            partial.unlink()
        raise
    return target


def _show(arguments: argparse.Namespace, document: object, text: str) -> None:
    print(json.dumps(document, indent=2) if arguments.json else text)


def _table(rows: Sequence[Tuple[str, ...]]) -> str:
    widths: List[int] = [max(map(len, column)) for column in zip(*rows)]
    lines = ("   ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
