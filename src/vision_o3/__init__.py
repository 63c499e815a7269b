"""Vision-O3: a decentralised registry for edge AI.

The edge side is offered here; it is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision_o3.errors import IntegrityError, VisionO3Error
    from vision_o3.sdk.aio import AsyncVisionO3Client
    from vision_o3.sdk.client import VisionO3Client
    from vision_o3.sdk.verifier import CIDVerifier

__version__ = "0.1.0"

__all__ = [
    "AsyncVisionO3Client",
    "CIDVerifier",
    "IntegrityError",
    "VisionO3Client",
    "VisionO3Error",
    "__version__",
]

_HOMES = {
    "AsyncVisionO3Client": "vision_o3.sdk.aio",
    "CIDVerifier": "vision_o3.sdk.verifier",
    "IntegrityError": "vision_o3.errors",
    "VisionO3Client": "vision_o3.sdk.client",
    "VisionO3Error": "vision_o3.errors",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whichever class is asked for
    if name not in _HOMES:
        raise AttributeError(f"module 'vision_o3' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - rarely needed twice

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
