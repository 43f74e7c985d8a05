"""Segmentations: which have the form of one, and whether every object has one where masks are trained."""

from __future__ import annotations

from typing import Any

from pycocotools import mask as mask_util

from ...errors import DataError, first
from .fields import LARGEST_SIDE, are_sides, entry_name

_LEAST_NUMBERS = 6  # x and y of three points


def usable_segmentation(value: Any) -> list | dict | None:
    """A segmentation in detectron2's form: polygons of at least three points, or a run-length code (compressed).

    Args:
        value: of any type. Polygons that are none are left out; None where nothing is left.
    """
    if isinstance(value, list):
        return [part for part in value if _is_polygon(part)] or None
    if not isinstance(value, dict) or not _is_size(value.get("size")):
        return None
    counts = value.get("counts")
    if isinstance(counts, list):
        if not all(type(run) is int and 0 <= run < 2**31 for run in counts):
            return None
        return mask_util.frPyObjects(value, *value["size"])
    return value if isinstance(counts, (str, bytes)) and counts else None


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= _LEAST_NUMBERS and len(value) % 2 == 0


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and set(map(type, value)) == {int} and are_sides(value)


def check_masks(records: list[dict], mask_format: str, source: str) -> None:
    """Every object that is not a crowd has a mask that ``INPUT.MASK_FORMAT`` can hold.

    Args:
        records: dicts in detectron2's dataset format. mask_format: "polygon" or "bitmask".
        source: names the dataset in messages.

    Raises:
        DataError: an object without a mask, or with one that does not fit.
    """
    missing, damaged, codes = [], [], []
    for record in records:
        for number, item in enumerate(record.get("annotations", ())):
            if item.get("iscrowd", 0):
                continue
            segmentation = item.get("segmentation")
            name = f"{entry_name('annotations', item, number)} of {record['file_name']}"
            if segmentation is None:
                missing.append(name)
            elif isinstance(segmentation, dict) and mask_format == "polygon":
                codes.append(name)
            elif not _fits(segmentation, record.get("height"), record.get("width")):
                damaged.append(name)
    problems = (
        (missing, "have no segmentation", "Add it, take them out, or set MODEL.MASK_ON False to train boxes alone."),
        (codes, "have a run-length code, and INPUT.MASK_FORMAT is polygon", "Set INPUT.MASK_FORMAT bitmask."),
        (damaged, "have a segmentation that is no mask of their image", "Correct it, or set MODEL.MASK_ON False."),
    )
    lines = [f"{len(names)} objects {what}: {first(names)}. {remedy}" for names, what, remedy in problems if names]
    if lines:
        raise DataError(f"{source}, with MODEL.MASK_ON: " + "\n".join(lines))


def mask_area(segmentation: Any, height: int, width: int) -> float | None:
    """Pixels of a mask, as COCO measures the area of an object; None for what is no mask of an image of that size."""
    kept = usable_segmentation(segmentation)
    if kept is None or not _fits(kept, height, width):
        return None
    if isinstance(kept, list):
        kept = mask_util.merge(mask_util.frPyObjects(kept, height, width))
    return float(mask_util.area(kept))


def _fits(segmentation: Any, height: int | None, width: int | None) -> bool:
    """Whether a usable segmentation belongs to an image of this size, where that is known."""
    if isinstance(segmentation, list):
        return all(_is_finite(value) for polygon in segmentation for value in polygon)
    if not isinstance(segmentation, dict):
        return True  # an array, which detectron2 takes too
    rows, columns = segmentation["size"]
    runs = _runs(segmentation["counts"])
    return (height, width) in ((rows, columns), (None, None)) and runs is not None and sum(runs) == rows * columns


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST_SIDE  # nor NaN; a whole number may be of any length


def _runs(counts: str | bytes) -> list[int] | None:
    """Lengths of the runs of a compressed code, which the decoder trusts; None where it is damaged.

    The code: five bits a character above "0", least significant first, bit 5 for one more character and the last one's
    bit 4 for the sign; from the fourth on a run is given as the difference from the last but one.
    """
    code = counts.encode("utf-8", "replace") if isinstance(counts, str) else bytes(counts)
    runs: list[int] = []
    value = shift = 0
    for character in code:
        bits = character - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if not 0 <= runs[-1] < 2**31:
            return None
        value = shift = 0
    return None if shift else runs
