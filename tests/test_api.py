"""The public names, exactly: a change here is a change that users see."""

from __future__ import annotations

import inspect
import subprocess
import sys

import vision_o3
from vision_o3 import sdk
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.verifier import CIDVerifier


def test_top_level_names() -> None:
    assert sorted(vision_o3.__all__) == [
        "AsyncVisionO3Client",
        "CIDVerifier",
        "IntegrityError",
        "VisionO3Client",
        "VisionO3Error",
        "__version__",
    ]
    for name in vision_o3.__all__:
        assert getattr(vision_o3, name)


def test_names_of_the_edge_side() -> None:
    assert sorted(sdk.__all__) == [
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
    for name in sdk.__all__:
        assert getattr(sdk, name)


def public(cls: type) -> set[str]:
    return {
        name
        for name, member in inspect.getmembers(cls)
        if callable(member) and not name.startswith("_")
    }


def test_client_has_the_methods_of_the_plan() -> None:
    assert public(VisionO3Client) >= {
        "list_models",
        "iter_models",
        "get_model_info",
        "download_model",
        "download_model_by_cid",
        "upload_model",
        "list_datasets",
        "iter_datasets",
        "get_dataset_info",
        "download_dataset",
        "download_dataset_by_cid",
        "upload_dataset",
        "get_dataset_manifest",
        "download_dataset_file",
        "open_dataset_file",
        "extract_dataset",
        "compare_datasets",
        "clear_cache",
        "get_cache_size",
        "close",
    }
    assert public(CIDVerifier) == {"compute_cid", "verify_file"}


def test_client_is_made_as_the_plan_says() -> None:
    parameters = list(inspect.signature(VisionO3Client).parameters)
    assert parameters[:3] == ["gateway_url", "api_token", "cache_dir"]
    assert list(inspect.signature(VisionO3Client.download_model).parameters) == [
        "self",
        "name",
        "version",
        "verify",
        "allow_blocked",
    ]


def test_methods_for_files_of_datasets_take_what_the_plan_says() -> None:
    for method, expected in (
        (VisionO3Client.get_dataset_manifest, ["name", "version"]),
        (VisionO3Client.download_dataset_file, ["name", "path", "version"]),
        (VisionO3Client.open_dataset_file, ["name", "path", "version"]),
        (
            VisionO3Client.extract_dataset,
            ["name", "target", "version", "paths", "overwrite"],
        ),
        (VisionO3Client.compare_datasets, ["name", "before", "after"]),
    ):
        parameters = list(inspect.signature(method).parameters)[1:]
        assert parameters == [*expected, "allow_blocked"]


def test_the_edge_side_loads_the_standard_library_and_little_of_it() -> None:
    code = (
        "import sys, vision_o3, vision_o3.sdk, vision_o3.sdk.cli; "
        "vision_o3.VisionO3Client; "
        "print([m for m in ('fastapi', 'pydantic', 'sqlalchemy', 'obstore', 'anyio',"
        " 'structlog', 'rich', 'httpx', 'zipfile', 'tarfile', 'http.client', 'ssl')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
