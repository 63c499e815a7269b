"""CIDs of the kind this registry uses: CIDv1, raw or dag-pb, sha2-256.

Text form: ``b`` and base32 in lower case without padding (RFC 4648), as the CID
specification writes CIDv1 by default. One content has one accepted text.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Tuple, Type

from vision_o3.content import varint
from vision_o3.errors import InvalidCIDError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

RAW = 0x55
"""Multicodec ``raw``: the block is file bytes."""
DAG_PB = 0x70
"""Multicodec ``dag-pb``: the block is a node that holds links."""
DIGEST_SIZE = 32
"""Bytes of a sha2-256 digest."""
CID_SIZE = 4 + DIGEST_SIZE
"""Bytes of an accepted CID in binary form."""

_VERSION = 1
_SHA2_256 = 0x12
_MAX_TEXT = 128
_SHOWN = 64
_TEXT = re.compile(r"b[a-z2-7]+")
_ACCEPTED = (
    "Accepted is CIDv1 in lower-case base32 ('bafkrei…' or 'bafybei…'), with codec "
    "raw or dag-pb and hash sha2-256."
)


@dataclass(frozen=True, repr=False)
class CID:
    """The name of a block, and so of all that it links to. Immutable, hashable.

    Attributes:
        codec: ``RAW`` or ``DAG_PB``.
        digest: The sha2-256 digest of the block, 32 bytes.

    Raises:
        InvalidCIDError: Another codec, or a digest of another length.
    """

    __slots__ = ("codec", "digest")

    codec: int
    digest: bytes

    def __post_init__(self) -> None:
        if self.codec not in (RAW, DAG_PB) or len(self.digest) != DIGEST_SIZE:
            raise InvalidCIDError(f"No CID has such a codec and digest. {_ACCEPTED}")

    @classmethod
    def of_block(cls, codec: int, block: ReadableBuffer) -> CID:
        """Return the CID of a block."""
        return cls(codec, hashlib.sha256(block).digest())

    @classmethod
    def from_bytes(cls, raw: bytes) -> CID:
        """Return the CID with this binary form.

        Raises:
            InvalidCIDError: Not a CID of the accepted kind; the message says why.
        """
        fault = _binary_fault(raw)
        if fault:
            raise InvalidCIDError(f"The binary CID is refused: {fault}. {_ACCEPTED}")
        return cls(raw[1], bytes(raw[4:]))

    @classmethod
    def parse(cls, text: str) -> CID:
        """Return the CID with this text form.

        Raises:
            InvalidCIDError: Not a CID of the accepted kind; the message says why.
        """
        fault = _text_fault(text)
        raw = b""
        if not fault:
            try:
                raw = base64.b32decode(text[1:].upper() + "=" * (-len(text[1:]) % 8))
                fault = _binary_fault(raw)
            except ValueError:
                fault = f"no base32 text has {len(text)} characters"
        if not fault and _to_text(raw) != text:
            fault = "the unused bits of its last character are not zero"
        if fault:
            shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
            raise InvalidCIDError(f"CID {shown!r} is refused: {fault}. {_ACCEPTED}")
        return cls(raw[1], raw[4:])

    @property
    def is_raw(self) -> bool:
        """Whether the block is file bytes rather than a node."""
        return self.codec == RAW

    def __bytes__(self) -> bytes:
        return bytes((_VERSION, self.codec, _SHA2_256, DIGEST_SIZE)) + self.digest

    def __str__(self) -> str:
        return _to_text(bytes(self))

    def __repr__(self) -> str:
        return f"CID.parse({str(self)!r})"

    def __reduce__(self) -> Tuple[Type[CID], Tuple[int, bytes]]:
        return CID, (self.codec, self.digest)


def _to_text(raw: bytes) -> str:
    return "b" + base64.b32encode(raw).decode().rstrip("=").lower()


def _text_fault(text: str) -> str:
    """Return why a text is no multibase text of ours; empty when it is one."""
    if len(text) > _MAX_TEXT:
        return f"it has {len(text)} characters"
    if _TEXT.fullmatch(text):
        return ""
    if text.startswith("Qm"):
        return "it is a CIDv0; 'ipfs cid base32' converts it to version 1"
    if _TEXT.fullmatch(text.lower()):
        return "it has upper-case letters"
    if not text.startswith("b"):
        return "it does not start with 'b', the sign of base32"
    return "it has characters that are not base32"


def _binary_fault(raw: bytes) -> str:
    """Return why bytes are no CID of the accepted kind; empty when they are one."""
    at = 0
    for name, accepted in (
        ("version", (_VERSION,)),
        ("codec", (RAW, DAG_PB)),
        ("hash function", (_SHA2_256,)),
        ("digest length", (DIGEST_SIZE,)),
    ):
        try:
            number, at = varint.decode(raw, at)
        except ValueError as error:
            return f"in its {name}, {error}"
        if number not in accepted:
            return f"its {name} is {number:#x}, not {' or '.join(map(hex, accepted))}"
    if len(raw) != CID_SIZE:
        return f"its digest has {len(raw) - at} bytes, not {DIGEST_SIZE}"
    return ""
