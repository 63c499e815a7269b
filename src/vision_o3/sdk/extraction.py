"""Archives unpacked below a directory, each file visible once it is verified.

Paths come from the manifest alone. Below the target no link is followed: directories
are opened one by one from the target down, and files are made and renamed relative to
those, so a link that somebody puts there meanwhile leads nowhere either.

Memory is flat in the sizes of files and archive. What ``zipfile`` holds of a zip's
directory, about 1 KiB for each file, comes on top.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from contextlib import contextmanager
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Callable,
    ContextManager,
    Generator,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    cast,
)

from vision_o3.content.dag import ContentHasher, cid_of_stream
from vision_o3.errors import (
    AlreadyExistsError,
    CacheError,
    DigestMismatchError,
    IntegrityError,
    LengthMismatchError,
    MalformedBlockError,
    MissingBlockError,
    StorageFullError,
)
from vision_o3.sdk.download import write_at

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Type

    from vision_o3.content.manifest import FileEntry
    from vision_o3.sdk.download import Progress
    from vision_o3.sdk.versions import DatasetInfo

_PIECE_SIZE = 1 << 20
_TAR_BLOCK = 1 << 16
_HEADERS = 2 << 20
"""Bytes that a tar may spend on the headers of one file; paths have 4 KiB at most."""
_ZIP_UTF8 = 1 << 11
"""APPNOTE.TXT, section 4.4.4: the name is in UTF-8. Else it is in code page 437."""
_UNICODE_PATH = 0x7075
_EXTRA = struct.Struct("<2H")
_NO_FOLDER = (errno.ENOTDIR, errno.ELOOP, errno.EMLINK)
"""What systems answer where a link or a file is, and no directory."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,  # encrypted, nested too deep, or a method not known
    TypeError,
    ValueError,
)
"""What the standard library raises of archives that are not well formed."""


class Readable(Protocol):
    """The part of a binary stream that is used here."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes, none at the end."""
        ...


class Target:
    """A directory that verified files are put into. Use it in a ``with`` block.

    It is made, with its parents, if it is not there. The directory itself may be
    reached by links; below it none is followed. For one thread, one file at a time.

    Args:
        directory: The target.
        overwrite: Replace files that are not the right ones.

    Raises:
        StorageFullError, CacheError: It cannot be made or read.
    """

    def __init__(self, directory: Path, *, overwrite: bool = False) -> None:
        self._directory = directory
        self._overwrite = overwrite
        self._made: List[str] = []
        self._made_folders: List[str] = []
        with _disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            self._here, self._folder = "", os.dup(self._root)

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        os.close(self._folder)
        os.close(self._root)

    def has(self, entry: FileEntry) -> bool:
        """Return whether a file is there and right; it is read to find out.

        Raises:
            AlreadyExistsError: Something else is there that may not be replaced.
            CacheError: It cannot be read.
        """
        folder, _, name = entry.path.rpartition("/")
        with _disk_errors(self._directory):
            found = self._state(name) if self._enter(folder) else None
            if found is None:
                return False
            if stat.S_ISREG(found.st_mode) and found.st_size == entry.size:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
                with io.FileIO(os.open(name, flags, dir_fd=self._folder)) as file:
                    if cid_of_stream(file).root == entry.cid:
                        return True
            if not self._overwrite or stat.S_ISDIR(found.st_mode):
                raise self._in_the_way(entry.path, "is there, and is not that file")
            return False

    @contextmanager
    def new_file(self, entry: FileEntry) -> Iterator[int]:
        """Yield a descriptor to write a file to, which is visible when all went well.

        It is not synced to the disk: after a power loss, extract again.

        Raises:
            AlreadyExistsError: Something else is there.
            StorageFullError, CacheError: It cannot be written.
        """
        folder, _, name = entry.path.rpartition("/")
        temporary = f".{os.urandom(12).hex()}.part"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        with _disk_errors(self._directory):
            self._enter(folder, make=True)
            descriptor = os.open(temporary, flags, 0o666, dir_fd=self._folder)
            try:
                yield descriptor
                self._show(temporary, name, entry)
            except BaseException:
                os.unlink(temporary, dir_fd=self._folder)
                raise
            finally:
                os.close(descriptor)

    def _show(self, temporary: str, name: str, entry: FileEntry) -> None:
        """Give a written file its name, where nothing is that may not be replaced."""
        # On some disks "A" and "a" are one name: so look again.
        before = self._state(name)
        if before is not None and not self._overwrite:
            raise self._in_the_way(entry.path, "is there meanwhile")
        folder = self._folder
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        if before is None:
            self._made.append(entry.path)

    def undo(self) -> None:
        """Remove the files and directories that were made, as far as possible.

        What replaced another file stays: it is right, and the other one is gone.
        """
        for remove, paths in (
            (os.unlink, self._made),
            (os.rmdir, self._made_folders),
        ):
            for path in reversed(paths):
                folder, _, name = path.rpartition("/")
                with contextlib.suppress(OSError, AlreadyExistsError):
                    if self._enter(folder):
                        remove(name, dir_fd=self._folder)

    def _enter(self, folder: str, *, make: bool = False) -> bool:
        """Go to a folder; return whether it is there."""
        if folder == self._here:
            return True
        descriptor, at = os.dup(self._root), ""
        try:
            for part in folder.split("/") if folder else ():
                at = f"{at}/{part}".lstrip("/")
                if make:
                    self._make_folder(part, at, descriptor)
                inner = self._open_folder(part, at, descriptor)
                if inner is None:
                    return False
                os.close(descriptor)
                descriptor = inner
            # From now on the old one is closed instead of the new one.
            descriptor, self._folder, self._here = self._folder, descriptor, folder
        finally:
            os.close(descriptor)
        return True

    def _make_folder(self, name: str, path: str, parent: int) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=parent)
            self._made_folders.append(path)

    def _open_folder(self, name: str, path: str, parent: int) -> Optional[int]:
        try:
            return os.open(name, _FOLDER, dir_fd=parent)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in _NO_FOLDER:
                raise
            raise self._in_the_way(
                path, "is a link or a file where a directory belongs"
            ) from error

    def _state(self, name: str) -> Optional[os.stat_result]:
        try:
            return os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _in_the_way(self, path: str, why: str) -> AlreadyExistsError:
        return AlreadyExistsError(
            f"{self._directory / path} {why}. Extract to another directory"
            f"{'' if self._overwrite else ', or allow that files are overwritten'}.",
            path=str(self._directory / path),
        )


