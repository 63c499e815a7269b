"""Read every file of an archive once: the manifest, the member index and the facts.

On two threads: inflating and hashing leave the interpreter's lock. Memory is
O(files), some 700 bytes each, whatever they hold.
"""

from __future__ import annotations

import threading
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from operator import itemgetter
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from isal import isal_zlib

from vision_o3.content.cid import CID, RAW
from vision_o3.content.dag import ContentHasher
from vision_o3.content.manifest import (
    FileEntry,
    encode_entry,
    encode_manifest,
    sort_key,
)
from vision_o3.content.profile import UNIXFS_V1_2025
from vision_o3.formats.archives import Source
from vision_o3.formats.gzips import unpack_gzip
from vision_o3.formats.inflate import RAW_DEFLATE
from vision_o3.formats.media_types import media_type_of
from vision_o3.formats.member_index import (
    STORED,
    MemberPlace,
    PackedPoint,
    encode_index,
)
from vision_o3.formats.seek_points import find_points
from vision_o3.formats.summary import Parser, Summary
from vision_o3.formats.tars import TarReader
from vision_o3.formats.zips import (
    ZipMember,
    check_streamed,
    damaged,
    read_directory,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from vision_o3.formats.limits import Limits
    from vision_o3.formats.member_index import Container

_LEAF = UNIXFS_V1_2025.chunk_size
_WAITING = 2
"""Batches that the other thread has, or will have."""
_MOST_IN_BATCH = 10_000
"""Files, which may be empty."""
_BATCH_PACKED, _BATCH_UNPACKED = 1 << 20, 4 << 20
_WRITTEN = 1 << 16
"""Bytes written at once."""


def inspect_archive(
    file: BinaryIO,
    size: int,
    container: Container,
    limits: Limits,
    *,
    manifest: BinaryIO,
    index: BinaryIO,
) -> dict[str, Any]:
    """Return the facts of an archive; write its manifest and its member index.

    Every byte of it is read and checked. The facts are ``ArchiveFacts`` of
    ``schemas/facts.py``. On an error, what was written is of no use.

    Raises:
        ValueError: Not a whole archive of this kind, or one read in different ways.
        UnsafeContentError: What is in it is not safe to extract.
        LimitExceededError: It exceeds one of the limits.
    """
    source = Source(file, size)
    listing = _Listing(limits)
    points: Sequence[PackedPoint] = ()
    if container == "zip":
        _read_zip(file, source, listing, limits)
    else:
        points = _read_tar_gz(source, listing, limits)
    listing.sort()
    _write(manifest, listing.manifest())
    _write(index, encode_index(container, size, listing.places(), points))
    return {
        "kind": "archive",
        "container": container,
        "files": len(listing),
        "unpacked_bytes": listing.unpacked,
        **listing.summary.facts(),
    }


class _Read(NamedTuple):
    """A file that was read: its name, and what the summary wants of it."""

    path: str
    cid: CID
    place: MemberPlace
    head: bytes
    parser: Parser | None


class _Listing:
    """The files read so far: what is written of each, and what they sum up to."""

    def __init__(self, limits: Limits) -> None:
        self.summary = Summary(limits)
        self.unpacked = 0
        self._files: list[tuple[bytes, bytes, MemberPlace]] = []

    def __len__(self) -> int:
        return len(self._files)

    def add(self, read: _Read) -> None:
        media_type = media_type_of(read.path)
        size = read.place.size
        self.summary.add(read.path, size, media_type, read.head, read.parser)
        self.unpacked += size
        entry = FileEntry(read.path, size, read.cid, media_type)
        # Encoded while other threads inflate, and smaller than what it is made of.
        self._files.append((sort_key(entry), encode_entry(entry), read.place))

    def add_all(self, found: list[_Read]) -> None:
        for read in found:
            self.add(read)

    def sort(self) -> None:
        """Bring the files into the order of the manifest."""
        self._files.sort(key=itemgetter(0))

    def manifest(self) -> Iterator[bytes]:
        """Yield what ``encode_manifest`` makes of the entries."""
        head, bracket, tail = b"".join(encode_manifest(())).partition(b"]")
        yield head
        for number, (_, encoded, _) in enumerate(self._files):
            yield b"," + encoded if number else encoded
        yield bracket + tail

    def places(self) -> list[MemberPlace]:
        """Return where the files lie, in the order of the manifest."""
        return [place for _, _, place in self._files]


class _Sharing:
    """Has batches of files read by this thread and one other, and lists them.

    A third thread, or this one only waiting, is slower: they wait for the lock.
    """

    def __init__(self, pool: ThreadPoolExecutor, listing: _Listing) -> None:
        self._pool = pool
        self._listing = listing
        self._waiting: deque[Future[list[_Read]]] = deque()

    def read(self, batch: Callable[[], list[_Read]]) -> None:
        """Have a batch read, here if the other thread has enough to do."""
        if len(self._waiting) < _WAITING:
            self._waiting.append(self._pool.submit(batch))
            return
        self._listing.add_all(batch())
        while self._waiting and self._waiting[0].done():
            self._listing.add_all(self._waiting.popleft().result())

    def finish(self) -> None:
        """List what the other thread still has."""
        for future in self._waiting:
            self._listing.add_all(future.result())


def _read_whole(
    path: str, place: MemberPlace, content: bytes | memoryview, summary: Summary
) -> _Read:
    """Read a file of one leaf, or none."""
    wanted, parser = summary.wanted(path, place.size), summary.parser(path, place.size)
    if parser is not None:
        parser.feed(bytes(content))
        parser.finish()
    cid = CID(RAW, sha256(content).digest())
    # A whole ``bytes`` is not copied.
    head = bytes(content[:wanted] if wanted < len(content) else content)
    return _Read(path, cid, place, head if wanted else b"", parser)


def _read_pieces(
    path: str,
    place: MemberPlace,
    pieces: Iterable[bytes | memoryview],
    summary: Summary,
) -> _Read:
    """Read a file of any size."""
    wanted, parser = summary.wanted(path, place.size), summary.parser(path, place.size)
    hasher, head = ContentHasher(), b""
    for piece in pieces:
        hasher.update(piece)
        if len(head) < wanted:
            head += piece[: wanted - len(head)]
        if parser is not None:
            parser.feed(bytes(piece))
    if parser is not None:
        parser.finish()
    return _Read(path, hasher.finish().root, place, head, parser)


def _read_zip(
    file: BinaryIO, source: Source, listing: _Listing, limits: Limits
) -> None:
    members = read_directory(file, source.size, limits, renaming=True)
    stop = threading.Event()

    def read(batch: list[ZipMember]) -> list[_Read]:
        if len(batch) == 1:
            pieces = _until(stop, unpack(file, batch[0], limits))
            place = _place(batch[0])
            return [_read_pieces(batch[0].path, place, pieces, listing.summary)]
        return _read_batch(source, batch, listing.summary)

    with ThreadPoolExecutor(1) as pool:
        sharing = _Sharing(pool, listing)
        try:
            for batch in _batches(members):
                sharing.read(partial(read, batch))
            sharing.finish()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _place(member: ZipMember) -> MemberPlace:
    return MemberPlace(member.data_at, member.packed, member.unpacked, member.method)


def _until(stop: threading.Event, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        if stop.is_set():
            return
        yield piece


def _batches(members: list[ZipMember]) -> Iterator[list[ZipMember]]:
    """Yield the files as they lie in the archive, small neighbours together."""
    batch: list[ZipMember] = []
    begin = unpacked = 0
    for member in sorted(members, key=lambda member: member.data_at):
        if member.is_folder:
            continue
        end = member.data_at + member.packed
        if batch and (
            end - begin > _BATCH_PACKED
            or unpacked + member.unpacked > _BATCH_UNPACKED
            or max(batch[-1].unpacked, member.unpacked) > _LEAF
        ):
            yield batch
            batch = []
        if not batch:
            begin, unpacked = member.data_at, 0
        batch.append(member)
        unpacked += member.unpacked
    if batch:
        yield batch


def _read_batch(
    source: Source, batch: list[ZipMember], summary: Summary
) -> list[_Read]:
    """Read files of less than 4 MiB in all, whose bytes lie within 1 MiB."""
    begin, last = batch[0].data_at, batch[-1]
    packed = memoryview(source.read(begin, last.data_at + last.packed - begin))
    found = []
    for member in batch:
        at = member.data_at - begin
        content: bytes | memoryview = packed[at : at + member.packed]
        if member.method != STORED:
            content = _unpack_small(member, content)
        if isal_zlib.crc32(content) != member.crc:
            raise damaged(member)
        check_streamed(member, content)
        found.append(_read_whole(member.path, _place(member), content, summary))
    return found


def _unpack_small(member: ZipMember, packed: bytes | memoryview) -> bytes:
    # Not ISA-L: it takes streams for good that zlib, and so most programs, refuse. A
    # tar.gz goes through both.
    unpacker = zlib.decompressobj(RAW_DEFLATE)
    try:
        content = unpacker.decompress(packed, member.unpacked + 1)
    except zlib.error:
        raise damaged(member) from None
    if not unpacker.eof or unpacker.unused_data or len(content) != member.unpacked:
        raise damaged(member)
    return content


def _read_tar_gz(
    source: Source, listing: _Listing, limits: Limits
) -> list[PackedPoint]:
    # Inflated twice at the same time, once for the points; the thread that is done with
    # these helps to hash.
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        finding = pool.submit(find_points, source, stop)
        sharing = _Sharing(pool, listing)
        try:
            reader = TarReader(unpack_gzip(source, limits), limits)
            for batch in _tar_batches(reader, listing):
                sharing.read(partial(_read_small, batch, listing.summary))
            sharing.finish()
            found = finding.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if found.unpacked != reader.size:
        raise ValueError("its gzip stream can be read in two ways")
    return found.points


def _tar_batches(
    reader: TarReader, listing: _Listing
) -> Iterator[list[tuple[str, MemberPlace, list[memoryview]]]]:
    """Yield small files together, with their bytes; list the large ones at once."""
    batch: list[tuple[str, MemberPlace, list[memoryview]]] = []
    held = 0
    for member in reader.members():
        if member.is_folder:
            continue
        place = MemberPlace(member.data_at, member.size, member.size, STORED)
        content = reader.content()
        if member.size > _LEAF:
            listing.add(_read_pieces(member.path, place, content, listing.summary))
            continue
        batch.append((member.path, place, list(content)))
        held += member.size
        if held > _BATCH_PACKED or len(batch) == _MOST_IN_BATCH:
            yield batch
            batch, held = [], 0
    yield batch


def _read_small(
    batch: list[tuple[str, MemberPlace, list[memoryview]]], summary: Summary
) -> list[_Read]:
    return [
        _read_whole(
            path, place, views[0] if len(views) == 1 else b"".join(views), summary
        )
        for path, place, views in batch
    ]


def _write(file: BinaryIO, pieces: Iterable[bytes]) -> None:
    """Write many small pieces in few large ones."""
    held: list[bytes] = []
    length = 0
    for piece in pieces:
        held.append(piece)
        length += len(piece)
        if length >= _WRITTEN:
            file.write(b"".join(held))
            held, length = [], 0
    file.write(b"".join(held))
