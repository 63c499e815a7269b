"""The files of a dataset's archive: listed, fetched one by one, or all extracted.

The manifest, verified against the CID that the version names, says what each file must
be. A file is right only if its own bytes are what its CID names, wherever they come
from: the gateway, the archive, or the cache.
"""

from __future__ import annotations

import fnmatch
import re
from typing import (
    TYPE_CHECKING,
    BinaryIO,
    Callable,
    ContextManager,
    List,
    Optional,
    Sequence,
    Tuple,
)
from urllib.parse import quote

from vision_o3.content.cid import CID
from vision_o3.content.dag import check_bytes
from vision_o3.content.leaves import LeafTable
from vision_o3.content.manifest import (
    FileEntry,
    Manifest,
    find_entry,
    parse_path,
)
from vision_o3.errors import (
    CacheError,
    LimitExceededError,
    NotFoundError,
    VisionO3Error,
)
from vision_o3.sdk.download import Patience, fetch, fetch_unlisted, write_at
from vision_o3.sdk.resolving import expect_online
from vision_o3.sdk.session import read_body
from vision_o3.sdk.sources import GatewaySource, blocked_query

if TYPE_CHECKING:
    from pathlib import Path

    from vision_o3.sdk.cache import Cache
    from vision_o3.sdk.download import Progress
    from vision_o3.sdk.session import Session
    from vision_o3.sdk.versions import DatasetInfo

MAX_MANIFEST_SIZE = 256 << 20
"""Bytes that a device reads at most; 200,000 files take about 35 MB."""
_MANIFEST_NAME = "manifest.json"
_OPENINGS = 3
"""How often a file is fetched that another process drops before it could be opened."""


class DatasetFiles:
    """Reads manifests, and files out of archives. Safe for several threads.

    Args:
        session: Whom to ask.
        cache: Where manifests and files are kept, each by its own CID.
        download: Returns the path of a version's whole archive, verified.
        progress: Called with bytes done and bytes in all.
        allow_blocked: Tell the gateway to serve also what is blocked.
    """

    def __init__(
        self,
        session: Session,
        cache: Cache,
        download: Callable[[DatasetInfo], Path],
        progress: Optional[Progress] = None,
        *,
        allow_blocked: bool = False,
    ) -> None:
        self._session = session
        self._query = blocked_query(allow_blocked)
        self._cache = cache
        self._download_archive = download
        self._progress = progress
        self._last: Optional[Tuple[CID, bytes]] = None

    def manifest(self, info: DatasetInfo) -> Manifest:
        """Return the list of an archive's files, verified.

        Raises:
            NotFoundError: The version is not an archive.
            IntegrityError: The gateway gave other bytes than the CID names, or they
                are no manifest.
            LimitExceededError: It is longer than a device reads.
            VisionO3Error: As for any download.
        """
        return Manifest(self._manifest_bytes(info))

    def find(self, info: DatasetInfo, path: str) -> FileEntry:
        """Return what the manifest says of one file, without parsing all of it.

        Raises:
            InvalidPathError: No file can have this path.
            NotFoundError: The version is not an archive, or has no such file.
            VisionO3Error: As ``manifest`` says.
        """
        found = find_entry(self._manifest_bytes(info), parse_path(path))
        if found is None:
            raise _no_file(info, path)
        return found[1]

    def download(self, info: DatasetInfo, path: str) -> Path:
        """Return the path of one file of an archive in the cache, verified.

        Raises:
            IntegrityError: The gateway gave other bytes, again and again. None of
                them were kept.
            StorageFullError, CacheError: There is no room, or no permission.
            VisionO3Error: As ``find`` says.
        """
        entry = self.find(info, path)
        name = entry.path.rpartition("/")[2]
        cached = self._cache.find(entry.cid, name)
        if cached is not None:
            return cached
        expect_online(self._session, f"{entry.path} ({entry.cid})")
        with self._cache.write(entry.size) as partial:
            self._fetch(info, entry, partial.descriptor, self._progress)
            kept = self._cache.keep(partial, entry.cid, name)
        self._cache.evict(keep=entry.cid)
        return kept

    def open(self, info: DatasetInfo, path: str) -> BinaryIO:
        """Return one file of an archive, open for reading, verified; close it.

        Raises:
            VisionO3Error: As ``download`` says.
        """
        return _opened(lambda: self.download(info, path))

    def extract(
        self,
        info: DatasetInfo,
        target: Path,
        patterns: Optional[Sequence[str]] = None,
        *,
        overwrite: bool = False,
    ) -> List[Path]:
        """Put files of an archive below a directory; return their paths, sorted.

        See ``VisionO3Client.extract_dataset``.

        Raises:
            AlreadyExistsError: Something else stands where a file belongs.
            NotFoundError: A pattern is of no file.
            VisionO3Error: As ``manifest`` and ``download`` say.
        """
        from vision_o3.sdk.extraction import Target, unpack  # noqa: PLC0415 - seldom

        manifest = self.manifest(info)
        chosen = choose(manifest, patterns, info)
        with Target(target, overwrite=overwrite) as place:
            missing = [entry for entry in chosen if not place.has(entry)]
            whole = patterns is None or self._cache.find(
                CID.parse(info.cid), info.filename, verify=False
            )
            if not missing:
                pass
            elif whole:
                with _opened(lambda: self._download_archive(info)) as archive:
                    unpack(archive, info, missing, place, self._progress)
            else:
                self._fetch_all(info, missing, place.new_file)
        return [target / entry.path for entry in chosen]

    def _fetch_all(
        self,
        info: DatasetInfo,
        entries: Sequence[FileEntry],
        new_file: Callable[[FileEntry], ContextManager[int]],
    ) -> None:
        total = sum(entry.size for entry in entries)
        before = 0
        for entry in entries:
            with new_file(entry) as descriptor:
                self._fetch(info, entry, descriptor, self._part_of(before, total))
            before += entry.size

    def _part_of(self, before: int, total: int) -> Optional[Progress]:
        """Return what tells of one file's transfer as a part of all."""
        progress = self._progress
        if progress is None:
            return None
        return lambda done, _: progress(before + done, total)

    def _fetch(
        self,
        info: DatasetInfo,
        entry: FileEntry,
        file: int,
        progress: Optional[Progress],
    ) -> None:
        """Write a file's bytes, verified when this returns."""
        path = f"{_path(info)}/files/{quote(entry.path)}{self._query}"
        source = GatewaySource(self._session, path)
        if entry.cid.is_raw:  # verified before it is written
            table = LeafTable.of_raw(entry.cid, entry.size)
            fetch(self._session, [source], table, file, progress)
        else:
            content = entry.cid, entry.size
            fetch_unlisted(self._session, source, content, file, progress)

    def _manifest_bytes(self, info: DatasetInfo) -> bytes:
        if info.manifest_cid is None:
            raise NotFoundError(
                f"Version {info.version} of {info.name} is not an archive with a list "
                f"of files, but one .{info.format} file: download it.",
                name=info.name,
            )
        cid = CID.parse(info.manifest_cid)
        if self._last is not None and self._last[0] == cid:
            return self._last[1]
        content = self._cache.read(cid, MAX_MANIFEST_SIZE)
        if content is None:
            content = self._fetch_manifest(info, cid)
        self._last = cid, content
        return content

    def _fetch_manifest(self, info: DatasetInfo, cid: CID) -> bytes:
        expect_online(self._session, f"The list of files of {info.name}@{info.version}")
        patience = Patience(self._session.attempts())
        path = f"{_path(info)}/manifest{self._query}"
        while True:
            try:
                with self._session.exchange("GET", path) as answer:
                    content = read_body(answer, MAX_MANIFEST_SIZE, LimitExceededError)
                check_bytes(content, cid, "manifest")
            except VisionO3Error as error:
                patience.failed(error)
                continue
            break
        with self._cache.write(len(content)) as partial:
            write_at(partial.descriptor, memoryview(content), 0)
            self._cache.keep(partial, cid, _MANIFEST_NAME)
        self._cache.evict(keep=cid)
        return content


