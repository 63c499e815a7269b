"""The edge side: find, fetch, verify, cache and publish. Standard library only.

What is offered here is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision_o3.errors import IntegrityError, VisionO3Error
    from vision_o3.sdk.aio import AsyncVisionO3Client
    from vision_o3.sdk.client import VisionO3Client
    from vision_o3.sdk.differences import DatasetDifference
    from vision_o3.sdk.progress import ProgressLine
    from vision_o3.sdk.retry import RetryPolicy
    from vision_o3.sdk.verifier import CIDVerifier
    from vision_o3.sdk.versions import DatasetInfo, ModelInfo

__all__ = [
    "AsyncVisionO3Client",
    "CIDVerifier",
    "DatasetDifference",
    "DatasetInfo",
    "IntegrityError",
    "ModelInfo",
    "ProgressLine",
    "RetryPolicy",
    "VisionO3Client",
    "VisionO3Error",
]

_HOMES = {
    "AsyncVisionO3Client": "vision_o3.sdk.aio",
    "CIDVerifier": "vision_o3.sdk.verifier",
    "DatasetDifference": "vision_o3.sdk.differences",
    "DatasetInfo": "vision_o3.sdk.versions",
    "IntegrityError": "vision_o3.errors",
    "ModelInfo": "vision_o3.sdk.versions",
    "ProgressLine": "vision_o3.sdk.progress",
    "RetryPolicy": "vision_o3.sdk.retry",
    "VisionO3Client": "vision_o3.sdk.client",
    "VisionO3Error": "vision_o3.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vision_o3.sdk' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - rarely needed twice

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
