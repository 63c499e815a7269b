"""Fetch the newest version of a model, verified. Standard library only, Python 3.8.

Set VISION_O3_URL, VISION_O3_CLIENT_ID and VISION_O3_CLIENT_SECRET.

python examples/edge_device.py text-detector
"""

import os
import sys

from vision_o3 import VisionO3Client

credentials = (
    os.environ["VISION_O3_CLIENT_ID"],
    os.environ["VISION_O3_CLIENT_SECRET"],
)

with VisionO3Client(os.environ["VISION_O3_URL"], credentials=credentials) as client:
    path = client.download_model(sys.argv[1])  # every byte checked against the CID

print(path)  # for example: onnxruntime.InferenceSession(str(path))
