"""From a name, a version or a CID to what the gateway says of it, now or before.

What a version is never changes, so a version seen before needs no network. Whether it
was withdrawn since may change: where the gateway can be asked, it is asked again now
and then, briefly, and what it said last serves where it does not answer.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Generic,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
    Type,
    Union,
)
from urllib.parse import quote

from vision_o3.errors import (
    CancelledError,
    DeadlineExceededError,
    IntegrityError,
    NotFoundError,
    OfflineError,
    VersionBlockedError,
    VisionO3Error,
    WithdrawnError,
    from_code,
)
from vision_o3.naming import parse_name, parse_version
from vision_o3.sdk import disk
from vision_o3.sdk.logs import logger
from vision_o3.sdk.problems import not_understood
from vision_o3.sdk.session import read_object
from vision_o3.sdk.sources import blocked_query
from vision_o3.sdk.versions import (
    DEPRECATED,
    PURGED,
    DatasetInfo,
    Info,
    ModelInfo,
    VersionInfo,
    parse_info,
)

if TYPE_CHECKING:
    from pathlib import Path

    from vision_o3.sdk.cache import Cache
    from vision_o3.sdk.session import Session

_MAX_RECORD_SIZE = 17 << 20
_ASK_AGAIN_AFTER_S = 300.0
"""For so long an answer is not asked for again."""
_LONGEST_LOOK_S = 5.0
"""For so long, or half of what is left of a call, an answer is waited for that the
call can do without."""
_LEFT_ALONE_S = 60.0
"""For so long a gateway that did not answer is not asked for such an answer."""
_MOST_REMEMBERED = 1000
_REFUSED = "refused"
_log = logger(__name__)


class Kept(NamedTuple):
    """An answer of a gateway.

    Attributes:
        document: What it said.
        asked_at: When, in seconds since 1970; 0 if that is not known.
    """

    document: Dict[str, Any]
    asked_at: float


class Resolutions:
    """What one gateway said of versions: small files, each replaced as a whole.

    What a version is never changes, so what was said of that stays true; of ``latest``,
    and of what was withdrawn, it is the last known answer. A file that was damaged
    since is as if it were not there.
    """

    LATEST = "latest"

    def __init__(self, cache: Cache, gateway_url: str) -> None:
        self._cache = cache.directory
        self._gateway = hashlib.sha256(gateway_url.encode()).hexdigest()[:32]
        self._unwritten: Dict[Tuple[str, str], Kept] = {}

    @classmethod
    def key(cls, name: str, version: Optional[int]) -> str:
        """Return the key of a version of a line, by default its latest."""
        return f"{name}@{cls.LATEST if version is None else version}"

    def find(self, collection: str, key: str) -> Optional[Dict[str, Any]]:
        """Return the document kept under a key, or ``None``."""
        kept = self.look(collection, key)
        return None if kept is None else kept.document

    def look(self, collection: str, key: str) -> Optional[Kept]:
        """Return what is kept under a key, or ``None``."""
        unwritten = self._unwritten.get((collection, key))
        if unwritten is not None:
            return unwritten
        path = self._directory(collection) / f"{key}.json"
        if any(parent.is_symlink() for parent in list(path.parents)[:3]):
            return None
        if not disk.is_plain(path):
            return None
        try:
            with disk.open_file(path) as file:
                size = min(_MAX_RECORD_SIZE, os.fstat(file.fileno()).st_size)
                kept = json.loads(file.read(size).decode())
            document = kept["document"]
            is_whole = kept["sha256"] == _digest(document)
            asked_at = float(kept.get("asked_at", 0))  # none of an older release
        # RecursionError: brackets without end.
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        if not is_whole or not isinstance(document, dict):
            return None
        return Kept(document, asked_at)

    def keys(self, collection: str) -> Iterator[str]:
        """Yield the keys that something is kept under."""
        for path in disk.children(self._directory(collection)):
            if path.suffix == ".json":
                yield path.stem

    def keep(
        self,
        collection: str,
        key: str,
        document: Dict[str, Any],
        asked_at: float = 0.0,
    ) -> None:
        """Keep a document; in memory where it cannot be written, such as on a ROM."""
        unwritten = self._unwritten
        try:
            names = self._directory(collection).relative_to(self._cache).parts
            directory = disk.make_directory(self._cache, *names)
            kept = {
                "sha256": _digest(document),
                "asked_at": asked_at,
                "document": document,
            }
            disk.replace_text(directory / f"{key}.json", json.dumps(kept))
        except OSError as error:
            _log.debug("resolution.not_kept: %s", error)
            if len(unwritten) >= _MOST_REMEMBERED:
                unwritten.clear()
            unwritten[collection, key] = Kept(document, asked_at)
        else:
            unwritten.pop((collection, key), None)

    def forget_unwritten(self) -> None:
        """Forget what could not be written."""
        self._unwritten.clear()

    def _directory(self, collection: str) -> Path:
        return self._cache / "resolved" / self._gateway / collection


@dataclass(frozen=True)
class _Said(Generic[Info]):
    """What the gateway said last under a key.

    Attributes:
        answer: A version, or that none of those that were meant is to be used.
        asked_at: When, in seconds since 1970; 0 if it is to be asked again.
    """

    answer: Union[Info, WithdrawnError]
    asked_at: float

    @property
    def refuses(self) -> bool:
        """Whether what was asked for is not to be used."""
        return isinstance(self.answer, WithdrawnError) or _is_refused(self.answer)


class Resolver:
    """Asks one gateway what versions there are, and keeps what it said."""

    def __init__(self, session: Session, cache: Cache) -> None:
        self._session = session
        self._resolutions = Resolutions(cache, session.url)
        self._not_before: Dict[Tuple[str, str], float] = {}
        self._left_alone_until = float("-inf")

    def resolve(self, kind: Type[Info], name: str, version: Optional[int]) -> Info:
        """Return what is known of a version, by default of the latest.

        A version that was seen before needs no network. If there is one, the gateway is
        asked after a while whether the version was withdrawn since. For the latest, the
        last known answer serves where the gateway cannot be asked, marked ``stale``.

        Raises:
            NotFoundError: There is no such line or version.
            WithdrawnError: The latest is asked for, and all of the line are withdrawn.
            InvalidNameError, InvalidVersionError: Neither can there be.
            IntegrityError: A version is now said to have other content than before.
            OfflineError: The gateway may not be asked, and it was not before.
            VisionO3Error: The gateway could not be asked, or refused.
        """
        key = Resolutions.key(parse_name(name), version)
        path = f"/{kind.collection}/{quote(name)}"
        said = self._said(kind, key)
        if version is not None:
            path += f"/versions/{parse_version(version)}"
            if said is not None and not isinstance(said.answer, WithdrawnError):
                return self._look(kind, key, path, said) or said.answer
        if said is None:
            which = "The latest version" if version is None else f"Version {version}"
            expect_online(self._session, f"{which} of {name}")
        try:
            return self._ask(kind, key, path)
        except VisionO3Error as error:
            passes = error.retryable or isinstance(error, OfflineError)
            if said is None or not passes:
                raise
            known = said.answer
            if isinstance(known, WithdrawnError):
                raise known from error
            _log.warning(
                "latest.stale: %s Version %d of %s was the latest when last asked.",
                error.message,
                known.version,
                name,
                extra={"code": error.code, "version": known.version},
            )
            return replace(known, stale=True)

    def resolve_cid(
        self, kind: Type[Info], cid: str, *, allow_blocked: bool = False
    ) -> Info:
        """Return what is known of a version that has this content.

        Args:
            kind: Models or datasets.
            cid: The content, as ``CID.parse`` accepts it.
            allow_blocked: Also if all of its versions are blocked.

        Raises:
            NotFoundError: Nothing of this kind has this content.
            WithdrawnError: All that have it are withdrawn.
            VisionO3Error: The gateway could not be asked, or refused.
        """
        path = _path_of_cid(kind, cid, allow_blocked=allow_blocked)
        said = self._said(kind, cid)
        if said is not None and not _is_allowed(said, allow_blocked=allow_blocked):
            found = self._look(kind, cid, path, said)
            if found is not None:
                return found
            if isinstance(said.answer, WithdrawnError):
                raise said.answer
            return said.answer
        expect_online(self._session, f"What has the CID {cid}")
        return self._ask(kind, cid, path)

    def look_at_cid(
        self, kind: Type[Info], cid: str, *, allow_blocked: bool = False
    ) -> Optional[Info]:
        """Return what is known of a content that is here already, if anything is.

        It is not waited for a gateway that does not answer.

        Raises:
            WithdrawnError: All that have it are withdrawn, as was said last.
            VisionO3Error: As ``resolve_cid`` says, where that cannot be ignored.
        """
        path = _path_of_cid(kind, cid, allow_blocked=allow_blocked)
        said = self._said(kind, cid)
        found = self._look(kind, cid, path, said)
        if said is None or found is not None:
            return found
        if not isinstance(said.answer, WithdrawnError):
            return said.answer
        if not _is_allowed(said, allow_blocked=allow_blocked):
            raise said.answer
        return None

    def remember(self, info: Info, name: str, version: int) -> Info:
        """Keep what the gateway said when it was told of a change; return it.

        Raises:
            TransportError: It is about another version.
            IntegrityError: The version had other content before.
        """
        key = Resolutions.key(name, version)
        _expect_about(info, key)
        self._remember(info, key)
        return info

    def forget_withdrawal(self, kind: Type[Info], name: str, version: int) -> None:
        """Keep that a version is not withdrawn any more."""
        key = Resolutions.key(name, version)
        known = self._known(kind, key)
        if known is not None:
            self._remember(replace(known, withdrawal=None), key)

    def forget_unwritten(self) -> None:
        """Forget what could not be written to the cache."""
        self._resolutions.forget_unwritten()

    def find_by_cid(self, cid: str) -> Optional[VersionInfo]:
        """Return a version of any kind that has this content, ``None`` if none has.

        Raises:
            VisionO3Error: As ``resolve_cid`` says.
        """
        for kind in (ModelInfo, DatasetInfo):
            known = self._known(kind, cid)
            if known is not None:
                return known
        refusal: Optional[WithdrawnError] = None
        for kind in (ModelInfo, DatasetInfo):
            try:
                return self.resolve_cid(kind, cid)
            except NotFoundError:
                continue
            except WithdrawnError as error:
                refusal = error
        if refusal is not None:
            raise refusal
        return None

    def known_versions(self, kind: Type[Info], name: str) -> List[Info]:
        """Return the versions of a line that the gateway was asked for before."""
        latest = Resolutions.key(name, None)
        keys = [
            key
            for key in self._resolutions.keys(kind.collection)
            if key.startswith(f"{name}@") and key != latest
        ]
        known = (self._known(kind, key) for key in keys)
        found = [info for info in known if info is not None]
        return sorted(found, key=lambda info: info.version)

    def _known(self, kind: Type[Info], key: str) -> Optional[Info]:
        """Return the version that the gateway told of before, if it did."""
        said = self._said(kind, key)
        if said is None or isinstance(said.answer, WithdrawnError):
            return None
        return said.answer

    def _said(self, kind: Type[Info], key: str) -> Optional[_Said[Info]]:
        """Return what the gateway said last, if it did."""
        kept = self._resolutions.look(kind.collection, key)
        if kept is None:
            return None
        if _REFUSED in kept.document:
            refusal = _parse_refusal(kept.document[_REFUSED])
            return None if refusal is None else _Said(refusal, kept.asked_at)
        try:
            info = parse_info(kind, kept.document)
        except VisionO3Error:  # of another release: as if it were not there
            return None
        return _Said(info, kept.asked_at) if key in _keys(info) else None

    def _ask(
        self, kind: Type[Info], key: str, path: str, *, once: bool = False
    ) -> Info:
        """Return what the gateway says now, and keep it.

        Raises:
            VisionO3Error: As for any request; after all attempts, or after ``once``.
        """
        try:
            if once:
                with self._session.exchange("GET", path) as response:
                    document = read_object(response)
            else:
                document = self._session.get_object(path)
        except WithdrawnError as error:
            self._keep(kind.collection, key, {_REFUSED: _refusal_document(error)})
            raise
        info = parse_info(kind, document)
        _expect_about(info, key)
        self._remember(info, key)
        return info

    def _look(
        self, kind: Type[Info], key: str, path: str, said: Optional[_Said[Info]]
    ) -> Optional[Info]:
        """Return what the gateway says now, if it is time to ask, and it answers.

        What is not to be used is asked for each time: it may be free again.

        Raises:
            WithdrawnError, IntegrityError: It says so now.
            CancelledError, DeadlineExceededError: The call ended meanwhile.
        """
        session = self._session
        if session.offline or not self._may_look((kind.collection, key), said):
            return None
        bounds = session.bounds
        brief = bounds.at_most(min(_LONGEST_LOOK_S, bounds.left_s() / 2))
        try:
            with session.bounded(brief):
                return self._ask(kind, key, path, once=True)
        except (WithdrawnError, IntegrityError, CancelledError):
            raise
        except VisionO3Error as error:
            bounds.check()
            self._looked_in_vain((kind.collection, key), error)
            log = _log.debug if said is None else _log.warning
            log(
                "version.not_asked_again: %s What was said of %s before serves.",
                error.message,
                key,
                extra={"code": error.code},
            )
            return None

    def _may_look(self, key: Tuple[str, str], said: Optional[_Said[Info]]) -> bool:
        clock = self._session.clock
        if said is not None and not said.refuses:
            age_s = clock.time() - said.asked_at
            # A device without a battery may believe that it is 1970.
            if 0 <= age_s < _ASK_AGAIN_AFTER_S:
                return False
        not_before = self._not_before.get(key, float("-inf"))
        return clock.monotonic() >= max(not_before, self._left_alone_until)

    def _looked_in_vain(self, key: Tuple[str, str], error: VisionO3Error) -> None:
        now = self._session.clock.monotonic()
        if error.retryable or isinstance(error, DeadlineExceededError):
            self._left_alone_until = now + _LEFT_ALONE_S
            return
        if len(self._not_before) >= _MOST_REMEMBERED:
            self._not_before.clear()
        self._not_before[key] = now + _ASK_AGAIN_AFTER_S

    def _remember(self, info: Info, key: str) -> None:
        """Keep what the gateway says of a version, under all of its keys."""
        kind, collection = type(info), info.collection
        own_key, latest, by_cid = _keys(info)
        known = self._known(kind, own_key)
        if known is not None:
            _expect_same(info, known.cid, info.cid)
            listed = getattr(known, "manifest_cid", None)
            is_gone = info.withdrawal is not None and info.withdrawal.state == PURGED
            if listed is not None and not is_gone:
                _expect_same(info, listed, getattr(info, "manifest_cid", None))
        document = info.document()
        for each in {key, own_key}:
            self._keep(collection, each, document)
        if key != latest:
            self._refresh(info, latest, document)
        if key != by_cid:
            self._remember_cid(info, document)

    def _refresh(self, info: Info, key: str, document: Dict[str, Any]) -> None:
        """Let what is kept under another key say the same of the same version."""
        kept = self._known(type(info), key)
        if kept is None or not _is_same(kept, info):
            return
        if kept.withdrawal != info.withdrawal:
            self._resolutions.keep(info.collection, key, document)

    def _remember_cid(self, info: Info, document: Dict[str, Any]) -> None:
        """Keep what was said of a version as what is known of its content.

        That a version is blocked says nothing of others with the same content: what is
        known of these stays, and the gateway is asked as soon as it can be.
        """
        if not _is_refused(info):
            self._keep(info.collection, info.cid, document)
            return
        said = self._said(type(info), info.cid)
        if said is None or _is_same(said.answer, info):
            self._resolutions.keep(info.collection, info.cid, document)

    def _keep(self, collection: str, key: str, document: Dict[str, Any]) -> None:
        now = self._session.clock.time()
        self._resolutions.keep(collection, key, document, now)


def expect_online(session: Session, what: str) -> None:
    """Return if the network may be used.

    Args:
        session: Of the client.
        what: What would have to be fetched, for the error.

    Raises:
        OfflineError: It may not.
    """
    if session.offline:
        raise OfflineError(
            f"{what} is not in the cache, and the client was told to stay offline. "
            "Fetch it once with a network."
        )


def _keys(info: VersionInfo) -> Tuple[str, str, str]:
    """Return under which keys a version may be kept: its own, the latest's, the CID."""
    line = info.name
    return (
        Resolutions.key(line, info.version),
        Resolutions.key(line, None),
        info.cid,
    )