def choose(
    manifest: Manifest, patterns: Optional[Sequence[str]], info: DatasetInfo
) -> List[FileEntry]:
    """Return the files that any of the patterns is of, sorted; all without patterns.

    A pattern is a file's path, a folder's path, or has the wildcards of ``fnmatch``,
    which match ``/`` too.

    Raises:
        NotFoundError: A pattern is of no file.
    """
    if patterns is None:
        return list(manifest.files)
    chosen = set()
    for pattern in patterns:
        number = manifest.position(pattern)
        if number is not None:
            chosen.add(number)
            continue
        folder = pattern.rstrip("/") + "/"
        matches = re.compile(fnmatch.translate(pattern)).match
        found = [
            number
            for number, entry in enumerate(manifest.files)
            if entry.path.startswith(folder) or matches(entry.path)
        ]
        if not found:
            raise _no_file(info, pattern)
        chosen.update(found)
    return [manifest.files[number] for number in sorted(chosen)]


def _path(info: DatasetInfo) -> str:
    return f"/{info.collection}/{quote(info.name)}/versions/{info.version}"


def _no_file(info: DatasetInfo, path: str) -> NotFoundError:
    return NotFoundError(
        f"Version {info.version} of {info.name} has no file {path!r}. "
        f"'vision-o3 dataset files {info.name}@{info.version}' lists what it has.",
        name=info.name,
    )


def _opened(get: Callable[[], Path]) -> BinaryIO:
    """Open a file of the cache, fetched anew if another process drops it before."""
    for _ in range(_OPENINGS):
        path = get()
        try:
            return path.open("rb")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CacheError(f"{path} cannot be read: {error.strerror}.") from error
    raise CacheError("The cache drops files as fast as they are fetched: enlarge it.")
