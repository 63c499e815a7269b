"""PyTorch files: tensors and a verdict on safety, without unpickling.

Two containers: the ZIP archive that ``torch.save`` writes since PyTorch 1.6, which is
that of TorchScript too (``caffe2/serialize/inline_container.h``), read here; and the
row of pickles before it (``pt_legacy.py``). Whatever in a file is a pickle, or could be
read as one, is looked at, whatever its name.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from vision_o3.errors import LimitExceededError
from vision_o3.formats import pt_legacy
from vision_o3.formats.archives import ZIP_MEMBER
from vision_o3.formats.bounded import LISTED, clean, most, read_exactly
from vision_o3.formats.pickle_values import Report
from vision_o3.formats.pickles import looks_pickled, scan
from vision_o3.formats.pt_imports import CLASSES, TorchImports
from vision_o3.formats.pt_tensors import Storage, lookup, tensors_of, texts_of
from vision_o3.formats.zips import STORED, ZipMember, read_directory, unpack

if TYPE_CHECKING:
    from vision_o3.formats.limits import Limits

LARGEST_PICKLE = 64 << 20
"""Bytes of a pickle, or of code, that are read; tensors are kept outside of them."""
_LONGEST_NOTE = 64
"""Bytes of ``version`` and the like."""
_LAST = 2**63 - 1

_CONSTANTS = "constants"
_PICKLED = (".pkl", ".pickle", ".pkl.txt", ".debug_pkl")
_STORAGE = re.compile(r"([^/]+)/[0-9]+(?:\.storage)?")
_IN_IT = (
    (0, b"PK\x03\x04", "an archive"),
    (0, b"PK\x05\x06", "an archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "an archive"),
    (0, b"Rar!", "an archive"),
    (0, b"\x1f\x8b", "compressed content"),
    (0, b"BZh", "compressed content"),
    (0, b"\xfd7zXZ\0", "compressed content"),
    (0, b"\x28\xb5\x2f\xfd", "compressed content"),
    (257, b"ustar", "an archive"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
    (0, b"\xcf\xfa\xed\xfe", "a program"),
    (0, b"\xca\xfe\xba\xbe", "a program"),
    (0, b"#!", "a program"),
)
# TorchScript can read and write files by two operators, ``aten::save`` and
# ``aten::from_file``, at any path, and some of it runs when it is loaded. PyTorch
# writes each operator as ``torch.NAME``, or in instructions for mobile devices as
# ``aten::NAME``; source written by hand could also take ``ops.aten``, break the line
# anywhere, or give ``torch`` another name.
_PASSED_OVER = re.compile(
    rb'"""(?:[^"\\]|\\.|"(?!""))*+(?:""")?+|"(?:\\.|[^"\\\n])*+"?+'
    rb"|'''(?:[^'\\]|\\.|'(?!''))*+(?:''')?+|'(?:\\.|[^'\\\n])*+'?+"
    rb"|(?:[\s\\]|#[^\n]*+)++",
    re.DOTALL,
)
"""A string, terminated or not; or what may lie between any two words."""
_REACHES_FILES = re.compile(
    # torch.autograd is another name of torch.
    rb"(?<![\w.])torch ?\. ?(?:save|from_file|ops|autograd)\b|\bops ?\. ?aten\b"
    rb"|(?<![\w.])(?:torch|ops)\b(?! ?[.:])"
    rb"|(?<![\w.])__torch__(?!\w)(?! ?\.)"
    rb"|(?<![\w.])__torch__ ?\. ?torch\b(?! ?\.)"
)
# What a library adds to PyTorch is an operator as well, and may do anything: that of
# torchvision has ``image::write_file``. So other operators pass by their namespace.
OPERATORS = frozenset(
    {"prim", "prims", "quantized", "_quantized", "quantized_decomposed", "sparse"}
    | {"torchvision", "prepacked", "mkldnn_prepacked", "xnnpack", "mkldnn", "mkl"}
    | {"metal_prepack", "vulkan_prepack"}
)
"""Namespaces whose operators compute only, as exports by PyTorch have them."""
_OPERATOR = re.compile(rb"(?<![\w.])ops ?\. ?(\w+)(?: ?\. ?\w+)?")
_FILE_OPERATORS = ("aten::save", "aten::from_file")
_CLASS = re.compile(rb"\btorch ?\. ?classes\b(?: ?\. ?(\w+)(?: ?\. ?\w+)?)?")


def inspect(file: BinaryIO, size: int, limits: Limits) -> dict[str, Any]:
    """Return the facts of a PyTorch file (``PtFacts``).

    What loading could do harm with is in ``safety``, not raised. Memory is bounded by
    the largest pickle and what it has in it; storages are read, but not kept.

    Raises:
        ValueError: It is none, or not a whole one.
        UnsafeContentError: A path in its archive leads outside.
        LimitExceededError: A pickle is too large, or the archive exceeds a limit.
    """
    file.seek(0)
    if file.read(len(ZIP_MEMBER)) == ZIP_MEMBER:
        return _Archive(file, size, limits).facts()
    found = pt_legacy.read(file, size, LARGEST_PICKLE)
    return _facts(
        found.value,
        found.report,
        container="legacy",
        torchscript=False,
        format_version=pt_legacy.PROTOCOL,
        byteorder=found.byteorder,
    )


def _facts(
    value: object, report: Report, constants: object = None, **container: object
) -> dict[str, Any]:
    tensors: list[dict[str, Any]] = []
    count = parameters = 0
    places: set[tuple[object, ...]] = set()
    dtypes: Counter[str] = Counter()
    held = [("", *found) for found in tensors_of(value)]
    held += [(_CONSTANTS, *found) for found in tensors_of(constants, _CONSTANTS)]
    for part, name, tensor in held:
        count += 1
        dtypes[tensor.dtype] += 1
        # Each part has storages of its own, though their keys may be the same.
        place = (part, *tensor.place)
        if place not in places:
            places.add(place)
            parameters += tensor.elements
        if len(tensors) < LISTED:
            tensors.append(
                {
                    "name": clean(name),
                    "dtype": tensor.dtype,
                    "shape": list(tensor.shape),
                }
            )
    return {
        "kind": "pt",
        **container,
        "producer": _producer(value),
        "tensors": tensors,
        "tensor_count": count,
        "parameters": min(parameters, _LAST),
        "dtypes": most(dtypes),
        "imports": list(report.imports),
        "safety": {
            "verdict": "unsafe" if report.unsafe else "safe",
            "findings": list(report.findings),
        },
    }


def _producer(value: object) -> str | None:
    """Return what says to have written a checkpoint, beside ``torch.save``."""
    version = lookup(value, "pytorch-lightning_version")
    return clean(f"PyTorch Lightning {version}") if isinstance(version, str) else None


@dataclass(slots=True)
class _Archive:
    """The members of one file, by their path under its folder."""

    file: BinaryIO
    size: int
    limits: Limits
    members: dict[str, ZipMember] = field(init=False)
    torchscript: bool = field(init=False)
    report: Report = field(default_factory=Report)
    constants: object = None

    def __post_init__(self) -> None:
        listed = read_directory(self.file, self.size, self.limits)
        self.members = {
            member.path.partition("/")[2]: member
            for member in listed
            if not member.is_folder
        }
        if "data.pkl" not in self.members:
            raise ValueError("it has no member data.pkl in a folder")
        if len({member.path.partition("/")[0] for member in listed}) > 1:
            raise ValueError("its members are not in one folder")
        lowered = Counter(
            path.lower() for path in self.members if not path.startswith("code/")
        )
        # PyTorch finds members whatever the case of letters: which one is not told.
        if any(number > 1 for number in lowered.values()):
            raise ValueError("two of its members differ in the case of letters only")
        self.torchscript = any(
            path.lower() == "constants.pkl" or path.startswith("code/")
            for path in self.members
        )

    def facts(self) -> dict[str, Any]:
        value = self.read_main("data.pkl")
        for path in self.members:
            if path != "data.pkl":
                self.look_at(path)
        version = self.note("version")
        byteorder = self.note("byteorder")
        if byteorder not in {None, "little", "big"}:
            raise ValueError("its byteorder is neither little nor big")
        return _facts(
            value,
            self.report,
            self.constants,
            container="zip",
            torchscript=self.torchscript,
            format_version=_whole(version),
            byteorder=byteorder,
        )

    def read_main(self, path: str) -> object:
        """Return the value of a pickle that PyTorch loads, whose storages are there."""
        imports = TorchImports(torchscript=self.torchscript)
        content = self.content(path)
        value, end = scan(content, imports, self.report)
        if end != len(content):
            self.report.find(f"bytes after the end of {path}")
        folder = path.removesuffix(".pkl")
        for storage in imports.storages.values():
            self.check_storage(storage, folder)
        return value

    def check_storage(self, storage: Storage, folder: str) -> None:
        member = self.members.get(f"{folder}/{storage.key}")
        if member is None and self.torchscript:
            # Instructions for mobile devices share those of constants.
            member = self.members.get(f"constants/{storage.key}")
        shown = clean(storage.key, 40)
        if member is None:
            raise ValueError(f"the storage {shown} of its tensors is missing")
        if member.unpacked < storage.size:
            raise ValueError(
                f"the storage {shown} has {member.unpacked} bytes, but its tensors "
                f"need {storage.size}"
            )

    def look_at(self, path: str) -> None:
        """Check the bytes of a member, and look for what could be harmful in it."""
        found = _STORAGE.fullmatch(path)
        if found and (found[1] == "tensors" or f"{found[1]}.pkl" in self.members):
            self.check_bytes(path)
            return
        lowered = path.lower()
        if self.torchscript and lowered in {"constants.pkl", "bytecode.pkl"}:
            value = self.read_main(path)
            if lowered == "constants.pkl":
                self.constants = value  # a frozen model has its weights there
            else:
                self.find_operator(_in_bytecode(value), path)
            return
        if lowered.endswith(".py"):
            if self.torchscript and path.startswith("code/") and path.endswith(".py"):
                self.look_for_files(path)
            else:
                self.report.find(f"Python code: {path}")
            return
        content = self.content(path, LARGEST_PICKLE + 1)
        for at, signature, what in _IN_IT:
            if content.startswith(signature, at):
                self.report.find(f"{what}: {path}")
                break
        else:
            self.look_for_pickle(path, content, named=lowered.endswith(_PICKLED))

    def look_for_files(self, path: str) -> None:
        """Look for operators and classes that can do more than compute."""
        found = _in_source(_PASSED_OVER.sub(_shortened, self.content(path)))
        self.find_operator(found, path)

    def find_operator(self, name: str | None, path: str) -> None:
        if name is not None:
            shown = clean(name, 100)
            self.report.find(f"TorchScript that can reach files, by {shown}: {path}")

    def look_for_pickle(self, path: str, content: bytes, *, named: bool) -> None:
        """Look for a pickle that PyTorch does not load, but something else may.

        One of protocol 0 or 1 has no signature: it is one if it can be read, or makes
        calls of what it imports before it breaks off.
        """
        shown = clean(path, 100)
        pickled = named or looks_pickled(content)
        if len(content) > LARGEST_PICKLE and pickled:
            raise _too_large(path)
        inner = Report(opcodes=self.report.opcodes)
        whole = True
        try:
            _, end = scan(content, TorchImports(torchscript=self.torchscript), inner)
            if pickled and end != len(content):
                inner.find("bytes after the end of a pickle")
        except ValueError as error:
            if named:
                raise ValueError(f"{error} ({shown})") from error
            whole = False
        self.report.opcodes = inner.opcodes
        if not pickled and not (inner.unsafe and (whole or inner.calls)):
            return
        for imported in inner.imports:
            if len(self.report.imports) < LISTED:
                self.report.imports[imported] = None
        for finding in inner.findings:
            self.report.find(f"{finding} (in {shown})")

    def note(self, path: str) -> str | None:
        """Return the short text in a member, or ``None`` if there is no such one."""
        if path not in self.members:
            return None
        content = self.content(path, _LONGEST_NOTE)
        return content.decode("ascii", "replace").strip()

    def content(self, path: str, first: int | None = None) -> bytes:
        """Return a member, or its ``first`` bytes.

        Raises:
            LimitExceededError: It is larger than a pickle may be.
        """
        member = self.members[path]
        if first is None and member.unpacked > LARGEST_PICKLE:
            raise _too_large(path)
        if _is_unsummed(member):
            self.file.seek(member.data_at)
            wanted = member.packed if first is None else min(first, member.packed)
            return read_exactly(self.file, wanted)
        content = bytearray()
        for piece in unpack(self.file, member, self.limits):
            content += piece
            if first is not None and len(content) >= first:
                break
        return bytes(content[:first])

    def check_bytes(self, path: str) -> None:
        """Check the CRC of a storage."""
        member = self.members[path]
        if not _is_unsummed(member):
            for _ in unpack(self.file, member, self.limits):
                pass


def _in_source(code: bytes) -> str | None:
    """Return the first name in code that is not known to compute only."""
    found = _REACHES_FILES.search(code)
    allowed = ((_OPERATOR, OPERATORS), (_CLASS, CLASSES))
    named = (
        match
        for pattern, namespaces in allowed
        for match in pattern.finditer(code)
        if (match[1] or b"").decode() not in namespaces
    )
    found = found or next(named, None)
    return found[0].decode().replace(" ", "") if found else None


def _in_bytecode(value: object) -> str | None:
    """Return the first such name in instructions for mobile devices.

    Any text of the form of an operator's name is taken for one.
    """
    for text in texts_of(value):
        namespace, colons, _ = text.partition("::")
        if colons and (
            text.startswith(_FILE_OPERATORS)
            or (namespace != "aten" and namespace not in OPERATORS)
        ):
            return text
    return None


def _shortened(found: re.Match[bytes]) -> bytes:
    return b'""' if found[0][:1] in b"'\"" else b" "


def _is_unsummed(member: ZipMember) -> bool:
    """Say whether a member has no CRC: ``torch.save`` can leave it out, as 0."""
    return member.crc == 0 and member.method == STORED


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 10 else None  # noqa: PLR2004 - digits


def _too_large(path: str) -> LimitExceededError:
    return LimitExceededError(
        f"The file's member {clean(path)!r} is larger than the {LARGEST_PICKLE} bytes "
        "that are read of a pickle or code. Keep data in tensors.",
        limit=LARGEST_PICKLE,
    )
