"""The bytes of a file, addressed like ``bytes`` and read when they are touched."""

from __future__ import annotations

import io
import mmap
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

Content = mmap.mmap | bytes
"""Index it for a number, slice it for ``bytes``."""


@contextmanager
def mapped(file: BinaryIO, size: int) -> Iterator[Content]:
    """Give the first ``size`` bytes of a file, without reading them into memory.

    A file on disk is mapped: what is never touched is never read. A file in memory is
    there already. The file must not be cut while the context lasts.

    Raises:
        ValueError: There are not so many bytes, or none.
    """
    if not size:
        raise ValueError("there is nothing in it")
    try:
        number = file.fileno()
    except io.UnsupportedOperation:
        file.seek(0)
        content = file.read(size)
        if len(content) != size:
            raise ValueError("it is cut short") from None
        yield content
        return
    with mmap.mmap(number, size, access=mmap.ACCESS_READ) as mapping:
        yield mapping
