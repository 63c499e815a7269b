"""Verified artifacts on the device's disk.

::

    <cache>/
    ├── artifacts/<cid>/<name>.<ext>    complete and verified when they got there
    ├── partial/                        being written, or on their way out
    ├── resolved/<gateway>/…json        what the gateway said of versions
    └── login.json                      the CLI's token

Several processes may use one cache at once without a lock: files get unique names in
``partial/`` and come and go by renaming, so nothing half-written is ever visible.
Symbolic links below the cache directory are not followed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import shutil
import stat
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Union

from vision_o3.content.cid import CID
from vision_o3.content.dag import cid_of_bytes, cid_of_stream
from vision_o3.errors import CacheError, StorageFullError

DEFAULT_MAX_BYTES = 10 << 30
SPARE_BYTES = 16 << 20
"""Left free on the disk, beside what a file needs."""
_STALE_AFTER_S = 24 * 3600.0
"""A file in ``partial/`` untouched for so long belongs to nobody."""
_MAX_RECORD_SIZE = 1 << 20
_LOOK_AGAIN = 64
"""A cache may grow over its limit by one part in so many."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_log = logging.getLogger(__name__)


class CachedArtifact(NamedTuple):
    """What the cache holds of one CID."""

    cid: str
    files: List[Path]
    size: int
    used_at: float


class PartialFile(NamedTuple):
    """A file that is being written; gone at the end unless it was kept."""

    descriptor: int
    path: Path


