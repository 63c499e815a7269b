"""The commands of datasets: those of models, and those of the files in archives."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, List, Tuple

from vision_o3.naming import parse_version
from vision_o3.sdk.artifact_commands import (
    DATASETS,
    Add,
    Commands,
    add_allow_blocked,
    add_artifact_commands,
    parse_which,
)
from vision_o3.sdk.differences import file_document
from vision_o3.sdk.output import Shown, table
from vision_o3.sdk.progress import in_units

if TYPE_CHECKING:
    from argparse import Namespace

    from vision_o3.content.manifest import Difference
    from vision_o3.sdk.client import VisionO3Client
    from vision_o3.sdk.differences import AnnotationsDifference, DatasetDifference

_COPY_SIZE = 1 << 20


def add_dataset_commands(commands: Commands, add: Add) -> None:
    """Add ``dataset`` with its own commands."""
    dataset = commands.add_parser(
        "dataset",
        help="publish, fetch, list, extract and compare datasets",
        description="Publish and fetch datasets; look into their archives.",
    )
    actions = dataset.add_subparsers(metavar="ACTION", required=True)
    add_artifact_commands(actions, add, DATASETS)

    files = add(actions, "files", _files, "list the files in a dataset's archive")
    files.add_argument("which", metavar="NAME[@VERSION]")

    cat = add(actions, "cat", _cat, "write one file of an archive, verified, to output")
    cat.description = (
        "Write one file of an archive, verified, to output; with --json: say where "
        "it is in the cache."
    )
    cat.add_argument("which", metavar="NAME[@VERSION]")
    cat.add_argument("path", metavar="PATH", help="as 'dataset files' lists it")

    extract = add(
        actions, "extract", _extract, "put an archive's files, verified, into a folder"
    )
    extract.add_argument("which", metavar="NAME[@VERSION]")
    extract.add_argument(
        "patterns",
        metavar="PATTERN",
        nargs="*",
        help="only these: a file, a folder, or with * and ?; default: all",
    )
    extract.add_argument(
        "--to", type=Path, required=True, metavar="DIR", help="made if not there"
    )
    extract.add_argument(
        "--overwrite", action="store_true", help="replace files that are different"
    )

    diff = add(actions, "diff", _diff, "show what changed between two versions")
    diff.add_argument("name", metavar="NAME")
    diff.add_argument("before", metavar="FROM", help="a version")
    diff.add_argument("after", metavar="TO", help="another version")
    for command in (files, cat, extract, diff):
        add_allow_blocked(command)


def _files(arguments: Namespace, client: VisionO3Client) -> Shown:
    manifest = client.get_dataset_manifest(
        *parse_which(arguments.which), allow_blocked=arguments.allow_blocked
    )
    files = manifest.files
    rows: List[Tuple[str, ...]] = [("PATH", "SIZE", "TYPE", "CID")]
    rows += [
        (entry.path, in_units(entry.size), entry.media_type, str(entry.cid))
        for entry in files
    ]
    return Shown([file_document(entry) for entry in files], table(rows))


def _cat(arguments: Namespace, client: VisionO3Client) -> Shown:
    name, version = parse_which(arguments.which)
    if arguments.json:
        path = client.download_dataset_file(
            name, arguments.path, version, allow_blocked=arguments.allow_blocked
        )
        return Shown({"path": str(path), "size": path.stat().st_size})
    with client.open_dataset_file(
        name, arguments.path, version, allow_blocked=arguments.allow_blocked
    ) as file:
        shutil.copyfileobj(file, sys.stdout.buffer, _COPY_SIZE)
    return Shown(None)


def _extract(arguments: Namespace, client: VisionO3Client) -> Shown:
    name, version = parse_which(arguments.which)
    paths = client.extract_dataset(
        name,
        arguments.to,
        version,
        arguments.patterns or None,
        overwrite=arguments.overwrite,
        allow_blocked=arguments.allow_blocked,
    )
    size = sum(path.stat().st_size for path in paths)
    document = {"to": str(arguments.to), "files": [str(path) for path in paths]}
    text = f"{_plural(len(paths), 'file')}, {in_units(size)}, in {arguments.to}."
    return Shown(document, [text])


def _diff(arguments: Namespace, client: VisionO3Client) -> Shown:
    difference = client.compare_datasets(
        arguments.name,
        parse_version(arguments.before),
        parse_version(arguments.after),
        allow_blocked=arguments.allow_blocked,
    )
    return Shown(difference.document(), _differences(difference))


def _differences(difference: DatasetDifference) -> Iterator[str]:
    summary: List[str] = []
    if difference.files is not None:
        yield from _file_changes(difference.files)
        summary += [
            f"{len(getattr(difference.files, name)):,} {name}"
            for name in ("added", "removed", "changed", "renamed")
        ]
        summary.append(f"{difference.files.unchanged:,} unchanged")
    if difference.annotations is not None:
        yield from _annotation_changes(difference.annotations)
    before, after = difference.before.version, difference.after.version
    if not summary:
        same = difference.before.cid == difference.after.cid
        summary.append("the same content" if same else "other content")
    yield f"{difference.after.name} {before} → {after}: {', '.join(summary)}."


def _file_changes(files: Difference) -> Iterator[str]:
    for entry in files.added:
        yield f"+ {entry.path}"
    for entry in files.removed:
        yield f"- {entry.path}"
    for pair in files.changed:
        yield f"~ {pair.after.path}"
    for pair in files.renamed:
        yield f"> {pair.before.path} -> {pair.after.path}"


def _annotation_changes(annotations: AnnotationsDifference) -> Iterator[str]:
    for name in ("images", "annotations", "boxes"):
        before, after = getattr(annotations, name)
        if before != after:
            yield f"{name}: {_change(before, after)}"
    ranked = sorted(
        annotations.classes.items(),
        key=lambda item: (-abs(item[1][1] - item[1][0]), item[0]),
    )
    for name, (before, after) in ranked:
        yield f"class {name}: {_change(before, after)}"


def _change(before: int, after: int) -> str:
    return f"{before:,} -> {after:,} ({after - before:+,})"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
