"""The edge side: find, fetch, verify, cache and publish. Standard library only."""

from __future__ import annotations

from vision_o3.errors import IntegrityError, VisionO3Error
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.differences import DatasetDifference
from vision_o3.sdk.retry import RetryPolicy
from vision_o3.sdk.verifier import CIDVerifier
from vision_o3.sdk.versions import DatasetInfo, ModelInfo

__all__ = [
    "CIDVerifier",
    "DatasetDifference",
    "DatasetInfo",
    "IntegrityError",
    "ModelInfo",
    "RetryPolicy",
    "VisionO3Client",
    "VisionO3Error",
]
