"""Media types by extension: an own table, so that no system decides a manifest."""

from __future__ import annotations

UNKNOWN = "application/octet-stream"

# As registered with IANA where they are; the rest as is common.
_EXTENSIONS = {
    "image/avif": "avif",
    "image/bmp": "bmp dib",
    "image/gif": "gif",
    "image/heic": "heic",
    "image/heif": "heif",
    "image/jp2": "jp2",
    "image/jpeg": "jpg jpeg jpe jfif",
    "image/jxl": "jxl",
    "image/png": "png apng",
    "image/svg+xml": "svg",
    "image/tiff": "tif tiff",
    "image/vnd.adobe.photoshop": "psd",
    "image/webp": "webp",
    "image/x-adobe-dng": "dng",
    "image/x-exr": "exr",
    "image/x-icon": "ico",
    "image/x-portable-anymap": "pnm",
    "image/x-portable-bitmap": "pbm",
    "image/x-portable-floatmap": "pfm",
    "image/x-portable-graymap": "pgm",
    "image/x-portable-pixmap": "ppm",
    "video/mp2t": "m2ts",
    "video/mp4": "mp4 m4v",
    "video/mpeg": "mpg mpeg",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "video/x-matroska": "mkv",
    "video/x-msvideo": "avi",
    "audio/flac": "flac",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg",
    "audio/wav": "wav",
    "text/plain": "txt text log names cfg ini",
    "text/csv": "csv",
    "text/tab-separated-values": "tsv",
    "text/markdown": "md markdown",
    "text/html": "html htm",
    "text/x-python": "py",
    "application/json": "json",
    "application/geo+json": "geojson",
    "application/jsonl": "jsonl ndjson",
    "application/toml": "toml",
    "application/xml": "xml",
    "application/yaml": "yaml yml",
    "application/pdf": "pdf",
    "application/x-ipynb+json": "ipynb",
    "application/dicom": "dcm dicom",
    "application/gzip": "gz tgz",
    "application/x-7z-compressed": "7z",
    "application/x-bzip2": "bz2",
    "application/x-tar": "tar",
    "application/x-xz": "xz",
    "application/vnd.rar": "rar",
    "application/zip": "zip",
    "application/zstd": "zst",
    "application/vnd.apache.arrow.file": "arrow feather",
    "application/vnd.apache.parquet": "parquet",
    "application/vnd.sqlite3": "sqlite sqlite3",
    "application/x-hdf5": "h5 hdf5",
    "application/x-lmdb": "mdb",
    "application/x-matlab-data": "mat",
    "application/x-numpy": "npy npz",
    "application/x-pickle": "pkl pickle",
    "application/x-tfrecord": "tfrecord tfrecords",
    "application/x-onnx": "onnx",
    "application/x-pytorch": "pt pth",
    "application/x-safetensors": "safetensors",
    "application/x-tflite": "tflite",
    "model/obj": "obj",
    "model/ply": "ply",
    "model/x-pcd": "pcd",
}
_BY_EXTENSION = {
    extension: media_type
    for media_type, extensions in _EXTENSIONS.items()
    for extension in extensions.split()
}


def media_type_of(path: str) -> str:
    """Return the media type that a path's extension, in any case, stands for."""
    name = path[path.rfind("/") + 1 :]
    dot = name.rfind(".")
    return _BY_EXTENSION.get(name[dot + 1 :].lower(), UNKNOWN) if dot >= 0 else UNKNOWN
