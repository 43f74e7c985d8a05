"""Whether the image files of a set are there and of the size that its records say, without decoding them."""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import ExifTags, Image

from ..errors import DataError, first
from .check_cache import hash_file
from .image import TAIL, has_ending, read_image

logger = logging.getLogger(__name__)

# On a slow disk the headers of a large set take longer; what is left is checked when an image is read.
SECONDS = 20.0

_NAMED = 5  # files that a message lists
_CHUNK = 256  # files a task
THREADS = 8  # a network disk answers many questions at once
_HEAD = 2048  # bytes that hold the header of most files
_SIDEWAYS = 5  # EXIF orientations from here on swap width and height


def check_image_files(records: Sequence[dict], source: str, seconds: float = SECONDS) -> int:
    """Checks the image files of dataset records; those with an address are left alone.

    Args:
        records: dicts in detectron2's dataset format.
        source: names the set in messages.
        seconds: no further header is read after this time.

    Returns:
        How many headers were read.

    Raises:
        DataError: files are missing, no images, or of another size than their record says.
    """
    local = [record for record in records if "://" not in record.get("file_name", "://")]
    missing = missing_files(record["file_name"] for record in local)
    if missing:
        raise DataError(
            f"{source}: {len(missing)} of its {len(records)} image files are not there: {first(missing)}. "
            "Correct the image folder, or put the images there."
        )
    deadline = time.monotonic() + seconds
    chunks = [local[start : start + _CHUNK] for start in range(0, len(local), _CHUNK)]
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a large image is no fault
        found = list(pool.map(lambda chunk: None if time.monotonic() > deadline else _faults(chunk), chunks))
    faults = [fault for chunk in found if chunk is not None for fault in chunk]
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults[:_NAMED])
        more = f"\n  and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise DataError(f"{source}: {len(faults)} of its {len(records)} image files cannot be used:\n{listed}{more}")
    return sum(len(chunk) for chunk, result in zip(chunks, found, strict=True) if result is not None)


def missing_files(paths: Iterable[str]) -> list[str]:
    """Paths where no file is; one listing a folder instead of one query a file, which is slow on network disks."""
    listings: dict[str, frozenset[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listings:
            listings[folder] = frozenset(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else frozenset()
        if name not in listings[folder]:
            missing.append(path)
    return missing


def _faults(records: Sequence[dict]) -> list[str]:
    """What is wrong with some images, in words."""
    return [fault for record in records if (fault := _fault(record))]


def _fault(record: dict) -> str:
    expected = record.get("width"), record.get("height")
    if None in expected:  # the record takes them from the image
        return ""
    path = record["file_name"]
    try:
        if _header_fits(path, expected):
            return ""
        # Only the decoder knows what it makes of an unusual file.
        height, width = read_image(path).shape[:2]
    except DataError as error:
        return str(error)
    if (width, height) == expected:
        return ""
    return (
        f"Image file {path} is {width} x {height} pixels, but its annotation file says {expected[0]} x {expected[1]}. "
        "Correct the annotation file, or restore the image."
    )


def _header_fits(path: str, expected: tuple) -> bool:
    """Whether a whole file's header tells the expected (width, height) once it is turned upright; decodes no pixel."""
    try:
        head, tail = _read_ends(path)
        if not has_ending(head + tail):
            return False
        if plain_size(head) == expected:
            return True
        with Image.open(path) as image:
            if image.size == expected:
                return _orientation(image) < _SIDEWAYS or image.width == image.height
            return image.size == expected[::-1] and _orientation(image) >= _SIDEWAYS
    except Exception:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and others
        return False


def _read_ends(path: str) -> tuple[bytes, bytes]:
    """The first and the last bytes of a file."""
    with open(path, "rb", buffering=0) as file:
        head = file.read(_HEAD)
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        return head, file.read(TAIL)


def plain_size(head: bytes) -> tuple[int, int] | None:
    """(width, height) from the first bytes of a PNG or JPEG file; several times as fast as Pillow.

    None where that takes a closer look: another type, a longer header, or one that may say how the image is turned.
    """
    if b"Exif" in head or b"eXIf" in head:
        return None
    if head[12:16] == b"IHDR":
        width, height = struct.unpack(">II", head[16:24])
        return width, height
    position = 2  # of a JPEG's first segment: 0xFF, its kind, its length
    while head[:2] == b"\xff\xd8" and position + 9 <= len(head) and head[position] == 0xFF:
        kind = head[position + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (
            0xC4,
            0xC8,
            0xCC,
        ):  # a start of frame, not the tables numbered among them
            height, width = struct.unpack(">HH", head[position + 5 : position + 9])
            return width, height
        position += 2 + int.from_bytes(head[position + 2 : position + 4])
    return None


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, where the header holds one."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) if "exif" in image.info else 1


def content_hash(path: str) -> str:
    """SHA-256 of an image file. Raises DataError where it cannot be read."""
    with _reading(path):
        return hash_file(path)


def file_bytes(path: str) -> int:
    """Length of an image file. Raises DataError where it is not there."""
    with _reading(path):
        return os.path.getsize(path)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"Image file {path} cannot be read: {error.strerror}. Restore it, or take it out.") from error


def upright_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) of an image as it is read: turned as its EXIF orientation says. Only the header is looked at.

    Raises:
        DataError: not an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = _orientation(image) >= _SIDEWAYS
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise DataError(f"Image file {path} is damaged or not an image: {error}. Restore it, or remove it.") from error
    return (height, width) if turned else (width, height)
