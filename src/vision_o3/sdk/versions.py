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
from vision_o3.errors import (
    InputError,
    VersionBlockedError,
    VersionPurgedError,
    WithdrawnError,
)
from vision_o3.naming import parse_name, parse_version
from vision_o3.sdk.problems import not_understood

DEPRECATED, BLOCKED, PURGED = "deprecated", "blocked", "purged"


@dataclass(frozen=True)
class Withdrawal:
    """Why a version is not to be used any more.

    Attributes:
        state: ``deprecated``: served as before; ``blocked``: served only to those who
            ask for it all the same; ``purged``: its bytes are gone for good. Another
            one, of a newer gateway, is never served.
        reason: As who withdrew it wrote it.
        at: When, UTC.
    """

    state: str
    reason: str
    at: datetime

    def __str__(self) -> str:
        """Return it as a few words for people."""
        return f"{self.state}: {self.reason}"

    @property
    def sentence(self) -> str:
        """The same, with an end."""
        return f"{self}" if self.reason.endswith((".", "!", "?")) else f"{self}."

    def document(self) -> Dict[str, Any]:
        """Return it as JSON values, under the names that the gateway uses."""
        return {"state": self.state, "reason": self.reason, "at": _time_text(self.at)}


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
        withdrawal: Set if it is not to be used any more, and why.
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
    withdrawal: Optional[Withdrawal] = None

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
        values["created_at"] = _time_text(self.created_at)
        if self.withdrawal is not None:
            values["withdrawal"] = self.withdrawal.document()
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
        values["withdrawal"] = _parse_withdrawal(document.get("withdrawal"))
        info = kind(**values)
        _check(info)
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise not_understood(str(error)) from error
    return info


def refuse_withdrawn(info: VersionInfo, *, allow_blocked: bool) -> None:
    """Return if the bytes of a version may be used.

    Args:
        info: As the gateway said it, now or when it was last asked.
        allow_blocked: Also if it is blocked.

    Raises:
        VersionBlockedError: It is blocked (``reason``).
        VersionPurgedError: It was deleted for good (``reason``).
        WithdrawnError: It is withdrawn in a way that this release does not know.
    """
    withdrawal = info.withdrawal
    if withdrawal is None or withdrawal.state == DEPRECATED:
        return
    reason = withdrawal.reason
    told = f"Version {info.version} of {info.name} is {withdrawal.sentence}"
    if withdrawal.state == BLOCKED:
        if allow_blocked:
            return
        raise VersionBlockedError(
            f"{told} Use another version; to use this one all the same, pass "
            "allow_blocked=True (--allow-blocked).",
            reason=reason,
        )
    if withdrawal.state == PURGED:
        raise VersionPurgedError(
            f"{told} Its bytes are gone for good: use another version.", reason=reason
        )
    raise WithdrawnError(f"{told} Use another version.", reason=reason)


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


def _parse_withdrawal(document: object) -> Optional[Withdrawal]:
    if document is None:
        return None
    if not isinstance(document, dict):
        raise TypeError("the withdrawal is not an object")
    state, reason = document["state"], document["reason"]
    if not isinstance(state, str) or not isinstance(reason, str):
        raise TypeError("the withdrawal's state and reason are not texts")
    return Withdrawal(state, reason, _parse_time(document["at"]))


def _time_text(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
