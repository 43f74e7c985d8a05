"""Recognises boxes that were written in another convention than the one they are read in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...errors import DataError
from .file import AnnotationFile

FEW = 0.05  # share of boxes that may be faulty each for itself; more are faulty together
TOLERANCE = 1.0  # pixels that a box may end beyond its image: annotation tools round
_LEAST = 3  # boxes that make a convention
_MOST = 0.95  # share of boxes that a convention has to fit
_EQUAL = 0.01  # relative difference of an area from the box that it was computed from

XYWH = "x, y, width, height in pixels"
CORNERS = "corners x1, y1, x2, y2 in pixels"
_RELATIVE = "fractions of the image's sides, from 0 to 1"

# What the four numbers (columns of ``numbers``) may mean, as x1, y1, x2, y2 in pixels; likely ones first.
_READINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    XYWH: lambda n: np.concatenate([n[:, :2], n[:, :2] + n[:, 2:]], axis=1),
    CORNERS: lambda n: n,
    "centre x, centre y, width, height in pixels": lambda n: np.concatenate(
        [n[:, :2] - n[:, 2:] / 2, n[:, :2] + n[:, 2:] / 2], axis=1
    ),
    "corners y1, x1, y2, x2 in pixels": lambda n: n[:, [1, 0, 3, 2]],
}
_TURNED = "boxes of images that were turned since (their widths and heights are exchanged)"


def sides(corners: np.ndarray) -> np.ndarray:
    """(N, 2) widths and heights of (N, 4) x1, y1, x2, y2."""
    return corners[:, 2:] - corners[:, :2]


def leave_image(corners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) bool: which boxes end outside of their image by more than rounding, or are not finite.

    Args:
        corners: (N, 4) x1, y1, x2, y2. sizes: (N, 2) width and height of their images; all in pixels.
    """
    with np.errstate(invalid="ignore"):
        overhang = np.maximum(-corners, corners - np.tile(sizes, 2)).max(axis=1)
    return ~(overhang <= TOLERANCE)  # written so that NaN leaves


def corners_as(convention: str, numbers: np.ndarray) -> np.ndarray:
    """(N, 4) x1, y1, x2, y2 of numbers as written."""
    with np.errstate(invalid="ignore", over="ignore"):
        return _READINGS[convention](numbers)


def likely_convention(numbers: np.ndarray, sizes: np.ndarray, known: str) -> str | None:
    """The first convention that fits nearly all boxes; None if none does, or the known one.

    Args:
        numbers: (N, 4) as written. sizes: (N, 2) width and height of the images. known: how they are read now.
    """
    for name in (known, *_READINGS):
        if _fit(corners_as(name, numbers), sizes) >= _MOST:
            return None if name == known else name
    if _fit(corners_as(known, numbers), sizes[:, ::-1]) >= _MOST:
        return _TURNED
    ordered = (numbers[:, 2:] > numbers[:, :2]).all(axis=1).mean() >= _MOST  # rare among widths and heights
    return CORNERS if ordered and known != CORNERS else None


def _fit(corners: np.ndarray, sizes: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        positive = (sides(corners) > 0).all(axis=1)
    return float((positive & ~leave_image(corners, sizes)).mean())


def check_relative(numbers: np.ndarray, sizes: np.ndarray, source: str) -> None:
    """Raises ``DataError`` where more than a few boxes are given in fractions of their image instead of pixels."""
    with np.errstate(invalid="ignore"):
        inside = ((numbers >= 0) & (numbers <= 1)).all(axis=1)
        fractional = (numbers % 1 != 0).any(axis=1)
    relative = inside & fractional & (sizes.min(axis=1) > 2)
    if relative.mean() > FEW:
        raise _other(source, int(relative.sum()), len(numbers), "lie within one pixel", _RELATIVE)


def check_share(numbers: np.ndarray, sizes: np.ndarray, known: str, source: str) -> None:
    """Raises ``DataError`` where more than a few boxes leave their image or are turned round."""
    corners = corners_as(known, numbers)
    with np.errstate(invalid="ignore"):
        odd = leave_image(corners, sizes) | (sides(corners) < 0).any(axis=1)
    if odd.mean() > FEW and odd.sum() >= _LEAST:
        likely = likely_convention(numbers, sizes, known)
        raise _other(source, int(odd.sum()), len(numbers), "leave their image or are turned round", likely, known)


def check_areas(file: AnnotationFile, source: str) -> None:
    """Raises ``DataError`` where the file's areas say that its boxes are corners, although they fit their images."""
    kept = ~np.isnan(file.areas) & ~file.crowds
    boxes, areas = file.boxes[kept], file.areas[kept]
    if len(boxes) < _LEAST:
        return
    with np.errstate(invalid="ignore", over="ignore"):
        as_corners, as_given = sides(boxes).clip(min=0).prod(axis=1), boxes[:, 2:].prod(axis=1)
        corners = np.abs(as_corners - areas) <= _EQUAL * areas
        given = np.abs(as_given - areas) <= _EQUAL * areas
    if corners.mean() >= _MOST and given.mean() < 0.5:
        raise _other(source, int(corners.sum()), len(boxes), "have the area of another box", CORNERS)


def _other(source: str, count: int, total: int, what: str, likely: str | None, known: str = XYWH) -> DataError:
    remedy = f"They look like {likely}: write them as {known}." if likely else "They fit no convention that is known."
    return DataError(
        f"{source}: {count} of {total} boxes {what} when they are read as {known}. {remedy} "
        "That many are not repaired by DATASETS.BAD_BOXES."
    )
