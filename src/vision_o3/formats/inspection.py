"""Check a file's content against its declared format, and read facts from it.

Each format has a module with one function of the same form; this one chooses, and says
what a file is that is not what was declared. No pickle, no code and no external file
is ever opened. Readers may still be slow or large on hostile files, and some use
libraries in C: run this in a process of its own (``worker.py``).
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from vision_o3.errors import FormatError, UnsafeContentError
from vision_o3.formats.bounded import over_limit
from vision_o3.formats.magic import AS_DECLARED, HEAD, describe

if TYPE_CHECKING:
    from pathlib import Path

    from vision_o3.formats.limits import Limits

MODEL_FORMATS = ("pt", "onnx", "tflite", "h5")
DATASET_FORMATS = ("zip", "tar.gz", "json", "xml")
ARCHIVES = ("zip", "tar.gz")
"""Datasets of many files, which have a manifest."""

_EXTENSIONS = {
    **{name: name for name in MODEL_FORMATS + DATASET_FORMATS},
    "pth": "pt",
    "hdf5": "h5",
    "tgz": "tar.gz",
}
_READERS = {
    "pt": "pt",
    "onnx": "onnx",
    "tflite": "tflite",
    "h5": "hdf5",
    "json": "json_documents",
    "xml": "xml_documents",
}
"""The module of each format, loaded when it is needed: a process reads one file."""
_SHOWN_FINDINGS = 5


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where an archive's listings are written."""

    manifest: BinaryIO
    index: BinaryIO


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a file is: its format, by extension, and facts read from it.

    ``facts`` are of the shapes in ``schemas/facts.py``. ``listed``: the manifest and
    the index were written.
    """

    file_format: str
    facts: dict[str, Any]
    listed: bool


def format_of_filename(filename: str) -> str | None:
    """Return the format that a file's extension names, or ``None``."""
    parts = filename.lower().split(".")[1:]
    for start in range(len(parts)):
        found = _EXTENSIONS.get(".".join(parts[start:]))
        if found is not None:
            return found
    return None


def inspect(path: Path, declared: str, limits: Limits, outputs: Outputs) -> Inspection:
    """Return what a file of a declared format is, if its content is that.

    Raises:
        FormatError: The content is something else, which the message names.
        UnsafeContentError: Loading or unpacking it could do harm.
        LimitExceededError: It exceeds one of the limits.
    """
    if declared not in MODEL_FORMATS + DATASET_FORMATS:
        raise FormatError(
            f"{declared!r} is not a known format. "
            f"Known: {', '.join(MODEL_FORMATS + DATASET_FORMATS)}.",
            declared=declared,
        )
    with path.open("rb") as file:
        head = file.read(HEAD)
        size = os.fstat(file.fileno()).st_size
        try:
            facts = _read(declared, file, size, limits, outputs)
        except ValueError as error:
            detected = describe(head, file, size)
            raise FormatError(
                _mismatch(declared, detected, str(error)),
                declared=declared,
                detected=detected,
            ) from error
    _refuse_unsafe(facts, limits)
    return Inspection(declared, facts, listed=declared in ARCHIVES)


def _read(
    declared: str, file: BinaryIO, size: int, limits: Limits, outputs: Outputs
) -> dict[str, Any]:
    if not size:
        raise ValueError("there is nothing in it")
    file.seek(0)
    if declared in ARCHIVES:
        manifests = importlib.import_module("vision_o3.formats.manifests")
        facts: dict[str, Any] = manifests.inspect_archive(
            file, size, declared, limits, manifest=outputs.manifest, index=outputs.index
        )
        if outputs.manifest.tell() > limits.manifest_bytes:
            raise over_limit(
                "The list of the archive's files is too long, in bytes",
                limits.manifest_bytes,
                "VISION_O3_MAX_MANIFEST_BYTES",
            )
    else:
        reader = importlib.import_module(f"vision_o3.formats.{_READERS[declared]}")
        facts = reader.inspect(file, size, limits)
    return facts


def _refuse_unsafe(facts: dict[str, Any], limits: Limits) -> None:
    safety = facts.get("safety")
    if limits.allow_unsafe or safety is None or safety["verdict"] == "safe":
        return
    findings: list[str] = safety["findings"]
    named = ", ".join(findings[:_SHOWN_FINDINGS])
    more = len(findings) - _SHOWN_FINDINGS
    raise UnsafeContentError(
        f"Loading this file could run code that is in it: {named}"
        f"{f' and {more} more' if more > 0 else ''}. Publish weights alone (for "
        "PyTorch a state_dict or TorchScript, for Keras a model without Lambda "
        "layers), or ask the operator to allow it (VISION_O3_ALLOW_UNSAFE_CONTENT).",
        findings=findings,
    )


def _mismatch(declared: str, detected: str, reason: str) -> str:
    if detected in AS_DECLARED.get(declared, ()):
        return (
            f"The file was declared as .{declared} and is {detected}, but not a good "
            f"one: {reason}. Upload the whole, right file."
        )
    return (
        f"The file was declared as .{declared}, but it is {detected}: {reason}. "
        "Upload the right file, or declare what it is."
    )
