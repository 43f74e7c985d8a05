"""Reads an image file with OpenCV; whatever is wrong with the file becomes a ``DataError`` that names it."""

from __future__ import annotations

import io

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

from ..errors import DataError

FORMATS = ("BGR", "RGB")

# First bytes of a file type, and the bytes that end every complete file of it.
_ENDINGS = ((b"\xff\xd8\xff", b"\xff\xd9"), (b"\x89PNG\r\n\x1a\n", b"IEND"))
TAIL = 64  # bytes searched for the ending: some writers pad the file


def read_image(path: str, format: str = "BGR") -> np.ndarray:
    """Reads an image as 8-bit colour; grey, palette, 16-bit and transparent images are converted.

    Args:
        path: local path, or any address that detectron2's ``PathManager`` opens.
        format: order of the channels, "BGR" or "RGB".

    Returns:
        (height, width, 3) uint8, turned upright as its EXIF orientation says.

    Raises:
        DataError: the file is missing, empty, not an image, or ends too early.
    """
    data = _read_bytes(path)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        image = _read_strictly(path, data)  # a type that OpenCV was built without, or no image at all
    elif not has_ending(data):
        _read_strictly(path, data)  # OpenCV 4 fills what is missing with grey and says nothing
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if format == "RGB" else image


def _read_bytes(path: str) -> bytes:
    opener = PathManager.open if "://" in path else open
    try:
        with opener(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DataError(
            f"Image file {path} cannot be read: {error.strerror or error}. "
            "Restore it, or correct the dataset's image folder or annotation file."
        ) from error
    if not data:
        raise DataError(f"Image file {path} is empty (0 bytes). Restore it, or take it out of the annotation file.")
    return data


def has_ending(data: bytes) -> bool:
    """False when a JPEG or PNG file lacks its end marker; True for every other type."""
    return all(not data.startswith(start) or end in data[-TAIL:] for start, end in _ENDINGS)


def _read_strictly(path: str, data: bytes) -> np.ndarray:
    """Decodes with Pillow, which refuses what is incomplete: (height, width, 3) uint8, BGR."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise DataError(
            f"Image file {path} ({len(data)} bytes) is damaged, cut short or not an image: {error}. "
            "Restore it, or take it out of the annotation file."
        ) from error
    return np.ascontiguousarray(pixels[:, :, ::-1])
