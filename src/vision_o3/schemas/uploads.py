"""Uploads in parts on the wire."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field


class UploadRead(BaseModel):
    """How far an upload is."""

    cid: str
    file_size: int = Field(ge=0, description="Bytes.")
    received: int = Field(ge=0, description="Bytes that are in, verified.")
    missing: list[tuple[int, int]] = Field(
        description="What is not in: ranges of bytes, `[start, end)`, in order."
    )
    expires_at: datetime = Field(
        description="When the upload is removed, unless more comes before."
    )
