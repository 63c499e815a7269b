"""Datasets on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from vision_o3.schemas.facts import DatasetFacts
from vision_o3.schemas.versions import (
    ALLOW_BLOCKED,
    VERSION_PATTERN,
    ListQuery,
    StrictQuery,
    VersionRead,
)

_CID = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"
_MANIFEST_CID = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
_FILE_CID = "bafkreidogqfzz75tpkmjzjke425xqcrmpcib2p5tg44hnbirumdbpl5adu"
_EXAMPLE: dict[str, JsonValue] = {
    "id": "6f1c2a52-7c43-4a92-9a3b-0d8d3f0f3b7e",
    "name": "licence-plates",
    "version": 2,
    "cid": _CID,
    "format": "zip",
    "manifest_cid": _MANIFEST_CID,
    "file_size": 210_711_040,
    "description": "Street scenes, boxes drawn by hand.",
    "tags": ["street"],
    "owner_id": "ann",
    "created_at": "2026-11-25T14:00:00Z",
    "facts": {
        "kind": "archive",
        "container": "zip",
        "files": 2,
        "unpacked_bytes": 220_000_000,
        "media_types": {"image/jpeg": {"files": 2, "bytes": 220_000_000}},
        "splits": {},
        "images": None,
        "annotations": None,
    },
    "links": {
        "self": "/datasets/licence-plates/versions/2",
        "download": "/datasets/licence-plates/versions/2/download",
        "dag": f"/datasets/cid/{_CID}/dag",
        "manifest": "/datasets/licence-plates/versions/2/manifest",
    },
}


class DatasetVersionRead(VersionRead):
    """One published version of a dataset."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    format: str = Field(description="`zip`, `tar.gz`, `json` or `xml`.")
    manifest_cid: str | None = Field(
        description="Names the list of an archive's files; null for what is none."
    )
    facts: DatasetFacts = Field(description="What was read from the file itself.")


class DatasetPublished(DatasetVersionRead):
    """The answer to a publisher."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{**_EXAMPLE, "created": True}]}
    )

    created: bool = Field(
        description="False if the latest version had this content already."
    )


class DatasetPage(BaseModel):
    """One page of a list of datasets."""

    items: list[DatasetVersionRead]
    page: int
    page_size: int
    total: int = Field(description="Items on all pages.")


class DatasetQuery(ListQuery):
    """Which datasets to list."""

    format: str | None = Field(default=None, max_length=16)
    annotations: Literal["coco", "voc", "yolo", "imagefolder"] | None = Field(
        default=None, description="How its images are annotated."
    )
    has_class: str | None = Field(
        default=None,
        max_length=200,
        description="A class that is annotated, as `person`; among the 200 most "
        "frequent of the dataset.",
    )


class FileRead(BaseModel):
    """One file of an archive."""

    path: str
    size: int = Field(ge=0, description="Bytes.")
    cid: str = Field(description="Names the file's bytes, as if published by itself.")
    media_type: str


class ManifestRead(BaseModel):
    """The manifest, whole. Its canonical bytes are what `manifest_cid` names."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "files": [
                        {
                            "cid": _FILE_CID,
                            "media_type": "image/jpeg",
                            "path": "images/0001.jpg",
                            "size": 1,
                        }
                    ],
                    "manifest_format": 1,
                }
            ]
        }
    )

    files: list[FileRead]
    manifest_format: Literal[1]


class FilePage(BaseModel):
    """One page of a manifest's files."""

    items: list[FileRead]
    page: int
    page_size: int
    total: int = Field(description="Items on all pages.")


class ManifestQuery(StrictQuery):
    """Which page of a manifest; without one of these, all of it."""

    page: int | None = Field(default=None, ge=1, le=1_000_000, description="From 1.")
    page_size: int | None = Field(default=None, ge=1, le=1000)
    allow_blocked: bool = Field(default=False, description=ALLOW_BLOCKED)


class DiffQuery(StrictQuery):
    """Which versions to compare, and which page of the changed files."""

    before: str = Field(
        alias="from",
        description="A version, from 1 up.",
        json_schema_extra={"pattern": VERSION_PATTERN},
    )
    after: str = Field(
        alias="to",
        description="Another.",
        json_schema_extra={"pattern": VERSION_PATTERN},
    )
    page: int = Field(default=1, ge=1, le=1_000_000, description="From 1.")
    page_size: int = Field(default=200, ge=1, le=1000)
    allow_blocked: bool = Field(default=False, description=ALLOW_BLOCKED)


class ComparedVersion(BaseModel):
    """One side of a comparison."""

    version: int
    cid: str
    manifest_cid: str | None


class FileChange(BaseModel):
    """One file that is not the same."""

    change: Literal["added", "removed", "changed", "renamed"]
    path: str = Field(description="Its path after; before, if it was removed.")
    old_path: str | None = Field(
        default=None, exclude_if=lambda value: value is None, description="If renamed."
    )
    cid: str
    old_cid: str | None = Field(
        default=None, exclude_if=lambda value: value is None, description="If changed."
    )
    size: int
    old_size: int | None = Field(
        default=None, exclude_if=lambda value: value is None, description="If changed."
    )


class FileChanges(BaseModel):
    """The files of two archives, compared."""

    added: int
    removed: int
    changed: int
    renamed: int
    unchanged: int
    items: list[FileChange] = Field(
        description="Added, removed, changed, renamed; each by path."
    )
    page: int
    page_size: int
    total: int = Field(description="Items on all pages.")


class CountChange(BaseModel):
    """A count before and after."""

    before: int
    after: int


class AnnotationChanges(BaseModel):
    """What is annotated in two versions, compared."""

    images: CountChange
    annotations: CountChange
    boxes: CountChange
    classes: dict[str, CountChange] = Field(
        description="Only those whose count is not the same."
    )


class DiffRead(BaseModel):
    """What changed from one version of a dataset to another."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    name: str
    before: ComparedVersion = Field(alias="from")
    after: ComparedVersion = Field(alias="to")
    files: FileChanges | None = Field(description="Null unless both are archives.")
    annotations: AnnotationChanges | None = Field(
        description="Null unless both are annotated in a way that is understood."
    )