def unpack(
    archive: BinaryIO,
    info: DatasetInfo,
    wanted: Sequence[FileEntry],
    target: Target,
    progress: Optional[Progress] = None,
) -> None:
    """Put files of an archive into a directory, each once it is verified.

    Reads the archive once, in its own order. What is not wanted is passed over.

    Args:
        archive: The file, at its start.
        info: The version that it belongs to.
        wanted: Files of the version's manifest.
        target: Where they go.
        progress: Called with bytes written, and bytes in all.

    Raises:
        IntegrityError: The archive is not as its manifest says. What was put into the
            target is removed again.
        AlreadyExistsError, StorageFullError, CacheError: As for ``Target.new_file``.
    """
    left = {entry.path: entry for entry in wanted}
    done, total = 0, sum(entry.size for entry in wanted)
    what = f"version {info.version} of {info.name}"
    members = (_zip_members if info.format == "zip" else _tar_members)(archive)
    try:
        while left:
            with _readable(what):
                member = next(members, None)
            if member is None:
                raise MissingBlockError(
                    f"The archive of {what} lacks {len(left)} files of its manifest, "
                    f"such as {next(iter(left))}."
                )
            path = next((path for path in member.paths if path in left), None)
            if path is None:
                continue
            entry = left.pop(path)
            with target.new_file(entry) as file:
                _copy(member, entry, file, what)
            done += entry.size
            if progress is not None:
                progress(done, total)
    except IntegrityError:
        target.undo()
        raise
    finally:
        members.close()


class _Member(NamedTuple):
    """A file in an archive: under which paths it may be listed, and how to open it."""

    paths: Tuple[str, ...]
    open: Callable[[], ContextManager[Readable]]


