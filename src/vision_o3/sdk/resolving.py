"""From a name, a version or a CID to what the gateway says of it, now or before."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Type
from urllib.parse import quote

from vision_o3.errors import (
    IntegrityError,
    NotFoundError,
    OfflineError,
    VisionO3Error,
)
from vision_o3.naming import parse_name, parse_version
from vision_o3.sdk import disk
from vision_o3.sdk.logs import logger
from vision_o3.sdk.problems import not_understood
from vision_o3.sdk.versions import (
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
_log = logger(__name__)


class Resolutions:
    """What one gateway said of versions: small files, each replaced as a whole.

    A version never changes, so what was said of one stays true; of ``latest`` it is the
    last known answer. A file that was damaged since is as if it were not there.
    """

    LATEST = "latest"

    def __init__(self, cache: Cache, gateway_url: str) -> None:
        self._cache = cache.directory
        self._gateway = hashlib.sha256(gateway_url.encode()).hexdigest()[:32]

    @classmethod
    def key(cls, name: str, version: Optional[int]) -> str:
        """Return the key of a version of a line, by default its latest."""
        return f"{name}@{cls.LATEST if version is None else version}"

    def find(self, collection: str, key: str) -> Optional[Dict[str, Any]]:
        """Return the document kept under a key, or ``None``."""
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
        # RecursionError: brackets without end.
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return document if is_whole and isinstance(document, dict) else None

    def keys(self, collection: str) -> Iterator[str]:
        """Yield the keys that something is kept under."""
        for path in disk.children(self._directory(collection)):
            if path.suffix == ".json":
                yield path.stem

    def keep(self, collection: str, key: str, document: Dict[str, Any]) -> None:
        """Keep a document. Where that is impossible nothing is kept: it is no loss."""
        try:
            names = self._directory(collection).relative_to(self._cache).parts
            directory = disk.make_directory(self._cache, *names)
            kept = {"sha256": _digest(document), "document": document}
            disk.replace_text(directory / f"{key}.json", json.dumps(kept))
        except OSError as error:
            _log.debug("resolution.not_kept: %s", error)

    def _directory(self, collection: str) -> Path:
        return self._cache / "resolved" / self._gateway / collection


class Resolver:
    """Asks one gateway what versions there are, and keeps what it said."""

    def __init__(self, session: Session, cache: Cache) -> None:
        self._session = session
        self._resolutions = Resolutions(cache, session.url)

    def resolve(self, kind: Type[Info], name: str, version: Optional[int]) -> Info:
        """Return what is known of a version, by default of the latest.

        A version that was seen before needs no network. For the latest, the last known
        answer serves where the gateway cannot be asked, marked ``stale``.

        Raises:
            NotFoundError: There is no such line or version.
            InvalidNameError, InvalidVersionError: Neither can there be.
            IntegrityError: A version is now said to have other content than before.
            OfflineError: The gateway may not be asked, and it was not before.
            VisionO3Error: The gateway could not be asked, or refused.
        """
        key = Resolutions.key(parse_name(name), version)
        path = f"/{kind.collection}/{quote(name)}"
        known = self._known(kind, key)
        if version is not None:
            path += f"/versions/{parse_version(version)}"
            if known is not None:
                return known
        if known is None:
            which = "The latest version" if version is None else f"Version {version}"
            expect_online(self._session, f"{which} of {name}")
        try:
            info = parse_info(kind, self._session.get_object(path))
        except VisionO3Error as error:
            passes = error.retryable or isinstance(error, OfflineError)
            if known is None or not passes:
                raise
            _log.warning(
                "latest.stale: %s Version %d of %s was the latest when last asked.",
                error.message,
                known.version,
                name,
                extra={"code": error.code, "version": known.version},
            )
            return replace(known, stale=True)
        if info.name != name or version not in (None, info.version):
            raise not_understood(f"it is about {info.name} version {info.version}")
        self._remember(info, key)
        return info

    def resolve_cid(self, kind: Type[Info], cid: str) -> Info:
        """Return what is known of a version that has this content.

        Args:
            kind: Models or datasets.
            cid: The content, as ``CID.parse`` accepts it.

        Raises:
            NotFoundError: Nothing of this kind has this content.
            VisionO3Error: The gateway could not be asked, or refused.
        """
        known = self._known(kind, cid)
        if known is not None:
            return known
        expect_online(self._session, f"What has the CID {cid}")
        path = f"/{kind.collection}/cid/{cid}"
        info = parse_info(kind, self._session.get_object(path))
        if info.cid != cid:
            raise not_understood(f"it is about {info.cid}, not {cid}")
        self._remember(info, cid)
        return info

    def find_by_cid(self, cid: str) -> Optional[VersionInfo]:
        """Return a version of any kind that has this content, ``None`` if none has.

        Raises:
            VisionO3Error: As ``resolve_cid`` says.
        """
        for kind in (ModelInfo, DatasetInfo):
            known = self._known(kind, cid)
            if known is not None:
                return known
        for kind in (ModelInfo, DatasetInfo):
            try:
                return self.resolve_cid(kind, cid)
            except NotFoundError:
                continue
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
        """Return what the gateway said before, if it did."""
        document = self._resolutions.find(kind.collection, key)
        try:
            info = None if document is None else parse_info(kind, document)
        except VisionO3Error:  # of another release: as if it were not there
            return None
        return info if info is not None and key in _keys(info) else None

    def _remember(self, info: Info, key: str) -> None:
        own_key = Resolutions.key(info.name, info.version)
        known = self._known(type(info), own_key)
        if known is not None:
            _expect_same(info, known.cid, info.cid)
            listed = getattr(known, "manifest_cid", None)
            if listed is not None:
                _expect_same(info, listed, getattr(info, "manifest_cid", None))
        for each in {key, own_key, info.cid}:
            self._resolutions.keep(info.collection, each, info.document())


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


def _keys(info: VersionInfo) -> List[str]:
    """Return under which keys a version may be kept."""
    line = info.name
    return [
        Resolutions.key(line, info.version),
        Resolutions.key(line, None),
        info.cid,
    ]


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
