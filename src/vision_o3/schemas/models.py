"""Models on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from vision_o3.schemas.facts import ModelFacts
from vision_o3.schemas.versions import ListQuery, VersionRead

_CID = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"
_EXAMPLE: dict[str, JsonValue] = {
    "id": "6f1c2a52-7c43-4a92-9a3b-0d8d3f0f3b7e",
    "name": "yolov11-nano",
    "version": 2,
    "cid": _CID,
    "framework": "onnx",
    "model_type": "detection",
    "file_format": "onnx",
    "file_size": 10_711_040,
    "description": "Fine-tuned for licence plates.",
    "tags": ["edge", "int8"],
    "owner_id": "ann",
    "created_at": "2026-11-24T14:00:00Z",
    "withdrawal": {
        "state": "deprecated",
        "reason": "It misses people at night. Use v3.",
        "at": "2026-11-25T09:30:00Z",
    },
    "facts": {
        "kind": "onnx",
        "ir_version": 10,
        "opset_import": {"ai.onnx": 17},
        "producer_name": "pytorch",
        "producer_version": "2.13.0",
        "domain": "",
        "model_version": 0,
        "graph_name": "main_graph",
        "inputs": [{"name": "images", "dtype": "float32", "shape": [1, 3, 640, 640]}],
        "outputs": [{"name": "output0", "dtype": "float32", "shape": [1, 84, 8400]}],
        "operators": {"Conv": 88, "Mul": 78, "Sigmoid": 77},
        "node_count": 320,
        "custom_domains": [],
        "parameters": 2_624_080,
        "initializer_count": 178,
        "quantized": False,
        "metadata": {},
    },
    "links": {
        "self": "/models/yolov11-nano/versions/2",
        "download": "/models/yolov11-nano/versions/2/download",
        "dag": f"/models/cid/{_CID}/dag",
    },
}


class ModelVersionRead(VersionRead):
    """One published version of a model."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    framework: str = Field(description="As the publisher said; may be empty.")
    model_type: str = Field(description="As the publisher said; may be empty.")
    file_format: str = Field(description="`pt`, `onnx`, `tflite` or `h5`.")
    facts: ModelFacts = Field(description="What was read from the file itself.")


class ModelPublished(ModelVersionRead):
    """The answer to a publisher."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{**_EXAMPLE, "created": True}]}
    )

    created: bool = Field(
        description="False if the latest version had this content already."
    )


class ModelPage(BaseModel):
    """One page of a list of models."""

    items: list[ModelVersionRead]
    page: int
    page_size: int
    total: int = Field(description="Items on all pages.")


class ModelQuery(ListQuery):
    """Which models to list."""

    framework: str | None = Field(default=None, max_length=64)
    model_type: str | None = Field(default=None, max_length=64)
    format: str | None = Field(default=None, max_length=16)
    quantized: bool | None = Field(
        default=None, description="ONNX and TFLite: whether it is quantised."
    )
    safety: Literal["safe", "unsafe"] | None = Field(
        default=None, description="PyTorch and HDF5: whether loading it runs code."
    )
