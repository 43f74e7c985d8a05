"""Reads an image file with OpenCV; whatever is wrong with the file becomes a ``DataError`` that names it."""

from __future__ import annotations

import io
import logging

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

from ..errors import DataError

FORMATS = ("BGR", "RGB")

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# First bytes of a file type, and the bytes that end every complete file of it.
_ENDINGS = ((_JPEG, b"\xff\xd9"), (_PNG, b"IEND"))
TAIL = 64  # bytes searched for the ending: some writers pad the file
_DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras and scanners give; files keep them in 16
_OVERSHOOT = 1.01  # of an image from 0 to 1 that was resized or sharpened
_DARKEST = 0.1  # of such an image; what has less light was written in another range, and would be read as black
_DEEP_MODES = ("I", "F")  # Pillow's, of more than 8 bits a channel
_SAMPLED = 16  # rows and columns between two pixels of a quick look

_logger = logging.getLogger(__name__)
# It writes to stderr about files of floating point that it cannot decode as asked, which are then read otherwise.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def read_image(path: str, format: str = "BGR") -> np.ndarray:
    """Reads an image as 8-bit colour; grey, palette, CMYK, transparent and deeper images are converted.

    An image of more than 8 bits is scaled by the smallest depth of 8, 10, 12, 14 and 16 bits that holds its content,
    one of floating point from the range 0 to 1, or taken as 0 to 255 where it goes beyond. A picture that is drawn in
    its transparency alone is laid on white.

    Args:
        path: local path, or any address that detectron2's ``PathManager`` opens.
        format: order of the channels, "BGR" or "RGB".

    Returns:
        (height, width, 3) uint8, turned upright as its EXIF orientation says.

    Raises:
        DataError: the file is missing, empty, not an image, ends too early, is too large, or has values of no known
            range.
    """
    data = _read_bytes(path)
    image = _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        image = _read_strictly(path, data)  # a type that OpenCV was built without, or no image at all
    elif not has_ending(data):
        _read_strictly(path, data)  # OpenCV 4 fills what is missing with grey and says nothing
    if image.dtype != np.uint8:
        image = _to_eight_bits(path, image)
    if not data.startswith(_JPEG) and _is_blank(image):
        image = _on_white(data, image)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if format == "RGB" else image


def check_eight_bits(path: str) -> None:
    """For readers that know no other images than of 8 bits a channel; looks at the file's header alone.

    Raises:
        DataError: the image has more bits, or more pixels than Pillow opens. Files that are no images pass.
    """
    try:
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            mode = image.mode
    except OSError:
        return
    except Image.DecompressionBombError as error:
        raise DataError(
            f"Image file {path} is too large: {error} Make it smaller, or set INPUT.MAPPER detr."
        ) from error
    if mode.startswith(_DEEP_MODES):
        raise DataError(
            f"Image file {path} has more than 8 bits a channel (Pillow's mode {mode}), which INPUT.MAPPER detectron2 "
            "cannot read. Set INPUT.MAPPER detr, or save it with 8 bits."
        )


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


def _decode(data: bytes, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # more pixels than OpenCV takes, or a header that contradicts itself
        return None


def has_ending(data: bytes) -> bool:
    """False when a JPEG or PNG file lacks its end marker; True for every other type."""
    return all(not data.startswith(start) or end in data[-TAIL:] for start, end in _ENDINGS)


def _read_strictly(path: str, data: bytes) -> np.ndarray:
    """Decodes with Pillow, which refuses what is incomplete: (height, width, 3), BGR, as deep as it is."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image)
            deep = upright.mode.startswith(_DEEP_MODES)
            pixels = np.asarray(upright if deep else upright.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise DataError(
            f"Image file {path} ({len(data)} bytes) is damaged, cut short or not an image: {error}. "
            "Restore it, or take it out of the annotation file."
        ) from error
    # Pillow's deep images are grey.
    return np.stack([pixels] * 3, axis=2) if pixels.ndim == 2 else np.ascontiguousarray(pixels[:, :, ::-1])


def _to_eight_bits(path: str, image: np.ndarray) -> np.ndarray:
    least, most = float(image.min()), float(image.max())
    scale = None
    if np.issubdtype(image.dtype, np.floating):
        if least >= 0 and (most == 0 or _DARKEST < most <= _OVERSHOOT):
            scale, said = 255.0, "0 to 1"
        elif least >= 0 and 25 < most <= 255:
            scale, said = 1.0, "0 to 255"
    elif least >= 0:
        depth = next((bits for bits in _DEPTHS if most < 2**bits), None)
        if depth is not None:
            scale, said = 2.0 ** (8 - depth), f"{depth} bits"
    if scale is None:
        raise DataError(
            f"Image file {path} has {image.dtype} values from {least:g} to {most:g}, which show no known range. Save "
            "it with 8 bits a channel, or as floating point from 0 to 1."
        )
    if said != "16 bits":
        _warn_once(f"Image file {path} has {image.dtype} values from {least:g} to {most:g}: read as {said}.")
    values = image * np.float32(scale)
    # Whole numbers lose their lowest bits, as they always did; fractions are rounded.
    return (values if image.dtype.kind in "iu" else np.rint(values)).clip(0, 255).astype(np.uint8)


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    """A set has many such images; one of them tells."""
    if not _warned:
        _warned.add(message)
        _logger.warning("%s Others like it are not named.", message)


def _is_blank(image: np.ndarray) -> bool:
    sample = image[::_SAMPLED, ::_SAMPLED]
    return bool((sample == image[0, 0]).all()) and bool((image == image[0, 0]).all())


def _on_white(data: bytes, image: np.ndarray) -> np.ndarray:
    """A picture of one colour whose drawing is its transparency, on white; any other as it is."""
    whole = _decode(data, cv2.IMREAD_UNCHANGED)
    if whole is None or whole.ndim != 3 or whole.shape[2] != 4 or whole.shape[:2] != image.shape[:2]:
        return image
    alpha = whole[:, :, 3:] / np.float32(np.iinfo(whole.dtype).max)
    return np.rint(image * alpha + 255 * (1 - alpha)).astype(np.uint8)