class Cache:
    """Artifacts by CID, least recently used out first.

    Args:
        directory: Made when something is kept. ``~`` is the user's home.
        max_bytes: What ``evict`` keeps at most, not counting the newest artifact.
    """

    def __init__(
        self, directory: Union[str, Path], max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        self.directory = Path(directory).expanduser()
        self._max_bytes = max_bytes
        self._artifacts = self.directory / "artifacts"
        self._partial = self.directory / "partial"
        self._kept_bytes = max_bytes
        """Since ``evict`` looked at the cache; at first as many as are looked for."""

    def find(
        self, cid: CID, filename: Optional[str] = None, *, verify: bool = True
    ) -> Optional[Path]:
        """Return the file that a CID names, or ``None`` if it is not here.

        Args:
            cid: The content.
            filename: What it should be called; default: as it is.
            verify: Read the whole file and drop it if it is not what the CID names.

        Returns:
            A path whose use now counts as recent.
        """
        for path in self._candidates(cid, filename):
            if verify and not self._is_right(path, cid):
                continue
            named = path if filename is None else self._named(path, filename)
            if named is not None:
                with contextlib.suppress(OSError):  # a cache that is read-only
                    os.utime(path.parent)
                return named
        return None

    def read(self, cid: CID, max_size: int) -> Optional[bytes]:
        """Return the content that a CID names, verified, or ``None`` if it is not here.

        For what is small enough to be held in memory. A file that is not what the CID
        names is dropped.

        Args:
            cid: The content.
            max_size: Bytes; a longer file is as if it were not here.
        """
        for path in self._candidates(cid):
            try:
                with _open(path) as file:
                    if os.fstat(file.fileno()).st_size > max_size:
                        continue
                    content = file.readall()
            except OSError as error:
                _log.warning("artifact.unreadable: %s: %s", path, error)
                continue
            actual = cid_of_bytes(content)
            if actual == cid:
                with contextlib.suppress(OSError):  # a cache that is read-only
                    os.utime(path.parent)
                return content
            _drop_rotten(path, cid, actual)
        return None

    @contextmanager
    def write(self, size: int) -> Iterator[PartialFile]:
        """Yield a new file to write ``size`` bytes to; pass it to ``keep``.

        Makes room first: removes artifacts if the disk is too full.

        Raises:
            StorageFullError: The disk cannot hold it.
            CacheError: The cache cannot be written.
        """
        with _storage_errors(self.directory):
            self._partial.mkdir(parents=True, exist_ok=True)
            self._drop_stale()
            self._make_room(size)
            path = self._partial / f"{os.urandom(12).hex()}.part"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            descriptor = os.open(path, flags, 0o666)
        try:
            with _storage_errors(self.directory):
                yield PartialFile(descriptor, path)
        finally:
            os.close(descriptor)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def keep(self, partial: PartialFile, cid: CID, filename: str) -> Path:
        """Make a written and verified file visible, safe from power loss.

        Raises:
            CacheError: The cache cannot be written.
        """
        target = self._artifacts / str(cid) / filename
        with _storage_errors(self.directory):
            self._kept_bytes += os.fstat(partial.descriptor).st_size
            os.fsync(partial.descriptor)
            for _ in range(3):
                _make_directory(target.parent)
                try:
                    partial.path.replace(target)
                except FileNotFoundError:  # another process evicted the directory
                    continue
                break
            else:
                raise CacheError(f"{target} cannot be made.")
            _sync_directory(target.parent)
        return target

    def evict(self, keep: Optional[CID] = None) -> None:
        """Remove the least recently used beyond the limit, but never ``keep``.

        It takes long to look at many small files. So with ``keep``, which is to say
        after each of them, nothing is done before a small part of the limit was kept.
        """
        if keep is not None and self._kept_bytes <= self._max_bytes // _LOOK_AGAIN:
            return
        self._kept_bytes = 0
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        for entry in entries:
            if total <= self._max_bytes:
                break
            if keep is None or entry.cid != str(keep):
                self._remove(self._artifacts / entry.cid)
                total -= entry.size

    def entries(self) -> List[CachedArtifact]:
        """Return what is here, least recently used first."""
        found = []
        for directory in _children(self._artifacts):
            files = list(self._files(directory))
            if not files:
                continue
            with contextlib.suppress(OSError):  # another process removed it
                # A file under two names is counted once.
                states = {state.st_ino: state for state in map(os.lstat, files)}
                size = sum(state.st_size for state in states.values())
                used_at = directory.stat().st_mtime
                found.append(CachedArtifact(directory.name, files, size, used_at))
        return sorted(found, key=lambda entry: entry.used_at)

    def size(self) -> int:
        """Return the bytes of all artifacts."""
        return sum(entry.size for entry in self.entries())

    def clear(self) -> None:
        """Remove all artifacts and what is known of versions.

        Transfers of other processes go on; so does the CLI's login.

        Raises:
            CacheError: Something cannot be removed.
        """
        with _storage_errors(self.directory):
            self._drop_stale()
            for directory in _children(self._artifacts):
                self._remove(directory)
            for directory in _children(self.directory / "resolved"):
                shutil.rmtree(directory, ignore_errors=True)
        if self.entries():
            raise CacheError(f"Not all of {self._artifacts} could be removed.")

    def _files(self, directory: Path) -> Iterator[Path]:
        """Yield the regular files of an artifact's directory, none if it is a link."""
        if not directory.is_symlink():
            for path in _children(directory):
                if not path.is_symlink() and path.is_file():
                    yield path

    def _candidates(self, cid: CID, filename: Optional[str] = None) -> Iterator[Path]:
        """Yield the files of an artifact, that of the name first.

        The others are listed only when they are asked for: a content that many files
        of a dataset have, such as the empty one, has as many names here.
        """
        directory = self._artifacts / str(cid)
        if filename is not None and not directory.is_symlink():
            named = directory / filename
            if not named.is_symlink() and named.is_file():
                yield named
        for path in self._files(directory):
            if path.name != filename:
                yield path

    def _is_right(self, path: Path, cid: CID) -> bool:
        """Whether a file is what the CID names; if it is not, remove it."""
        try:
            with _open(path) as file:
                actual = cid_of_stream(file).root
        except OSError as error:
            _log.warning("artifact.unreadable: %s: %s", path, error)
            return False
        if actual != cid:
            _drop_rotten(path, cid, actual)
        return actual == cid

    @staticmethod
    def _named(path: Path, filename: str) -> Optional[Path]:
        """Return the same content under another name, if the disk knows hard links."""
        if path.name == filename:
            return path
        named = path.with_name(filename)
        try:
            if named.is_symlink():
                named.unlink()
            os.link(path, named)
        except FileExistsError:  # another process was faster, or it is a directory
            return named if named.is_file() else None
        except OSError:
            return None
        return named

    def _make_room(self, size: int) -> None:
        needed = size + SPARE_BYTES
        free = shutil.disk_usage(self.directory).free
        if needed <= free:
            return
        entries = self.entries()
        if needed > free + sum(entry.size for entry in entries):
            raise StorageFullError(
                f"The disk of {self.directory} has {free} bytes free; {needed} are "
                "needed. Make room, or choose another cache directory.",
                expected=needed,
                actual=free,
            )
        for entry in entries:
            if needed <= free:
                break
            self._remove(self._artifacts / entry.cid)
            free = shutil.disk_usage(self.directory).free

    def _remove(self, directory: Path) -> None:
        """Remove an artifact at once as others see it."""
        doomed = self._partial / f"{os.urandom(12).hex()}.gone"
        with contextlib.suppress(OSError):  # another process was faster
            self._partial.mkdir(parents=True, exist_ok=True)
            directory.replace(doomed)
            _delete(doomed)

    def _drop_stale(self) -> None:
        """Remove what processes that died left behind."""
        for path in _children(self._partial):
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime < time.time() - _STALE_AFTER_S:
                    _delete(path)


class Resolutions:
    """What one gateway said of versions: small files, each replaced as a whole.

    A version never changes, so what was said of one stays true; of ``latest`` it is the
    last known answer.
    """

    LATEST = "latest"

    def __init__(self, cache: Cache, gateway_url: str) -> None:
        gateway = hashlib.sha256(gateway_url.encode()).hexdigest()[:32]
        self._root = cache.directory / "resolved" / gateway

    @classmethod
    def key(cls, name: str, version: Optional[int]) -> str:
        """Return the key of a version of a line, by default its latest."""
        return f"{name}@{cls.LATEST if version is None else version}"

    def find(self, collection: str, key: str) -> Optional[Dict[str, Any]]:
        """Return the document kept under a key, or ``None``."""
        path = self._root / collection / f"{key}.json"
        try:
            if path.is_symlink() or path.stat().st_size > _MAX_RECORD_SIZE:
                return None
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    def keep(self, collection: str, key: str, document: Dict[str, Any]) -> None:
        """Keep a document. Where that is impossible nothing is kept: it is no loss."""
        try:
            directory = self._root / collection
            directory.mkdir(parents=True, exist_ok=True)
            replace_text(directory / f"{key}.json", json.dumps(document))
        except OSError as error:
            _log.debug("resolution.not_kept: %s", error)


def replace_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a small file; others see the old one or the new one, whole.

    Raises:
        OSError: It cannot be written.
    """
    temporary = path.with_name(f".{os.urandom(12).hex()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _open(path: Path) -> io.FileIO:
    """Open a file for reading, unless it is a link."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return io.FileIO(os.open(path, flags))


def _drop_rotten(path: Path, cid: CID, actual: CID) -> None:
    _log.warning(
        "artifact.rotten: %s is not what its CID names any more; it is dropped.",
        path,
        extra={"cid": str(cid), "actual": str(actual)},
    )
    with contextlib.suppress(OSError):
        path.unlink()


@contextmanager
def _storage_errors(directory: Path) -> Iterator[None]:
    """Turn the operating system's errors into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError(
                f"The disk of {directory} is full. Make room, or choose another "
                "cache directory."
            ) from error
        raise CacheError(
            f"The cache {directory} cannot be written: {error.strerror or error}. "
            "Choose another cache directory, or mend its permissions."
        ) from error


def _children(directory: Path) -> List[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _make_directory(path: Path) -> None:
    """Make a directory, also where a link stands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISLNK(path.lstat().st_mode):
            path.unlink()
    path.mkdir(exist_ok=True)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync_directory(path: Path) -> None:
    with contextlib.suppress(OSError):  # not every system can
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
