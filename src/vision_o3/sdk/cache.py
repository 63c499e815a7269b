"""Verified artifacts on the device's disk.

::

    <cache>/
    ├── artifacts/<cid>/<name>.<ext>    complete and verified when they got there
    ├── partial/<cid>.part              begun or rotten: the next download mends it
    ├── partial/…                       being written, or on their way out
    ├── pins/<cid>                      what is never evicted
    ├── resolved/<gateway>/…json        what the gateway said of versions
    └── login.json                      the CLI's token

Several processes may use one cache at once without a lock: files come and go by
renaming, so nothing half-written is ever visible. Symbolic links below the cache
directory are not followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Set,
    Tuple,
    Union,
)

from vision_o3.content.cid import CID
from vision_o3.content.dag import cid_of_bytes, cid_of_stream
from vision_o3.errors import (
    CacheError,
    InvalidCIDError,
    StorageFullError,
    VisionO3Error,
)
from vision_o3.sdk import disk
from vision_o3.sdk.logs import logger
from vision_o3.sdk.partial_folder import PartialFolder
from vision_o3.sdk.verifier import _Followed

if TYPE_CHECKING:
    from vision_o3.sdk.download import Progress

DEFAULT_MAX_BYTES = 10 << 30
SPARE_BYTES = 16 << 20
"""Left free on the disk, beside what a file needs."""
_LOOK_AGAIN = 64
"""A cache may grow over its limit by one part in so many."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
RIGHT = "right"
ROTTEN = "rotten"
UNREADABLE = "unreadable"
_log = logger(__name__)


class CachedArtifact(NamedTuple):
    """What the cache holds of one CID."""

    cid: str
    files: List[Path]
    size: int
    used_at: float
    pinned: bool


class CheckedFile(NamedTuple):
    """What became known of a file of the cache.

    Attributes:
        cid: What it should be.
        path: Where it is, or was.
        state: ``right``, ``rotten`` or ``unreadable``; after a repair ``mended``
            instead, or ``removed`` if no version has this content.
        error: Why it could not be mended.
    """

    cid: str
    path: Path
    state: str
    error: Optional[VisionO3Error] = None


class PartialFile(NamedTuple):
    """A file that is being written; gone at the end unless it was kept."""

    descriptor: int
    path: Path


