"""Single files of archives, and the manifests that list them.

A manifest and a member index are read whole, checked against their CIDs, and kept for
the next request. Of the archive only what holds the file is read, each leaf verified.
"""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vision_o3.content.dag import ContentHasher, check_bytes
from vision_o3.content.manifest import (
    MAX_MANIFEST_SIZE,
    FileEntry,
    find_entry,
    parse_path,
)
from vision_o3.content.profile import UNIXFS_V1_2025
from vision_o3.errors import (
    DigestMismatchError,
    MalformedBlockError,
    NotFoundError,
)
from vision_o3.formats.member_index import MemberIndex
from vision_o3.formats.members import read_member
from vision_o3.registry.keeping import Kept

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator

    from vision_o3.content.cid import CID
    from vision_o3.registry.relaying import Relay
    from vision_o3.registry.values import Version

_KEPT_MANIFESTS = 64 << 20
_KEPT_INDEXES = 64 << 20
"""Bytes."""
_READING = 8
"""Files that are unpacked at the same moment. Threads of their own: whatever they have
to skip, other requests are answered."""
_LEAF = UNIXFS_V1_2025.chunk_size


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a version's archive."""

    version: Version
    entry: FileEntry
    number: int
    """Its place in the manifest."""


class Members:
    """Finds and reads files of archives. Safe in any thread; ``stream`` is async."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._manifests: Kept[bytes] = Kept(_KEPT_MANIFESTS)
        self._indexes: Kept[MemberIndex] = Kept(_KEPT_INDEXES)
        self._threads = ThreadPoolExecutor(_READING, thread_name_prefix="members")

    def manifest(self, version: Version) -> bytes:
        """Return the canonical bytes of a version's manifest, verified.

        Raises:
            NotFoundError: The version is no archive.
            IntegrityError: The stored bytes are not what the manifest's CID names.
            ObjectNotFoundError, StorageError: The store failed.
        """
        cid, key = version.manifest_cid, version.manifest_key
        if cid is None or key is None:
            raise _no_archive(version)
        content = self._manifests.find(cid)
        if content is None:
            content = self._read_document(version, key, cid)
            self._manifests.keep(cid, content, len(content))
        return content

    def forget(self, manifest_cid: CID | None, index_cid: CID | None) -> None:
        """Drop what is kept in memory of an archive's listings."""
        if manifest_cid is not None:
            self._manifests.drop(manifest_cid)
        if index_cid is not None:
            self._indexes.drop(index_cid)

    def find(self, version: Version, path: str) -> Member:
        """Return the file that an archive has under a path.

        Raises:
            InvalidPathError: No file can have this path.
            NotFoundError: The version is no archive, or has no such file.
            IntegrityError, ObjectNotFoundError, StorageError: As for ``manifest``.
        """
        found = find_entry(self.manifest(version), parse_path(path))
        if found is None:
            raise NotFoundError(
                f"{version.name} version {version.version} has no file {path!r}. Its "
                f"manifest lists what it has: GET /{version.collection}/"
                f"{version.name}/versions/{version.version}/manifest.",
                name=version.name,
            )
        number, entry = found
        return Member(version, entry, number)

    async def stream(
        self, member: Member, start: int, end: int
    ) -> AsyncGenerator[memoryview]:
        """Yield the bytes ``[start, end)`` of a file, in order, in pieces ≤ 1 MiB.

        A file of one leaf, or a whole one, is checked against its CID before its last
        byte is handed on. A range of a longer one rests on the archive's CID: each leaf
        that is read is verified, and so is the index that says where the file lies.
        Close the generator when leaving it early.

        Raises:
            IntegrityError: The store's bytes are not what the CIDs name.
            ObjectNotFoundError, StorageError: The store failed.
        """
        pieces = self.read(member, start, end)
        context = contextvars.copy_context()
        while True:
            # Each step is short, also where much is skipped, so that a caller who
            # leaves is noticed.
            step = self._threads.submit(context.run, _next_of, pieces)
            try:
                piece = await asyncio.wrap_future(step)
            finally:
                if not step.cancel() and not step.done():  # at work: it ends soon
                    await asyncio.gather(
                        asyncio.wrap_future(step), return_exceptions=True
                    )
            if piece is None:
                return
            if piece:
                yield memoryview(piece)

    def read(
        self, member: Member, start: int, end: int
    ) -> Generator[bytes | memoryview]:
        """Yield the bytes as ``stream`` does, and empty pieces; for a thread.

        Raises:
            IntegrityError, ObjectNotFoundError, StorageError: As for ``stream``.
        """
        entry = member.entry
        if start == end:
            return
        if entry.size <= _LEAF:
            whole = b"".join(_checked(self._unpacked(member, 0, entry.size), entry))
            yield memoryview(whole)[start:end]
        elif (start, end) == (0, entry.size):
            yield from _checked(self._unpacked(member, 0, entry.size), entry)
        else:
            yield from self._unpacked(member, start, end)

    def _unpacked(self, member: Member, start: int, end: int) -> Iterator[bytes]:
        version = member.version
        index = self._index(version)

        def read(first: int, last: int) -> Iterator[memoryview]:
            return self._relay.read(version, first, last)

        try:
            yield from read_member(index, member.number, read, start, end)
        except ValueError as error:
            raise MalformedBlockError(
                f"{member.entry.path} cannot be read from {version.object_key}: {error}"
            ) from error

    def _index(self, version: Version) -> MemberIndex:
        cid, key = version.index_cid, version.index_key
        if cid is None or key is None:
            raise _no_archive(version)
        index = self._indexes.find(cid)
        if index is None:
            content = self._read_document(version, key, cid)
            try:
                index = MemberIndex.decode(content)
            except ValueError as error:
                raise MalformedBlockError(f"{key} is no member index.") from error
            self._indexes.keep(cid, index, len(content))
        return index

    def _read_document(self, version: Version, key: str, cid: CID) -> bytes:
        return self._relay.read_document(
            version,
            key,
            MAX_MANIFEST_SIZE,
            lambda content: check_bytes(content, cid, key),
        )


def _next_of(pieces: Generator[bytes | memoryview]) -> bytes | memoryview | None:
    return next(pieces, None)


def _checked(pieces: Iterator[bytes], entry: FileEntry) -> Iterator[bytes]:
    """Yield a whole file's bytes; the last piece once all are what the CID names."""
    hasher = ContentHasher()
    held = b""
    for piece in filter(None, pieces):
        hasher.update(piece)
        if held:
            yield held
        held = piece
    actual = hasher.finish().root
    if actual != entry.cid:
        raise DigestMismatchError(
            f"The archive's {entry.path} is {actual}, not {entry.cid}.",
            expected=str(entry.cid),
            actual=str(actual),
        )
    if held:
        yield held


def _no_archive(version: Version) -> NotFoundError:
    return NotFoundError(
        f"{version.name} version {version.version} is no archive with a manifest, but "
        f"one .{version.file_format} file: download it.",
        name=version.name,
    )
