"""Models and datasets as files for ``fsspec``; needs ``vision-o3[fsspec]``.

::

    vision-o3://
    ├── models/NAME[@VERSION]
    └── datasets/NAME[@VERSION]          an archive is opened as a file, and listed
        └── path/in/archive              as a folder

Without a version it is the latest; lists name the version. What is read is verified as
by any download: it is read from the device's cache.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import threading
import weakref
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import (
    Any,
    Dict,
    Iterator,
    List,
    NamedTuple,
    NoReturn,
    Optional,
    Tuple,
    Union,
    cast,
)

from fsspec.spec import AbstractFileSystem  # type: ignore[import-untyped] # has none

from vision_o3.content.cid import CID
from vision_o3.errors import (
    InvalidNameError,
    InvalidPathError,
    InvalidVersionError,
    NotFoundError,
    WithdrawnError,
)
from vision_o3.naming import parse_name, parse_version
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.dataset_files import _opened
from vision_o3.sdk.environment import open_client
from vision_o3.sdk.versions import DatasetInfo, VersionInfo

Entry = Dict[str, Any]
Tree = Dict[str, List[Tuple[str, Optional[int], str]]]
"""Of each folder of an archive what is in it: name, size or ``None``, CID."""

_COLLECTIONS = ("models", "datasets")
_OF_FSSPEC = (
    "asynchronous",
    "listings_expiry_time",
    "loop",
    "max_paths",
    "skip_instance_cache",
    "use_listings_cache",
)
"""Options that are not the client's."""


class _Place(NamedTuple):
    """What a path says."""

    collection: str
    name: str
    version: Optional[int]
    member: str
    """Path in the archive; empty for the whole."""


