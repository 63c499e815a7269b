"""The commands that models and datasets have alike: from ls and pull to block."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from vision_o3.content.cid import CID
from vision_o3.errors import InputError, InvalidCIDError
from vision_o3.naming import parse_version
from vision_o3.sdk.describing import describe_version
from vision_o3.sdk.output import Shown, table
from vision_o3.sdk.progress import in_units

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from vision_o3.sdk.client import VisionO3Client
    from vision_o3.sdk.versions import VersionInfo

Commands = Any
"""What ``add_subparsers`` returns; argparse has no public name for it."""
Work = Callable[["Namespace", "VisionO3Client"], Shown]
Add = Callable[[Commands, str, Work, str], "ArgumentParser"]
"""Adds a command that needs a client, by name, work and summary."""
Withdraw = Callable[["VisionO3Client", str, int, str], "VersionInfo"]
"""Withdraws a version by name, number and reason."""


class Kind(NamedTuple):
    """What is different between models and datasets, for these commands.

    Attributes:
        noun: What one of them is called.
        columns: Of a list, beside those that both have: heading and attribute.
        filters: Of a list, beside those that both have.
        fields: Of an upload, beside those that both have.
        find_all: Returns a client's list, filtered.
        find: Returns what is known of a name and version.
        fetch: Returns the path of what a CID names.
        upload: Publishes a path under a name.
        deprecate: Has devices warned of a version, for a reason.
        block: Has a version refused, for a reason.
        restore: Undoes both.
    """

    noun: str
    columns: Tuple[Tuple[str, str], ...]
    filters: Tuple[str, ...]
    fields: Tuple[str, ...]
    find_all: Callable[[VisionO3Client, Dict[str, Any]], Sequence[VersionInfo]]
    find: Callable[[VisionO3Client, str, Optional[int]], VersionInfo]
    fetch: Callable[..., Path]
    upload: Callable[..., VersionInfo]
    deprecate: Withdraw
    block: Withdraw
    restore: Callable[[VisionO3Client, str, int], None]


MODELS = Kind(
    noun="model",
    columns=(
        ("FRAMEWORK", "framework"),
        ("TYPE", "model_type"),
        ("FORMAT", "file_format"),
    ),
    filters=("framework", "model_type", "format"),
    fields=("framework", "model_type"),
    find_all=lambda client, filters: client.list_models(filters),
    find=lambda client, name, version: client.get_model_info(name, version),
    fetch=lambda client, cid, **more: client.download_model_by_cid(cid, **more),
    upload=lambda client, path, name, **more: client.upload_model(path, name, **more),
    deprecate=lambda client, *which: client.deprecate_model(*which),
    block=lambda client, *which: client.block_model(*which),
    restore=lambda client, *which: client.restore_model(*which),
)
DATASETS = Kind(
    noun="dataset",
    columns=(("FORMAT", "format"),),
    filters=("format", "annotations", "has_class"),
    fields=(),
    find_all=lambda client, filters: client.list_datasets(filters),
    find=lambda client, name, version: client.get_dataset_info(name, version),
    fetch=lambda client, cid, **more: client.download_dataset_by_cid(cid, **more),
    upload=lambda client, path, name, **more: client.upload_dataset(path, name, **more),
    deprecate=lambda client, *which: client.deprecate_dataset(*which),
    block=lambda client, *which: client.block_dataset(*which),
    restore=lambda client, *which: client.restore_dataset(*which),
)
_FILTERS = ("owner", "tags", "q", "sort")


def add_artifact_commands(commands: Commands, add: Add, kind: Kind) -> None:
    """Add the commands of models, or of datasets."""
    noun = kind.noun
    ls = add(commands, "ls", partial(_ls, kind), f"list {noun}s")
    for name in kind.filters:
        ls.add_argument(_option(name))
    ls.add_argument("--owner")
    ls.add_argument("--tag", action="append", dest="tags", help="repeat for more")
    ls.add_argument("--search", dest="q", help="part of the name or description")
    ls.add_argument("--sort", help="name, created_at or size; '-' before it: downwards")

    info = add(
        commands, "info", partial(_info, kind), f"show what is known of a {noun}"
    )
    info.add_argument("which", metavar="NAME[@VERSION]")

    pull = add(
        commands,
        "pull",
        partial(_pull, kind),
        f"fetch a {noun}, verified; print its path",
    )
    pull.add_argument("which", metavar="NAME[@VERSION]|CID")
    pull.add_argument(
        "-o", "--output", type=Path, metavar="PATH", help="copy it to a file or folder"
    )
    add_allow_blocked(pull)

    push = add(
        commands,
        "push",
        partial(_push, kind),
        f"publish a file as a {noun}'s next version",
    )
    push.add_argument("path", metavar="PATH", type=Path)
    push.add_argument("--name", required=True)
    for name in kind.fields:
        push.add_argument(_option(name))
    push.add_argument("--format", help="default: the file's extension")
    push.add_argument("--description", default="")
    push.add_argument("--tag", action="append", dest="tags", help="repeat for more")
    _add_withdrawals(commands, add, kind)


def _add_withdrawals(commands: Commands, add: Add, kind: Kind) -> None:
    """Add the commands that say of a version that it is not to be used."""
    for name, withdraw, summary in (
        (
            "deprecate",
            kind.deprecate,
            f"warn of a {kind.noun}'s version; it is served as before",
        ),
        (
            "block",
            kind.block,
            f"stop a {kind.noun}'s version; devices refuse it, with the reason",
        ),
    ):
        command = add(commands, name, partial(_withdraw, withdraw), summary)
        command.add_argument("name", metavar="NAME")
        command.add_argument("version", metavar="VERSION")
        command.add_argument(
            "--reason", required=True, metavar="TEXT", help="one line, for people"
        )
    unblock = add(
        commands,
        "unblock",
        partial(_unblock, kind),
        f"serve a {kind.noun}'s version again, without a warning too",
    )
    unblock.add_argument("name", metavar="NAME")
    unblock.add_argument("version", metavar="VERSION")


def add_allow_blocked(command: ArgumentParser) -> None:
    """Add the option of commands that use the bytes of versions."""
    command.add_argument(
        "--allow-blocked", action="store_true", help="also if the version is blocked"
    )


def parse_which(text: str) -> Tuple[str, Optional[int]]:
    """Return the name and version that ``NAME[@VERSION]`` says.

    Raises:
        InvalidVersionError: There is an ``@``, and no version after it.
    """
    name, at, version = text.partition("@")
    return name, parse_version(version) if at else None


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _ls(kind: Kind, arguments: Namespace, client: VisionO3Client) -> Shown:
    names = (*kind.filters, *_FILTERS)
    filters = {n: getattr(arguments, n) for n in names if getattr(arguments, n)}
    found = kind.find_all(client, filters)
    headings = (heading for heading, _ in kind.columns)
    rows: List[Tuple[str, ...]] = [
        ("NAME", "VERSION", *headings, "SIZE", "CID", "STATE")
    ]
    for info in found:
        own = (getattr(info, attribute) or "-" for _, attribute in kind.columns)
        size = in_units(info.file_size)
        state = "" if info.withdrawal is None else str(info.withdrawal)
        rows.append((info.name, str(info.version), *own, size, info.cid, state))
    if not any(info.withdrawal for info in found):
        rows = [row[:-1] for row in rows]
    return Shown([info.document() for info in found], table(rows))


def _info(kind: Kind, arguments: Namespace, client: VisionO3Client) -> Shown:
    document = kind.find(client, *parse_which(arguments.which)).document()
    return Shown(document, describe_version(document))


def _pull(kind: Kind, arguments: Namespace, client: VisionO3Client) -> Shown:
    document: Dict[str, Any] = {}
    allow_blocked = arguments.allow_blocked
    if is_cid(arguments.which):
        path = kind.fetch(client, arguments.which, allow_blocked=allow_blocked)
        document["cid"] = arguments.which
    else:
        info = kind.find(client, *parse_which(arguments.which))
        path = client.download(info, allow_blocked=allow_blocked)
        document.update(info.document())
    if arguments.output is not None:
        path = _copy(path, arguments.output)
    return Shown({**document, "path": str(path)}, [str(path)])


def _push(kind: Kind, arguments: Namespace, client: VisionO3Client) -> Shown:
    info = kind.upload(
        client,
        arguments.path,
        arguments.name,
        file_format=arguments.format,
        description=arguments.description,
        tags=arguments.tags or (),
        **{name: getattr(arguments, name) for name in kind.fields},
    )
    note = "" if info.created else "   (the latest version had this content already)"
    return Shown(info.document(), [f"{info.name}@{info.version}   {info.cid}{note}"])


def _withdraw(
    withdraw: Withdraw, arguments: Namespace, client: VisionO3Client
) -> Shown:
    version = parse_version(arguments.version)
    info = withdraw(client, arguments.name, version, arguments.reason)
    return Shown(info.document(), [f"{info.name}@{info.version}   {info.withdrawal}"])


def _unblock(kind: Kind, arguments: Namespace, client: VisionO3Client) -> Shown:
    name, version = arguments.name, parse_version(arguments.version)
    kind.restore(client, name, version)
    document = {"name": name, "version": version, "withdrawal": None}
    return Shown(document, [f"{name}@{version}   served as before"])


def is_cid(text: str) -> bool:
    """Whether a word is a CID rather than a name."""
    try:
        CID.parse(text)
    except InvalidCIDError:
        return False
    return True


def _copy(source: Path, target: Path) -> Path:
    """Copy a file; what stood there is replaced at once. Return where it went."""
    if target.is_dir():
        target = target / source.name
    if not target.parent.is_dir():
        raise InputError(f"There is no folder {target.parent} to copy to: make it.")
    partial_path = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(source, partial_path)
        partial_path.replace(target)
    except BaseException:
        if partial_path.exists():
            partial_path.unlink()
        raise
    return target
