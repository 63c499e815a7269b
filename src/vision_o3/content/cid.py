"""CIDs of the kind this registry uses: CIDv1, raw or dag-pb, sha2-256.

Text form: ``b`` and base32 in lower case without padding (RFC 4648), as the CID
specification writes CIDv1 by default.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any

from vision_o3.errors import InvalidCIDError

RAW = 0x55
"""Multicodec ``raw``: the block is file bytes."""
DAG_PB = 0x70
"""Multicodec ``dag-pb``: the block is a node that holds links."""
DIGEST_SIZE = 32

_VERSION = 0x01
_SHA2_256 = 0x12
_BINARY_SIZE = 4 + DIGEST_SIZE
_TEXT_SIZE = 59
_ACCEPTED = (
    "Accepted are CIDv1 in base32 ('bafkrei…' or 'bafybei…') with codec raw or dag-pb "
    "and hash sha2-256."
)


class CID:
    """The name of a block, and so of all that it links to. Immutable."""

    __slots__ = ("codec", "digest")

    codec: int
    digest: bytes

    def __init__(self, codec: int, digest: bytes) -> None:
        if codec not in (RAW, DAG_PB) or len(digest) != DIGEST_SIZE:
            raise InvalidCIDError("Not a codec and digest of ours. " + _ACCEPTED)
        object.__setattr__(self, "codec", codec)
        object.__setattr__(self, "digest", digest)

    @classmethod
    def of_block(cls, codec: int, block: Any) -> CID:
        """Return the CID of a block (any bytes-like object)."""
        return cls(codec, hashlib.sha256(block).digest())

    @classmethod
    def from_bytes(cls, raw: bytes) -> CID:
        """Return the CID in its binary form.

        Raises:
            InvalidCIDError: Not a CID of the accepted kind.
        """
        if (
            len(raw) != _BINARY_SIZE
            or raw[0] != _VERSION
            or raw[2] != _SHA2_256
            or raw[3] != DIGEST_SIZE
        ):
            raise InvalidCIDError("The bytes are not such a CID. " + _ACCEPTED)
        return cls(raw[1], bytes(raw[4:]))

    @classmethod
    def parse(cls, text: str) -> CID:
        """Return the CID in its text form.

        Raises:
            InvalidCIDError: Not a CID of the accepted kind; the message says why.
        """
        if not text.startswith("b") or len(text) != _TEXT_SIZE:
            raise InvalidCIDError(f"{_shown(text)} is not such a CID. {_hint(text)}")
        body = text[1:]
        if body != body.lower():
            raise InvalidCIDError(f"{text!r} has upper-case letters. " + _ACCEPTED)
        try:
            raw = base64.b32decode(body.upper() + "=" * (-len(body) % 8))
        except (binascii.Error, ValueError) as error:
            raise InvalidCIDError(f"{text!r} is not base32. " + _ACCEPTED) from error
        cid = cls.from_bytes(raw)
        if str(cid) != text:
            raise InvalidCIDError(f"{text!r} is not canonical base32. " + _ACCEPTED)
        return cid

    @property
    def is_raw(self) -> bool:
        """Whether the block is file bytes rather than a node."""
        return self.codec == RAW

    def __bytes__(self) -> bytes:
        return bytes((_VERSION, self.codec, _SHA2_256, DIGEST_SIZE)) + self.digest

    def __str__(self) -> str:
        return "b" + base64.b32encode(bytes(self)).decode().rstrip("=").lower()

    def __repr__(self) -> str:
        return f"CID.parse({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CID):
            return NotImplemented
        return self.codec == other.codec and self.digest == other.digest

    def __hash__(self) -> int:
        return hash((self.codec, self.digest))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"A CID is immutable: {name} cannot be set.")

    def __reduce__(self) -> Any:
        return CID, (self.codec, self.digest)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 2 * _TEXT_SIZE else text[:_TEXT_SIZE] + "…")


def _hint(text: str) -> str:
    if text.startswith("Qm"):
        return "It looks like a CIDv0: convert it to version 1. " + _ACCEPTED
    return _ACCEPTED
