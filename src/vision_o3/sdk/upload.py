"""The form that publishes a file, streamed: memory flat whatever the size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, Optional, Sequence, Tuple

from vision_o3.errors import InputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from vision_o3.sdk.download import Progress

_PIECE_SIZE = 1 << 20


class FormBody:
    """A multipart form (RFC 7578) with one file, last; can be sent again.

    Attributes:
        content_type: With the boundary.
        size: Bytes of the whole form.

    Args:
        fields: Names and values, in order.
        path: The file; read anew each time that the form is sent.
        file_size: Its length, which must not change.
        progress: Called with the file's bytes sent, and in all.
    """

    def __init__(
        self,
        fields: Sequence[Tuple[str, str]],
        path: Path,
        file_size: int,
        progress: Optional[Progress] = None,
    ) -> None:
        boundary = os.urandom(24).hex()
        self.content_type = f"multipart/form-data; boundary={boundary}"
        filename = path.name.replace('"', "%22").replace("\r", "").replace("\n", "")
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
            f"{value}\r\n"
            for name, value in fields
        ]
        parts.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; '
            f'filename="{filename}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        )
        self._head = "".join(parts).encode(errors="replace")
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._path = path
        self._file_size = file_size
        self._progress = progress
        self.size = len(self._head) + file_size + len(self._tail)

    def __iter__(self) -> Iterator[ReadableBuffer]:
        """Yield the form from its start, a view of one buffer for each piece.

        Raises:
            InputError: The file changed its length, or cannot be read.
        """
        yield self._head
        sent = 0
        buffer = memoryview(bytearray(min(_PIECE_SIZE, self._file_size)))
        try:
            with self._path.open("rb", buffering=0) as file:
                while sent < self._file_size:
                    count = file.readinto(buffer[: self._file_size - sent])
                    if not count:
                        raise InputError(f"{self._path} became shorter meanwhile.")
                    yield buffer[:count]
                    sent += count
                    if self._progress is not None:
                        self._progress(sent, self._file_size)
        except OSError as error:
            raise InputError(f"{self._path} cannot be read: {error}.") from error
        yield self._tail