class Cache:
    """Artifacts by CID, least recently used out first.

    Args:
        directory: Made when something is kept. ``~`` is the user's home.
        max_bytes: What ``evict`` keeps at most, not counting the newest artifact and
            those that are pinned.
    """

    def __init__(
        self, directory: Union[str, Path], max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        self.directory = Path(directory).expanduser()
        self._max_bytes = max_bytes
        self._artifacts = self.directory / "artifacts"
        self._partial = PartialFolder(self.directory)
        self._pins = self.directory / "pins"
        self._kept_bytes = max_bytes
        """Since ``evict`` looked at the cache; at first as many as are looked for."""

    # Reading

    def find(
        self, cid: CID, filename: Optional[str] = None, *, verify: bool = True
    ) -> Optional[Path]:
        """Return the file that a CID names, or ``None`` if it is not here.

        Args:
            cid: The content.
            filename: What it should be called; default: as it is.
            verify: Read the whole file; set it aside if it is not what the CID names.

        Returns:
            A path whose use now counts as recent.
        """
        for path in self._candidates(cid, filename):
            if verify and self._state_of(path, cid) != RIGHT:
                continue
            named = path if filename is None else self._named(path, filename)
            if named is not None:
                _use(path)
                return named
        return None

    def read(self, cid: CID, max_size: int) -> Optional[bytes]:
        """Return the content that a CID names, verified, or ``None`` if it is not here.

        For what is small enough to be held in memory. A file that is not what the CID
        names is set aside.

        Args:
            cid: The content.
            max_size: Bytes; a longer file is as if it were not here.
        """
        for path in self._candidates(cid):
            try:
                with disk.open_file(path) as file:
                    if os.fstat(file.fileno()).st_size > max_size:
                        continue
                    content = file.readall()
            except OSError as error:
                _log.warning("artifact.unreadable: %s: %s", path, error)
                continue
            actual = cid_of_bytes(content)
            if actual == cid:
                _use(path)
                return content
            self._set_aside(path, cid, actual)
        return None

    def entries(self) -> List[CachedArtifact]:
        """Return what is here, least recently used first."""
        pins = self.pins()
        found = []
        for directory in disk.children(self._artifacts):
            files = list(self._files(directory))
            if not files:
                continue
            with contextlib.suppress(OSError):  # another process removed it
                # A file under two names is counted once.
                states = {state.st_ino: state for state in map(os.lstat, files)}
                size = sum(state.st_size for state in states.values())
                used_at = directory.stat().st_mtime
                name = directory.name
                entry = CachedArtifact(name, files, size, used_at, name in pins)
                found.append(entry)
        return sorted(found, key=lambda entry: entry.used_at)

    def size(self) -> int:
        """Return the bytes of all artifacts."""
        return sum(entry.size for entry in self.entries())

    # Writing

    @contextmanager
    def write(self, size: int) -> Iterator[PartialFile]:
        """Yield a new file to write ``size`` bytes to; pass it to ``keep``.

        Makes room first: removes artifacts if the disk is too full.

        Raises:
            StorageFullError: The disk cannot hold it.
            CacheError: The cache cannot be written.
        """
        with storage_errors(self.directory):
            self._partial.sweep()
            path = self._partial.new_path()
            self.make_room(size)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            descriptor = os.open(path, flags, 0o666)
        try:
            with storage_errors(self.directory):
                yield PartialFile(descriptor, path)
        finally:
            os.close(descriptor)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def partial_path(self, cid: CID) -> Path:
        """Return where a CID's content lies as long as it is not complete.

        The folder is made. The file stays for a week after it was last written, or
        until its room is needed; but not while it is locked.

        Raises:
            CacheError: The cache cannot be written.
        """
        with storage_errors(self.directory):
            self._partial.make()
            self._partial.sweep(spare=cid)
        return self._partial.of(cid)

    def keep(self, partial: PartialFile, cid: CID, filename: str) -> Path:
        """Make a written and verified file visible, safe from power loss.

        Raises:
            CacheError: The cache cannot be written.
        """
        target = self._artifacts / str(cid) / filename
        with storage_errors(self.directory):
            state = os.fstat(partial.descriptor)
            self._kept_bytes += state.st_size
            os.fsync(partial.descriptor)
            for _ in range(3):
                disk.make_directory(self.directory, self._artifacts.name, str(cid))
                # Never another file, though it got the same name.
                if not os.path.samestat(partial.path.lstat(), state):
                    raise CacheError(f"{partial.path} was replaced: try again.")
                try:
                    partial.path.replace(target)
                except FileNotFoundError:  # another process evicted the directory
                    continue
                break
            else:
                raise CacheError(f"{target} cannot be made.")
            # Of two names of one file, renaming leaves both.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(partial.path.lstat(), state):
                    partial.path.unlink()
            disk.sync_directory(target.parent)
        return target

    # Room

    def make_room(self, size: int) -> None:
        """Make sure that the disk can take so many bytes more.

        If it cannot, transfers that nobody goes on with are given up, then the least
        recently used artifacts removed, but none that is pinned.

        Raises:
            StorageFullError: That would not be enough. Nothing is removed then.
            CacheError: The disk cannot be looked at.
        """
        needed = size + SPARE_BYTES
        with storage_errors(self.directory):
            free = shutil.disk_usage(self.directory).free
            if needed <= free:
                return
            removable = [*self._partial.unused(), *self._evictable()]
            if needed <= free + sum(bytes_ for _, bytes_ in removable):
                for path, _ in removable:
                    with contextlib.suppress(OSError):  # it is in use now
                        self._partial.remove(path)
                    free = shutil.disk_usage(self.directory).free
                    if needed <= free:
                        return
        pinned = " or unpin artifacts" if self.pins() else ""
        raise StorageFullError(
            f"The disk of {self.directory} has {free} bytes free; {needed} are "
            f"needed. Make room{pinned}, or choose another cache directory.",
            expected=needed,
            actual=free,
        )

    def evict(self, keep: Optional[CID] = None) -> None:
        """Remove the least recently used beyond the limit, but never ``keep``.

        It takes long to look at many small files. So with ``keep``, which is to say
        after each of them, nothing is done before a small part of the limit was kept.
        """
        if keep is not None and self._kept_bytes <= self._max_bytes // _LOOK_AGAIN:
            return
        self._kept_bytes = 0
        self._shrink(self._max_bytes, keep)

    def prune(self, max_bytes: Optional[int] = None) -> int:
        """Remove the least recently used beyond a limit, and transfers given up.

        What is pinned stays, and counts.

        Args:
            max_bytes: Default: the cache's own limit.

        Returns:
            The bytes that were removed.

        Raises:
            CacheError: Something cannot be removed.
        """
        freed = self._partial.sweep()
        removed, failure = self._shrink(
            self._max_bytes if max_bytes is None else max_bytes
        )
        if failure is not None:
            with storage_errors(self.directory):
                raise failure
        return freed + removed

    def clear(self) -> None:
        """Remove all artifacts, pins too, and what is known of versions.

        Transfers of other processes go on; so does the CLI's login.

        Raises:
            CacheError: Something cannot be removed.
        """
        self._partial.sweep()
        roots = self._pins, self._artifacts, self.directory / "resolved"
        doomed = [path for path, _ in self._partial.unused()]
        for path in (
            *doomed,
            *(path for root in roots for path in disk.children(root)),
        ):
            with contextlib.suppress(OSError):  # said below, if it is still there
                self._partial.remove(path)
        if self.entries() or self.pins():
            raise CacheError(f"Not all of {self.directory} could be removed.")

    # Pins

    def pin(self, cid: CID) -> None:
        """Keep an artifact from being evicted, now or once it is here.

        Raises:
            CacheError: The cache cannot be written.
        """
        with storage_errors(self.directory):
            pins = disk.make_directory(self.directory, self._pins.name)
            path = pins / str(cid)
            if path.is_symlink():
                path.unlink()
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
            disk.sync_directory(pins)

    def unpin(self, cid: CID) -> bool:
        """Let an artifact be evicted; return whether it was pinned.

        Raises:
            CacheError: The cache cannot be written.
        """
        if str(cid) not in self.pins():
            return False
        with storage_errors(self.directory), contextlib.suppress(FileNotFoundError):
            (self._pins / str(cid)).unlink()
        return True

    def pins(self) -> Set[str]:
        """Return the CIDs that are pinned, also of what is not here."""
        return {path.name for path in disk.children(self._pins) if disk.is_plain(path)}

    # Checking

    def verify(self, progress: Optional[Progress] = None) -> Iterator[CheckedFile]:
        """Read every file, and yield what it is found to be.

        What is rotten is set aside, so that it is never returned again, and the next
        download of it fetches only what is wrong.

        Args:
            progress: Called with bytes read, and bytes in all.
        """
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        done = 0
        for entry in entries:
            cid = _parse(entry.cid)
            states: Dict[int, Optional[str]] = {}
            for path in entry.files:
                if cid is not None:
                    told = _from(progress, done, total)
                    yield from self._checked(path, cid, states, told)
            done += entry.size

    def directory_of(self, cid: CID) -> Path:
        """Return where the files of a CID are, if they are here."""
        return self._artifacts / str(cid)

    def missing(self) -> List[CID]:
        """Return the CIDs of what was here, and was set aside since it was rotten."""
        # Its directory stays: one that is evicted goes with its directory.
        empty = (
            _parse(directory.name)
            for directory in disk.children(self._artifacts)
            if not directory.is_symlink() and not disk.children(directory)
        )
        return [cid for cid in empty if cid is not None]

    def discard(self, cid: CID) -> None:
        """Remove what is left of a CID's content. Where that is impossible it stays."""
        with contextlib.suppress(OSError):
            self._partial.remove(self.directory_of(cid))
        with contextlib.suppress(OSError):
            disk.delete_unused(self._partial.of(cid))

    # Own

    def _files(self, directory: Path) -> Iterator[Path]:
        """Yield the regular files of an artifact's directory, none if it is a link."""
        return filter(disk.is_plain, disk.children(directory))

    def _candidates(self, cid: CID, filename: Optional[str] = None) -> Iterator[Path]:
        """Yield the files of an artifact, that of the name first.

        The others are listed only when they are asked for: a content that many files
        of a dataset have, such as the empty one, has as many names here.
        """
        directory = self._artifacts / str(cid)
        if self._artifacts.is_symlink() or directory.is_symlink():
            return
        if filename is not None and disk.is_plain(directory / filename):
            yield directory / filename
        for path in self._files(directory):
            if path.name != filename:
                yield path

    def _checked(
        self,
        path: Path,
        cid: CID,
        states: Dict[int, Optional[str]],
        progress: Optional[Progress],
    ) -> Iterator[CheckedFile]:
        """Yield what a file is, unless it is gone; of its other names it is known."""
        with contextlib.suppress(FileNotFoundError):
            number = path.lstat().st_ino
            if number not in states:
                states[number] = self._state_of(path, cid, progress)
            elif states[number] == ROTTEN:
                with contextlib.suppress(OSError):  # a cache that is read-only
                    path.unlink()
            state = states[number]
            if state is not None:
                yield CheckedFile(str(cid), path, state)

    def _state_of(
        self, path: Path, cid: CID, progress: Optional[Progress] = None
    ) -> Optional[str]:
        """Return what a file is, ``None`` if it is gone; set it aside if rotten."""
        try:
            with disk.open_file(path) as file:
                stream = file if progress is None else _Followed(file, progress)
                actual = cid_of_stream(stream).root
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("artifact.unreadable: %s: %s", path, error)
            return UNREADABLE
        if actual == cid:
            return RIGHT
        self._set_aside(path, cid, actual)
        return ROTTEN

    def _set_aside(self, path: Path, cid: CID, actual: CID) -> None:
        """Let a rotten file be the start of its next download, or remove it."""
        _log.warning(
            "artifact.rotten: %s is not what its CID names any more; it is not used.",
            path,
            extra={"cid": str(cid), "actual": str(actual)},
        )
        with contextlib.suppress(OSError):  # a cache that is read-only
            if not cid.is_raw:  # one leaf, and that one is wrong
                self._partial.begin_with(path, cid)
            path.unlink()

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

    def _evictable(self) -> Iterator[Tuple[Path, int]]:
        """Yield the directories that may be removed, and their bytes."""
        for entry in self.entries():
            if not entry.pinned:
                yield self._artifacts / entry.cid, entry.size

    def _shrink(
        self, max_bytes: int, keep: Optional[CID] = None
    ) -> Tuple[int, Optional[OSError]]:
        """Evict beyond a limit; return the bytes, and why something could not be."""
        excess = self.size() - max_bytes
        removed, failure = 0, None
        for directory, size in self._evictable() if excess > 0 else ():
            if removed >= excess:
                break
            if keep is None or directory.name != str(keep):
                try:
                    self._partial.remove(directory)
                    removed += size
                except OSError as error:
                    failure = error
        return removed, failure


def _use(path: Path) -> None:
    with contextlib.suppress(OSError):  # a cache that is read-only
        os.utime(path.parent)


def _parse(text: str) -> Optional[CID]:
    try:
        return CID.parse(text)
    except InvalidCIDError:
        return None


def _from(progress: Optional[Progress], before: int, total: int) -> Optional[Progress]:
    """Return what tells of one file as a part of all."""
    if progress is None:
        return None
    return lambda done, _: progress(min(before + done, total), total)


@contextmanager
def storage_errors(directory: Path) -> Iterator[None]:
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
