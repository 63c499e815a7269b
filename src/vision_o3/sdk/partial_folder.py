"""The folder of a cache in which files come into being, and from which they go.

Names with a CID are of transfers that can go on: ``partials`` says how. All others are
one process's own, and garbage once that has died.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import List, Optional, Tuple

from vision_o3.content.cid import CID
from vision_o3.errors import InvalidCIDError
from vision_o3.sdk import disk

_STALE_AFTER_S = 24 * 3600.0
"""A file untouched for so long belongs to nobody."""
_GIVEN_UP_AFTER_S = 7 * 24 * 3600.0
"""A transfer that could go on, and did not for so long, is given up."""


class PartialFolder:
    """Names, begins and removes partial files.

    Args:
        cache: The cache's directory.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._path = cache / "partial"

    def of(self, cid: CID) -> Path:
        """Return where a CID's content lies as long as it is not complete."""
        return self._path / f"{cid}.part"

    def make(self) -> None:
        """Make the folder.

        Raises:
            OSError: It cannot be made.
        """
        disk.make_directory(self._cache, self._path.name)

    def new_path(self, extension: str = "part") -> Path:
        """Return a name that nobody else has; the folder is made.

        Raises:
            OSError: It cannot be made.
        """
        self.make()
        return self._path / f"{os.urandom(12).hex()}.{extension}"

    def begin_with(self, path: Path, cid: CID) -> None:
        """Let a transfer go on from a rotten file, unless one has begun already.

        The file keeps its own name too. Where links are not known, nothing is done.
        """
        with contextlib.suppress(OSError):
            self.make()
            path.chmod(path.stat().st_mode | 0o600)
            os.close(os.open(path, os.O_RDWR))  # else no transfer could go on from it
            os.utime(path)  # it begins now
            os.link(path, self.of(cid))

    def remove(self, path: Path) -> None:
        """Remove something of the cache, at once as others see it.

        Raises:
            BlockingIOError: It is a partial file, and somebody goes on with it.
            OSError: It cannot be removed.
        """
        if path.parent == self._path:
            disk.delete_unused(path)
            return
        doomed = self.new_path("gone")
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            path.replace(doomed)
            disk.delete(doomed)

    def unused(self) -> List[Tuple[Path, int]]:
        """Return the files of transfers that nobody goes on with, and their bytes."""
        found = []
        for path in self._resumable():
            with contextlib.suppress(OSError):  # another process removed it
                if disk.is_unused(path):
                    found.append((path, disk.size_on_disk(path.lstat())))
        return found

    def sweep(self, spare: Optional[CID] = None) -> int:
        """Remove what processes that died left, and transfers given up; return bytes.

        Where that is impossible it stays, and so does the transfer of ``spare``.
        """
        freed = 0
        now = time.time()
        resumable = set(self._resumable())
        spared = None if spare is None else self.of(spare)
        for path in disk.children(self._path):
            if path == spared:
                continue
            with contextlib.suppress(OSError):
                state = path.lstat()
                if path in resumable:
                    if state.st_mtime < now - _GIVEN_UP_AFTER_S:
                        freed += disk.delete_unused(path)
                elif state.st_mtime < now - _STALE_AFTER_S:
                    disk.delete(path)
                    freed += disk.size_on_disk(state)
        return freed

    def _resumable(self) -> List[Path]:
        return [
            path
            for path in disk.children(self._path)
            if path.suffix == ".part" and _is_cid(path.stem) and disk.is_plain(path)
        ]


def _is_cid(text: str) -> bool:
    try:
        CID.parse(text)
    except InvalidCIDError:
        return False
    return True
