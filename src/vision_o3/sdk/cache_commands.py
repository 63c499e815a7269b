"""The commands of the device's cache."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Callable, Dict, Iterator, List

from vision_o3.sdk.artifact_commands import Add, Commands, is_cid, parse_which
from vision_o3.sdk.cache import RIGHT, ROTTEN, UNREADABLE, Cache
from vision_o3.sdk.environment import cache_directory
from vision_o3.sdk.output import Shown, table
from vision_o3.sdk.progress import ProgressLine, in_units

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from vision_o3.sdk.cache import CheckedFile
    from vision_o3.sdk.client import VisionO3Client

    AddLocal = Callable[
        [Commands, str, Callable[[Namespace], Shown], str], ArgumentParser
    ]

_EXIT_ROTTEN = 7
_EXIT_UNREADABLE = 8


def add_cache_commands(commands: Commands, add_local: AddLocal, add: Add) -> None:
    """Add ``cache`` with its own commands.

    Args:
        commands: Where.
        add_local: Adds a command that needs no client.
        add: Adds one that needs a client.
    """
    cache = commands.add_parser(
        "cache",
        help="look at the local cache, check, mend or clear it",
        description="Look at the files that are kept on this device, check them "
        "against their CIDs, mend them, or remove them.",
    )
    actions = cache.add_subparsers(metavar="ACTION", required=True)
    add_local(actions, "ls", _ls, "list what is cached, least recently used first")
    add_local(actions, "size", _size, "print the bytes that are cached")
    add_local(actions, "path", _path, "print where the cache is")
    for name, work, summary in (
        ("pin", _pin, "keep a model or dataset from being removed for want of room"),
        ("unpin", _unpin, "undo pin; without a version, of all versions asked for"),
    ):
        pin = add(actions, name, work, summary)
        pin.add_argument("which", metavar="NAME[@VERSION]|CID")
        pin.add_argument("--dataset", action="store_true", help="it is a dataset")
    add_local(
        actions, "verify", _verify, "check all files; what is rotten is not used again"
    )
    add(actions, "repair", _repair, "check all files; fetch anew what is wrong of them")
    prune = add_local(
        actions,
        "prune",
        _prune,
        "remove the least recently used, but not what is pinned",
    )
    prune.add_argument(
        "--max-bytes", type=int, metavar="N", help="what may stay; default: 10 GiB"
    )
    add_local(actions, "clear", _clear, "remove all files from the cache, and all pins")


def _ls(_: Namespace) -> Shown:
    rows = [("SIZE", "PINNED", "PATH")]
    documents = []
    for entry in _cache().entries():
        paths = [str(path) for path in entry.files]
        pinned = "yes" if entry.pinned else "-"
        rows += [(in_units(entry.size), pinned, path) for path in paths]
        document = {"cid": entry.cid, "size": entry.size, "pinned": entry.pinned}
        documents.append({**document, "paths": paths})
    return Shown(documents, table(rows))


def _size(_: Namespace) -> Shown:
    size = _cache().size()
    return Shown({"size": size}, [str(size)])


def _path(_: Namespace) -> Shown:
    path = str(_cache().directory)
    return Shown({"path": path}, [path])


def _pin(arguments: Namespace, client: VisionO3Client) -> Shown:
    which = arguments.which
    if is_cid(which):
        client.pin(which)
        return Shown({"pinned": [{"cid": which}]}, [f"Pinned {which}."])
    pin = client.pin_dataset if arguments.dataset else client.pin_model
    info = pin(*parse_which(which))
    line = f"Pinned {info.name}@{info.version}   {info.cid}"
    return Shown({"pinned": [info.document()]}, [line])


def _unpin(arguments: Namespace, client: VisionO3Client) -> Shown:
    which = arguments.which
    documents: List[Dict[str, object]]
    if is_cid(which):
        documents = [{"cid": which}] if client.unpin(which) else []
        lines = [f"Unpinned {which}." for _ in documents]
    else:
        unpin = client.unpin_dataset if arguments.dataset else client.unpin_model
        infos = unpin(*parse_which(which))
        documents = [info.document() for info in infos]
        lines = [f"Unpinned {each.name}@{each.version}   {each.cid}" for each in infos]
    return Shown({"unpinned": documents}, lines or [f"{which} was not pinned."])


def _verify(arguments: Namespace) -> Shown:
    line = ProgressLine(sys.stderr, "hashing")
    try:
        checked = list(_cache().verify(None if arguments.json else line))
    finally:
        line.clear()
    return _checked(checked)


def _repair(_: Namespace, client: VisionO3Client) -> Shown:
    return _checked(client.repair_cache())


def _checked(checked: List[CheckedFile]) -> Shown:
    counts = Counter(each.state for each in checked)
    files = [
        {
            "cid": each.cid,
            "path": str(each.path),
            "state": each.state,
            "error": each.error.code if each.error is not None else None,
        }
        for each in checked
        if each.state != RIGHT
    ]
    code = _EXIT_UNREADABLE if counts[UNREADABLE] else 0
    code = _EXIT_ROTTEN if counts[ROTTEN] else code
    document = {"right": counts[RIGHT], "wrong": files}
    return Shown(document, _lines(checked, counts), code)


def _lines(checked: List[CheckedFile], counts: Counter[str]) -> Iterator[str]:
    for each in checked:
        if each.state != RIGHT:
            why = f": {each.error} [{each.error.code}]" if each.error else ""
            yield f"{each.state}   {each.path}{why}"
    others = (f", {n} {state}" for state, n in counts.items() if state != RIGHT)
    yield f"{counts[RIGHT]} right{''.join(others)}."
    if counts[ROTTEN] and not any(each.error for each in checked):
        yield "What is rotten is not used again: 'vision-o3 cache repair' mends it."


def _prune(arguments: Namespace) -> Shown:
    return _removed(_cache().prune(arguments.max_bytes))


def _clear(_: Namespace) -> Shown:
    cache = _cache()
    size = cache.size()
    cache.clear()
    return _removed(size)


def _removed(size: int) -> Shown:
    return Shown({"removed": size}, [f"Removed {in_units(size)}."])


def _cache() -> Cache:
    return Cache(cache_directory())
