"""The beginnings of text files."""

from __future__ import annotations

import codecs
import re

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def utf8(head: bytes, size: int) -> str:
    """Return the head of a file of ``size`` bytes as text, without its BOM.

    A character that the head cuts is left off.

    Raises:
        ValueError: Not UTF-8, or with control characters.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        text = decoder.decode(head, final=len(head) >= size)
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
    return _without_control(text)


def in_any_encoding(head: bytes) -> str:
    """Return the head of a text file, good for its ASCII characters only.

    In all encodings of note but UTF-16 they are bytes of their own.

    Raises:
        ValueError: It has control characters.
    """
    if head.startswith(_UTF16):
        return _without_control(head.decode("utf-16", "replace"))
    return _without_control(head.removeprefix(codecs.BOM_UTF8).decode("latin-1"))


def _without_control(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("it is not text")
    return text
