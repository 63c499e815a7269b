"""What the gateway says about a version, as values. Strict where the device acts.

Unknown fields are ignored, so that a newer gateway is understood. What decides a
path, a size or a CID is parsed, never trusted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from typing import (
    Any,
    ClassVar,
    Dict,
    FrozenSet,
    Mapping,
    Optional,
    Tuple,
    Type,
    TypeVar,
)

from vision_o3.content.cid import CID
from vision_o3.errors import InputError
from vision_o3.naming import parse_name, parse_version
from vision_o3.sdk.problems import not_understood


@dataclass(frozen=True)
class VersionInfo:
    """One published version: what models and datasets have in common.

    Attributes:
        id: The gateway's name of this version.
        name: The line's name.
        version: Its number in the line, from 1 up.
        cid: What names its bytes.
        file_size: Bytes.
        description: As the publisher wrote it.
        tags: As the publisher gave them.
        owner_id: Who published the line's first version.
        created_at: When it was published, UTC.
        facts: What the gateway read from the file itself.
        stale: The gateway could not be asked: this is its last known answer.
        created: Only in the answer to an upload: whether it made a new version, or the
            latest one had this content already.
    """

    collection: ClassVar[str]
    """Where the gateway serves it, and the device keeps it."""
    formats: ClassVar[FrozenSet[str]]
    """The extensions that a file of the collection may have."""

    id: str
    name: str
    version: int
    cid: str
    file_size: int
    description: str
    tags: Tuple[str, ...]
    owner_id: str
    created_at: datetime
    facts: Mapping[str, Any] = field(hash=False)
    stale: bool = False
    created: Optional[bool] = None

    @property
    def extension(self) -> str:
        """The format, which is the file's extension."""
        raise NotImplementedError

    @property
    def filename(self) -> str:
        """What the file is called in the cache: a name that is safe as a path."""
        return f"{self.name}.{self.extension}"

    def document(self) -> Dict[str, Any]:
        """Return it as JSON values, under the names that the gateway uses."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["tags"] = list(self.tags)
        values["facts"] = dict(self.facts)
        values["created_at"] = self.created_at.isoformat().replace("+00:00", "Z")
        if self.created is None:
            del values["created"]
        return values


@dataclass(frozen=True)
class ModelInfo(VersionInfo):
    """One published version of a model.

    Attributes:
        framework: As the publisher said; may be empty.
        model_type: As the publisher said; may be empty.
        file_format: ``pt``, ``onnx``, ``tflite`` or ``h5``.
    """

    collection: ClassVar[str] = "models"
    formats: ClassVar[FrozenSet[str]] = frozenset({"pt", "onnx", "tflite", "h5"})

    framework: str = ""
    model_type: str = ""
    file_format: str = ""

    @property
    def extension(self) -> str:
        """The format, which is the file's extension."""
        return self.file_format


@dataclass(frozen=True)
class DatasetInfo(VersionInfo):
    """One published version of a dataset.

    Attributes:
        format: ``zip``, ``tar.gz``, ``json`` or ``xml``.
        manifest_cid: The CID of the list of an archive's files; ``None`` if it is none.
    """

    collection: ClassVar[str] = "datasets"
    formats: ClassVar[FrozenSet[str]] = frozenset({"zip", "tar.gz", "json", "xml"})

    format: str = ""
    manifest_cid: Optional[str] = None

    @property
    def extension(self) -> str:
        """The format, which is the file's extension."""
        return self.format


Info = TypeVar("Info", bound=VersionInfo)


def parse_info(kind: Type[Info], document: object) -> Info:
    """Return what a version document of a collection says.

    Raises:
        TransportError: It is not one. Asking again would not help.
    """
    if not isinstance(document, dict):
        raise not_understood("a version is not an object")
    values: Dict[str, Any] = {}
    for each in fields(kind):
        if each.name in document and each.name != "stale":
            values[each.name] = document[each.name]
    try:
        values["created_at"] = _parse_time(values["created_at"])
        values["tags"] = tuple(values["tags"])
        info = kind(**values)
        _check(info)
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise not_understood(str(error)) from error
    return info


def _check(info: VersionInfo) -> None:
    for each in fields(info):
        value: object = getattr(info, each.name)
        kind = {"str": str, "int": int}.get(str(each.type), object)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise TypeError(f"{each.name} is {str(value)[:32]!r}")
    if info.extension not in info.formats:
        raise ValueError(f"the format {info.extension[:32]!r} is not known")
    if info.file_size < 0:
        raise ValueError("file_size is negative")
    if not isinstance(info.facts, dict):
        raise TypeError("facts are not an object")
    if isinstance(info, DatasetInfo) and info.manifest_cid is not None:
        CID.parse(info.manifest_cid)
    parse_name(info.name)
    parse_version(info.version)
    CID.parse(info.cid)


def _parse_time(text: object) -> datetime:
    # Before Python 3.11, fromisoformat does not know "Z".
    parsed = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    return parsed.astimezone(timezone.utc)
