"""From a name, a version or a CID to what the gateway says of it, now or before."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Optional, Type
from urllib.parse import quote

from vision_o3.errors import IntegrityError, VisionO3Error
from vision_o3.naming import parse_name, parse_version
from vision_o3.sdk.cache import Resolutions
from vision_o3.sdk.problems import not_understood
from vision_o3.sdk.versions import Info, VersionInfo, parse_info

if TYPE_CHECKING:
    from vision_o3.sdk.cache import Cache
    from vision_o3.sdk.session import Session

_log = logging.getLogger(__name__)


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
            VisionO3Error: The gateway could not be asked, or refused.
        """
        key = Resolutions.key(parse_name(name), version)
        path = f"/{kind.collection}/{quote(name)}"
        known = self._known(kind, key)
        if version is not None:
            path += f"/versions/{parse_version(version)}"
            if known is not None:
                return known
        try:
            info = parse_info(kind, self._session.get_object(path))
        except VisionO3Error as error:
            if known is None or not error.retryable:
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
        path = f"/{kind.collection}/cid/{cid}"
        info = parse_info(kind, self._session.get_object(path))
        if info.cid != cid:
            raise not_understood(f"it is about {info.cid}, not {cid}")
        self._resolutions.keep(kind.collection, cid, info.document())
        return info

    def _known(self, kind: Type[Info], key: str) -> Optional[Info]:
        """Return what the gateway said before, if it did."""
        document = self._resolutions.find(kind.collection, key)
        try:
            return None if document is None else parse_info(kind, document)
        except VisionO3Error:  # damaged: as if it were not there
            return None

    def _remember(self, info: Info, key: str) -> None:
        own_key = Resolutions.key(info.name, info.version)
        known = self._known(type(info), own_key)
        if known is not None:
            _expect_same(info, known.cid, info.cid)
            listed = getattr(known, "manifest_cid", None)
            if listed is not None:
                _expect_same(info, listed, getattr(info, "manifest_cid", None))
        for each in {key, own_key}:
            self._resolutions.keep(info.collection, each, info.document())


def _expect_same(info: VersionInfo, before: str, now: Optional[str]) -> None:
    if now != before:
        raise IntegrityError(
            f"Version {info.version} of {info.name} was {before}, and now the gateway "
            f"says {now}. Versions never change: distrust it. If the registry was set "
            "up anew, clear the cache ('vision-o3 cache clear').",
            expected=before,
            actual=now,
        )
