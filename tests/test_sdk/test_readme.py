"""The README's lines for Python do what they say."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any, List

import pytest

from tests.fakes.fake_gateway import FakeGateway
from tests.test_sdk.conftest import MIB, content_of

README = Path(__file__).parent.parent.parent / "README.md"
CONTENT = content_of(MIB + 7)


def blocks() -> List[str]:
    text = README.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


class Framework(types.ModuleType):
    """Stands for a library: any path of names leads to what loads a model."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Framework(name)

    def __call__(self, path: Any) -> bytes:
        assert Path(path).suffix == ".onnx"
        return Path(path).read_bytes()


@pytest.mark.parametrize(
    ("number", "library"),
    list(enumerate(["torch", "onnxruntime", "ai_edge_litert.interpreter", "keras"])),
)
def test_four_lines_load_a_model(
    served: FakeGateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    library: str,
) -> None:
    lines = [line for line in blocks()[number].splitlines() if line]
    assert len(lines) == 4
    assert library in lines[0]
    served.users["camera-7"] = "s"
    served.publish("text-detector", CONTENT)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in {library, library.partition(".")[0]}:
        monkeypatch.setitem(sys.modules, name, Framework(name))
    code = "\n".join(lines).replace("https://models.example.com", served.url)
    names: Any = {"secret": "s"}
    exec(code, names)  # noqa: S102 - our own
    names["client"].close()
    assert names["model"] == CONTENT


def test_fsspec_reads_as_it_says(
    served: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec", reason="the extra is not installed")
    fsspec.register_implementation(
        "vision-o3", "vision_o3.sdk.filesystem.VisionO3FileSystem"
    )
    fsspec.get_filesystem_class("vision-o3").clear_instance_cache()
    served.publish("m", CONTENT)
    served.publish_archive("street-signs", {"train/stop/001.jpg": b"a picture"})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VISION_O3_URL", served.url)
    (code,) = [block for block in blocks() if "fsspec" in block]
    names: Any = {}
    exec(code, names)  # noqa: S102 - our own
    assert names["content"] == b"a picture"
    assert [each["name"] for each in names["models"]] == ["models/m@1"]
