"""Rotten files of the cache, fetched anew: of each only the leaves that are wrong."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, List, Optional

from vision_o3.content.cid import CID
from vision_o3.errors import CancelledError, DeadlineExceededError, VisionO3Error
from vision_o3.sdk.cache import RIGHT, ROTTEN, UNREADABLE, CheckedFile

if TYPE_CHECKING:
    from vision_o3.sdk.cache import Cache
    from vision_o3.sdk.download import Progress
    from vision_o3.sdk.resolving import Resolver
    from vision_o3.sdk.versions import VersionInfo

MENDED = "mended"
REMOVED = "removed"


def repair(
    cache: Cache,
    resolver: Resolver,
    download: Callable[[VersionInfo], Path],
    progress: Optional[Progress] = None,
) -> List[CheckedFile]:
    """Verify every file of a cache, and fetch anew what is not right.

    What was set aside before is fetched too. A file of an archive that was fetched by
    itself is removed: it is fetched when it is wanted.

    Args:
        cache: The cache.
        resolver: Tells what version has a content.
        download: Returns the path of a version's file, verified.
        progress: Called with bytes verified, and bytes in all.

    Raises:
        CancelledError, DeadlineExceededError: The call ended; what was mended is.
    """
    checked = []
    wrong: Dict[str, List[CheckedFile]] = {
        str(cid): [CheckedFile(str(cid), cache.directory_of(cid), ROTTEN)]
        for cid in cache.missing()
    }
    for each in cache.verify(progress):
        if each.state == RIGHT:
            checked.append(each)
        else:
            wrong.setdefault(each.cid, []).append(each)
    for files in wrong.values():
        checked += _mend(files, cache, resolver, download)
    return checked


def _mend(
    files: List[CheckedFile],
    cache: Cache,
    resolver: Resolver,
    download: Callable[[VersionInfo], Path],
) -> List[CheckedFile]:
    """Return what became of the wrong files of one CID."""
    cid = CID.parse(files[0].cid)
    try:
        info = resolver.find_by_cid(files[0].cid)
        if info is None:
            cache.discard(cid)
            return [each._replace(state=REMOVED) for each in files]
        for each in files:
            if each.state == UNREADABLE:
                with contextlib.suppress(OSError):  # then it is in the way below
                    each.path.unlink()
        whole = download(info)
    except (CancelledError, DeadlineExceededError):
        raise
    except VisionO3Error as error:
        return [each._replace(error=error) for each in files]
    if files[0].path == whole.parent:
        return [files[0]._replace(path=whole, state=MENDED)]
    for each in files:
        cache.find(cid, each.path.name, verify=False)  # under its own name again
    return [each._replace(state=MENDED) for each in files]