def _path_of_cid(kind: Type[Info], cid: str, *, allow_blocked: bool) -> str:
    return f"/{kind.collection}/cid/{cid}{blocked_query(allow_blocked)}"


def _is_refused(info: VersionInfo) -> bool:
    return info.withdrawal is not None and info.withdrawal.state != DEPRECATED


def _is_same(one: Union[VersionInfo, WithdrawnError], other: VersionInfo) -> bool:
    if isinstance(one, WithdrawnError):
        return False
    return (one.name, one.version) == (other.name, other.version)


def _is_allowed(said: _Said[Info], *, allow_blocked: bool) -> bool:
    """Whether a refusal is not one for a caller who takes what is blocked."""
    return allow_blocked and isinstance(said.answer, VersionBlockedError)


def _expect_about(info: VersionInfo, key: str) -> None:
    if key not in _keys(info):
        raise not_understood(
            f"it is about {info.name}@{info.version} ({info.cid}), not {key}"
        )


def _refusal_document(error: WithdrawnError) -> Dict[str, str]:
    return {
        "code": error.code,
        "message": error.message,
        "reason": str(error.values.get("reason", "")),
    }


def _parse_refusal(document: object) -> Optional[WithdrawnError]:
    """Return the error that was kept; ``None`` if it is of another release."""
    if not isinstance(document, dict):
        return None
    cls = from_code(str(document.get("code")))
    if cls is None or not issubclass(cls, WithdrawnError):
        return None
    return cls(str(document.get("message")), reason=str(document.get("reason")))


def _digest(document: Dict[str, Any]) -> str:
    """Return what tells a damaged document from a whole one."""
    text = json.dumps(document, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _expect_same(info: VersionInfo, before: str, now: Optional[str]) -> None:
    if now != before:
        raise IntegrityError(
            f"Version {info.version} of {info.name} was {before}, and now the gateway "
            f"says {now}. Versions never change: distrust it. If the registry was set "
            "up anew, clear the cache ('vision-o3 cache clear').",
            expected=before,
            actual=now,
        )
