"""Look into a dataset's archive; fetch one picture of it, or all, verified.

Standard library only, Python 3.8. Set VISION_O3_URL, VISION_O3_CLIENT_ID and
VISION_O3_CLIENT_SECRET.

python examples/dataset_files.py licence-plates 2 [DIRECTORY]
"""

import os
import sys

from vision_o3 import VisionO3Client

name, version = sys.argv[1], int(sys.argv[2])
credentials = (
    os.environ["VISION_O3_CLIENT_ID"],
    os.environ["VISION_O3_CLIENT_SECRET"],
)

with VisionO3Client(os.environ["VISION_O3_URL"], credentials=credentials) as client:
    manifest = client.get_dataset_manifest(name, version)
    images = [f for f in manifest.files if f.media_type.startswith("image/")]
    print(f"{len(manifest.files)} files, {len(images)} of them images")

    for image in images[:1]:  # only these bytes leave the gateway
        path = client.download_dataset_file(name, image.path, version)
        print(path)

    if sys.argv[3:]:  # the whole archive, each file checked before it is visible
        client.extract_dataset(name, sys.argv[3], version)