class VisionO3File(io.BufferedReader):
    """A verified file of the cache, open for reading.

    Attributes:
        size: Bytes.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__(raw)
        self.size = os.fstat(raw.fileno()).st_size


class VisionO3FileSystem(AbstractFileSystem):  # type: ignore[misc] # fsspec has no types
    """A registry as a file system that can be read.

    Args:
        gateway_url: Default: from the environment, or from ``vision-o3 login``.
        api_token: As for ``VisionO3Client``; default: likewise.
        credentials: As for ``VisionO3Client``; default: likewise.
        cache_dir: Where verified files are kept; default: likewise.
        allow_blocked: Read also versions that are blocked.
        **options: Other arguments of ``VisionO3Client``, or of ``fsspec``.

    Raises:
        FileNotFoundError: By most methods: no such model, dataset, version or file.
        PermissionError: By those that read, list an archive, or want the latest: the
            version is withdrawn. Its reason is said.
        OSError: By all that would write.
        VisionO3Error: By all methods, as ``VisionO3Client`` says.
    """

    protocol = "vision-o3"
    root_marker = ""

    def __init__(
        self,
        gateway_url: Optional[str] = None,
        api_token: Optional[str] = None,
        credentials: Optional[Any] = None,
        cache_dir: Union[str, Path, None] = None,
        *,
        allow_blocked: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            **{name: options.pop(name) for name in _OF_FSSPEC if name in options}
        )
        self._options = {
            "gateway_url": gateway_url,
            "api_token": api_token,
            "credentials": credentials,
            "cache_dir": cache_dir,
            **options,
        }
        self._allow_blocked = allow_blocked
        self._opened: Optional[VisionO3Client] = None
        self._lock = threading.Lock()
        self._last: Optional[Tuple[str, Tree]] = None

    @property
    def client(self) -> VisionO3Client:
        """The client that is asked; made when it is first needed."""
        with self._lock:
            if self._opened is None:
                self._opened = open_client(**self._options)
                weakref.finalize(self, self._opened.close)
            return self._opened

    # Reading

    def ls(self, path: str, detail: bool = True, **_: Any) -> List[Any]:
        """Return what is in a folder, or the one file that the path names."""
        path = self._strip_protocol(path)
        with _as_os_errors(path):
            entries = list(self._entries(path))
        return entries if detail else [entry["name"] for entry in entries]

    def info(self, path: str, **_: Any) -> Entry:
        """Return what is known of a file or folder: name, size, type, CID and more."""
        path = self._strip_protocol(path)
        if path in ("", *_COLLECTIONS):
            return _folder(path)
        with _as_os_errors(path):
            place = _parse(path)
            info = self._find(place)
            if not place.member:
                return _whole(path, info)
            return self._member_entry(path, place, info)

    def exists(self, path: str, **_: Any) -> bool:
        """Return whether there is such a file or folder.

        Raises:
            VisionO3Error: It could not be found out.
        """
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def isfile(self, path: str) -> bool:
        """Return whether the path names one file; an archive is a folder.

        Raises:
            VisionO3Error: It could not be found out.
        """
        try:
            return bool(self.info(path)["type"] == "file")
        except FileNotFoundError:
            return False

    def get(
        self,
        rpath: Any,
        lpath: Any,
        recursive: bool = False,
        **options: Any,
    ) -> None:
        """Copy files to the device; an archive as one file, or its files recursively.

        See ``AbstractFileSystem.get``.
        """
        one = isinstance(rpath, str) and not recursive
        if one and self._is_archive(rpath):
            self.get_file(rpath, lpath, **options)
            return
        super().get(rpath, lpath, recursive=recursive, as_folder=recursive, **options)

    def get_file(
        self, rpath: str, lpath: Any = None, *, as_folder: bool = False, **options: Any
    ) -> None:
        """Copy one file to the device; see ``AbstractFileSystem.get_file``."""
        is_path = isinstance(lpath, (str, os.PathLike))
        if is_path and not as_folder and self._is_archive(rpath):
            with self.open(rpath) as source, Path(lpath).open("wb") as target:
                shutil.copyfileobj(source, target, self.blocksize)
        else:
            super().get_file(rpath, lpath, **options)

    def created(self, path: str) -> datetime:
        """Return when the version was published, UTC."""
        with _as_os_errors(path):
            return self._find(_parse(self._strip_protocol(path))).created_at

    modified = created

    def ukey(self, path: str) -> str:
        """Return the CID: what names exactly these bytes."""
        return str(self.info(path)["cid"])

    def checksum(self, path: str) -> int:
        """Return a number that is that of the CID."""
        return int.from_bytes(CID.parse(self.ukey(path)).digest, "big")

    def _open(self, path: str, mode: str = "rb", **_: Any) -> VisionO3File:
        if mode != "rb":
            self._refuse(path)
        path = self._strip_protocol(path)
        try:
            with _as_os_errors(path):
                place = _parse(path)
                file = _opened(lambda: self._fetch(place))
        except FileNotFoundError as error:
            if self.isdir(path):
                text = "This is a folder: 'ls' lists what is in it"
                raise IsADirectoryError(errno.EISDIR, text, path) from error
            raise
        return VisionO3File(cast(io.BufferedReader, file).detach())

    def _fetch(self, place: _Place) -> Path:
        name, version, allowed = place.name, place.version, self._allow_blocked
        if place.member:
            return self.client.download_dataset_file(
                name, place.member, version, allow_blocked=allowed
            )
        if place.collection == "models":
            return self.client.download_model(name, version, allow_blocked=allowed)
        return self.client.download_dataset(name, version, allow_blocked=allowed)

    def _find(self, place: _Place) -> VersionInfo:
        if place.collection == "models":
            return self.client.get_model_info(place.name, place.version)
        return self.client.get_dataset_info(place.name, place.version)

    def _is_archive(self, path: str) -> bool:
        path = self._strip_protocol(path)
        if path in ("", *_COLLECTIONS):
            return False
        with _as_os_errors(path):
            place = _parse(path)
            return not place.member and _has_members(self._find(place))

    def _entries(self, path: str) -> Iterator[Entry]:
        if path == "":
            yield from map(_folder, _COLLECTIONS)
        elif path == "models":
            for model in self.client.iter_models():
                yield _whole(f"{path}/{model.name}@{model.version}", model)
        elif path == "datasets":
            for dataset in self.client.iter_datasets():
                name = f"{path}/{dataset.name}@{dataset.version}"
                yield _whole(name, dataset)
        else:
            entry = self.info(path)
            if entry["type"] == "file":
                yield entry
                return
            place = _parse(path)
            yield from self._members(path, self._find(place), place.member)

    def _members(self, path: str, info: VersionInfo, folder: str) -> Iterator[Entry]:
        for name, size, cid in self._tree(info).get(folder, ()):
            yield _member(f"{path}/{name}", size, cid, info)

    def _member_entry(self, path: str, place: _Place, info: VersionInfo) -> Entry:
        folder, _, name = place.member.rpartition("/")
        for known, size, cid in self._tree(info).get(folder, ()):
            if known == name:
                return _member(path, size, cid, info)
        raise _nothing_at(path)

    def _tree(self, info: VersionInfo) -> Tree:
        """Return what is in each folder of an archive; the last one is kept."""
        last = self._last
        if last is not None and last[0] == info.cid:
            return last[1]
        manifest = self.client.get_dataset_manifest(
            info.name, info.version, allow_blocked=self._allow_blocked
        )
        tree: Tree = {"": []}
        for entry in manifest.files:
            folder, _slash, name = entry.path.rpartition("/")
            _make_folder(tree, folder)
            tree[folder].append((name, entry.size, str(entry.cid)))
        self._last = info.cid, tree
        return tree

    # Writing

    def _refuse(self, path: object, *_: Any, **__: Any) -> NoReturn:
        raise OSError(
            errno.EROFS,
            "vision-o3:// can only be read. Publish with 'vision-o3 push' or "
            "VisionO3Client.upload_model",
            str(path),
        )

    mkdir = makedirs = rmdir = rm = rm_file = _rm = _refuse
    cp_file = copy = mv = touch = pipe_file = put_file = put = _refuse
    write_bytes = write_text = _refuse


def _parse(path: str) -> _Place:
    collection, _, rest = path.partition("/")
    which, _, member = rest.partition("/")
    name, at, version = which.partition("@")
    if collection not in _COLLECTIONS or (member and collection == "models"):
        raise _nothing_at(path)
    return _Place(
        collection, parse_name(name), parse_version(version) if at else None, member
    )


@contextmanager
def _as_os_errors(path: str) -> Iterator[None]:
    """Say that something is not there, or is refused, as the rest of Python does."""
    try:
        yield
    except (
        NotFoundError,
        InvalidNameError,
        InvalidVersionError,
        InvalidPathError,
    ) as error:
        raise FileNotFoundError(errno.ENOENT, error.message, path) from error
    except WithdrawnError as error:
        raise PermissionError(errno.EACCES, error.message, path) from error


def _nothing_at(path: str) -> FileNotFoundError:
    return FileNotFoundError(
        errno.ENOENT,
        "There is nothing at this path. Paths are models/NAME[@VERSION], "
        "datasets/NAME[@VERSION] and datasets/NAME[@VERSION]/PATH-IN-ARCHIVE",
        path,
    )


def _folder(path: str) -> Entry:
    return {"name": path, "size": 0, "type": "directory"}


def _whole(path: str, info: VersionInfo) -> Entry:
    """Return what is known of a model, dataset or archive."""
    return {
        "name": path,
        "size": info.file_size,
        "type": "directory" if _has_members(info) else "file",
        "cid": info.cid,
        "version": info.version,
        "created": info.created_at,
    }


def _member(path: str, size: Optional[int], cid: str, info: VersionInfo) -> Entry:
    """Return what is known of a file or folder of an archive."""
    if size is None:
        return _folder(path)
    return {
        "name": path,
        "size": size,
        "type": "file",
        "cid": cid,
        "version": info.version,
        "created": info.created_at,
    }


def _has_members(info: VersionInfo) -> bool:
    return isinstance(info, DatasetInfo) and info.manifest_cid is not None


def _make_folder(tree: Tree, folder: str) -> None:
    """Add a folder, and those around it, if they are not there."""
    new = []
    while folder not in tree:
        tree[folder] = []
        folder, _, name = folder.rpartition("/")
        new.append((folder, name))
    for around, name in new:
        tree[around].append((name, None, ""))