def _copy(member: _Member, entry: FileEntry, file: int, what: str) -> None:
    """Write a member's bytes; return if they are what the manifest says."""
    hasher, done = ContentHasher(), 0
    with contextlib.ExitStack() as stack:
        with _readable(what):
            stream = stack.enter_context(member.open())
        while True:
            with _readable(what):
                piece = stream.read(min(_PIECE_SIZE, entry.size - done + 1))
            if not piece:
                break
            if done + len(piece) > entry.size:
                raise LengthMismatchError(
                    f"{entry.path} in the archive of {what} is longer than {entry.size}"
                    " bytes, which its manifest says.",
                    expected=entry.size,
                )
            hasher.update(piece)
            write_at(file, memoryview(piece), done)
            done += len(piece)
    actual = hasher.finish().root
    if actual != entry.cid:
        raise DigestMismatchError(
            f"{entry.path} in the archive of {what} is {actual}, not {entry.cid}.",
            expected=str(entry.cid),
            actual=str(actual),
        )


def _zip_members(archive: BinaryIO) -> Generator[_Member, None, None]:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # Others may unpack without a bound on memory.
                raise ValueError(f"compression method {member.compress_type}")
            paths = tuple(map(_without_dot, _zip_names(member)))
            yield _Member(paths, partial(opened.open, member))


def _zip_names(member: zipfile.ZipInfo) -> Iterator[str]:
    """Yield what a member may be called, as the gateway takes it first."""
    if not member.flag_bits & _ZIP_UTF8:
        with contextlib.suppress(UnicodeError):
            raw = member.orig_filename.encode("cp437")
            yield from _unicode_path(raw, member.extra)
            yield raw.decode()
    yield member.filename


def _unicode_path(raw: bytes, extra: bytes) -> Iterator[str]:
    """Yield the name in an extra field, if it has one of that header's name.

    APPNOTE.TXT, section 4.6.9: version 1, the CRC-32 of the name, the path.
    """
    start = struct.pack("<BI", 1, zlib.crc32(raw))
    at = 0
    while at + _EXTRA.size <= len(extra):
        kind, length = _EXTRA.unpack_from(extra, at)
        at += _EXTRA.size
        if kind == _UNICODE_PATH and extra.startswith(start, at):
            yield extra[at + len(start) : at + length].decode()
        at += length


def _without_dot(name: str) -> str:
    """Return a name without the folder of the archive itself before it."""
    return re.sub(r"^(\./+)+", "", name)


def _tar_members(archive: BinaryIO) -> Generator[_Member, None, None]:
    unpacked = _Unpacked(archive)
    with tarfile.open(
        fileobj=cast("BinaryIO", unpacked),
        mode="r|",
        bufsize=_TAR_BLOCK,
        encoding="utf-8",
    ) as opened:
        while True:
            unpacked.allow(_HEADERS)
            member = opened.next()
            if member is None:
                return
            cast("Any", opened).members.clear()  # or else all headers would be held
            unpacked.allow(member.size + _HEADERS)
            if member.isreg():
                path = _without_dot(member.name)
                yield _Member((path,), partial(_extract, opened, member))


def _extract(
    opened: tarfile.TarFile, member: tarfile.TarInfo
) -> ContextManager[Readable]:
    file = opened.extractfile(member)
    if file is None:
        raise ValueError("a file without content")
    return file


class _Unpacked:
    """A tar's bytes out of its gzip, no more than was allowed, for ``tarfile``.

    It holds the headers of a file in memory however long they say they are, and passes
    over what it does not need to an end that may never come.
    """

    def __init__(self, archive: BinaryIO) -> None:
        self._file = gzip.GzipFile(fileobj=archive)
        self._allowed = 0

    def allow(self, size: int) -> None:
        """Allow that so many bytes are read from now on."""
        self._allowed = size

    def read(self, size: int, /) -> bytes:
        """Return the next bytes; there must be some."""
        if self._allowed < 0:
            raise ValueError("its headers are longer than any are")
        piece = self._file.read(size)
        if not piece:
            raise EOFError("it is cut short")
        self._allowed -= len(piece)
        return piece


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turn what the standard library raises of a broken archive into our error."""
    try:
        yield
    except _BROKEN as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise MalformedBlockError(
            f"The archive of {what} cannot be read: {reason}."
        ) from error


@contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    """Turn the operating system's errors into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(f"The disk of {directory} is full.") from error
        raise CacheError(
            f"{directory} cannot be read or written: {error.strerror or error}."
        ) from error
