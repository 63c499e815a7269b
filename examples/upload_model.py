"""Publish a model. Set VISION_O3_URL, VISION_O3_CLIENT_ID and VISION_O3_CLIENT_SECRET.

python examples/upload_model.py detector.onnx text-detector
"""

import os
import sys

from vision_o3 import VisionO3Client

path, name = sys.argv[1:]
credentials = (
    os.environ["VISION_O3_CLIENT_ID"],
    os.environ["VISION_O3_CLIENT_SECRET"],
)

with VisionO3Client(os.environ["VISION_O3_URL"], credentials=credentials) as client:
    model = client.upload_model(path, name, framework="onnx", model_type="detection")

print(f"{model.name} version {model.version}: {model.cid}")
