"""What is sent to a bucket: bytes, or a file of which little is in memory at a time."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from typing import Any, Protocol

from vision_o3.errors import StorageError

_HASHED_AT_ONCE = 1 << 20


class Content(Protocol):
    """What is to be stored: bytes that can be read any number of times."""

    @property
    def size(self) -> int:
        """How many bytes."""
        ...

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes ``[start, end)``."""
        ...

    def body(self, start: int, end: int) -> Any:  # noqa: ANN401 - bytes or a file
        """Return the bytes ``[start, end)`` in the form that botocore sends."""
        ...


class BytesContent:
    """Bytes in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes ``[start, end)``."""
        return self._content[start:end]

    body = read


class FileContent:
    """An open file of which never more is in memory than is on its way.

    Any failure to read it is raised as a ``StorageError`` by ``check``, since botocore
    takes it for one of the network.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self._failure: OSError | None = None

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes ``[start, end)``, or fewer.

        Raises:
            OSError: They cannot be read; ``check`` says so as well.
        """
        try:
            content = os.pread(self._descriptor, end - start, start)
            if len(content) < min(end - start, 1):
                raise OSError("it became shorter")  # noqa: TRY301 - one handler
        except OSError as error:
            self._failure = error
            raise
        return content

    def body(self, start: int, end: int) -> _Slice | bytes:
        """Return the bytes ``[start, end)`` as a file of their own."""
        return _Slice(self, start, end) if start < end else b""

    def check(self) -> None:
        """Raise ``StorageError`` if the file could not be read."""
        if self._failure is not None:
            raise unreadable() from self._failure


def unreadable() -> StorageError:
    """Return the error for a file that cannot be read."""
    return StorageError("The file to store cannot be read.", reason="unreadable file")


class _Slice(io.RawIOBase):
    """The bytes ``[start, end)`` of a file, as a file to be sent."""

    def __init__(self, content: FileContent, start: int, end: int) -> None:
        self._content, self._start, self._end = content, start, end
        self._at = start

    def __len__(self) -> int:
        return self._end - self._start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at - self._start

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origins = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: len(self)}
        self._at = self._start + max(0, min(origins[whence] + offset, len(self)))
        return self.tell()

    def read(self, size: int | None = -1) -> bytes:
        left = self._end - self._at
        wanted = left if size is None or size < 0 else min(size, left)
        content = self._content.read(self._at, self._at + wanted) if wanted else b""
        self._at += len(content)
        return content


def md5_of(content: Content, start: int, end: int) -> str:
    """Return the MD5 of a span in the form of the header Content-MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    for at in range(start, end, _HASHED_AT_ONCE):
        digest.update(content.read(at, min(at + _HASHED_AT_ONCE, end)))
    return base64.b64encode(digest.digest()).decode()
