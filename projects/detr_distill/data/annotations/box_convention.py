"""Recognises boxes that were written in another convention than the one they are read in."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from ...errors import DataError
from .file import AnnotationFile

logger = logging.getLogger(__name__)

FEW = 0.05  # share of boxes that may be faulty each for itself; more are faulty together
TOLERANCE = 1.0  # pixels that a box may end beyond its image: annotation tools round
_LEAST = 3  # boxes that make a convention
_MOST = 0.95  # share of boxes that a convention has to fit
_LARGER, _TINY = 1.1, 16.0  # times and square pixels that rounding may make an area larger than its box
_SMALL = 0.45  # share of its box that a common shape fills at least: a triangle has half
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
    "x1, x2, y1, y2 in pixels": lambda n: n[:, [0, 2, 1, 3]],
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
    odd = find_odd(numbers, sizes, known)
    if are_too_many(odd):
        likely = likely_convention(numbers, sizes, known)
        raise _other(source, int(odd.sum()), len(numbers), "leave their image or are turned round", likely, known)


def find_odd(numbers: np.ndarray, sizes: np.ndarray, known: str) -> np.ndarray:
    """(N,) bool: which boxes leave their image or are turned round; arguments as of :func:`check_share`."""
    corners = corners_as(known, numbers)
    with np.errstate(invalid="ignore"):
        return leave_image(corners, sizes) | (sides(corners) < 0).any(axis=1)


def are_too_many(odd: np.ndarray) -> bool:
    """Whether boxes are faulty together, and not each for itself."""
    return bool(odd.mean() > FEW and odd.sum() >= _LEAST)


def check_areas(file: AnnotationFile, source: str) -> None:
    """Looks for areas that contradict the boxes, although these fit their images.

    Raises:
        DataError: they are those of corners, or larger than the boxes, as of images that were resized since. Areas
            that are one small share of all boxes may be right, and are warned of.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        kept = (file.given_areas > 0) & np.isfinite(file.given_areas) & ~file.crowds
        boxes, areas = file.boxes[kept], file.given_areas[kept]
        as_corners, as_given = sides(boxes).clip(min=0).prod(axis=1), boxes[:, 2:].prod(axis=1)
        corners = np.abs(as_corners - areas) <= _EQUAL * areas
        given = np.abs(as_given - areas) <= _EQUAL * areas
        larger = areas > _LARGER * as_given + _TINY
        ratios = areas / as_given
    if len(boxes) < _LEAST:
        return
    if corners.mean() >= _MOST and given.mean() < 0.5:
        raise _other(source, int(corners.sum()), len(boxes), "have the area of another box", CORNERS)
    ratio = float(np.median(ratios))
    words = f"boxes or areas may be of images that were resized since (by {ratio**0.5:.3g} in width and height)"
    if larger.mean() >= _MOST:
        raise DataError(
            f"{source}: {int(larger.sum())} of {len(boxes)} areas are larger than their boxes, by a median factor of "
            f"{ratio:.3g}: {words}. Write both for the images as they are; where areas alone are wrong, take them out."
        )
    if ratio < _SMALL and (np.abs(ratios - ratio) <= _EQUAL * ratio).mean() >= _MOST:
        logger.warning("%s: nearly all areas are %.3g times their boxes: %s. Check some boxes.", source, ratio, words)


def advice(likely: str | None, known: str) -> str:
    """What to do about boxes that are in a likely convention, or in none that is known."""
    if likely:
        return f"They look like {likely}: write them as {known}."
    return (
        "They fit no convention that is known: it may be another order, another origin (y from below), another unit "
        f"(percent), or images that were resized since. Compare some with their pictures, and write all as {known}."
    )


def _other(source: str, count: int, total: int, what: str, likely: str | None, known: str = XYWH) -> DataError:
    return DataError(
        f"{source}: {count} of {total} boxes {what} when they are read as {known}. {advice(likely, known)} "
        "That many are not repaired by DATASETS.BAD_BOXES."
    )
