"""Finds, and on request repairs, ground-truth boxes that no detector can learn from."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from detectron2.structures import BoxMode

from ..errors import DataError
from .annotations.box_convention import (
    CORNERS,
    XYWH,
    advice,
    are_too_many,
    check_relative,
    check_share,
    corners_as,
    find_odd,
    leave_image,
    likely_convention,
    sides,
)
from .annotations.fields import NAMED, entry_name

POLICIES = ("error", "fix")

PLACE = "converted_from"  # in an object of a set of another format: file and line
_KEY = "DATASETS.BAD_BOXES"
_LEAST_SIDE = 1e-3  # pixels; a thinner box would be lost when its image is made smaller
_CONVENTIONS = {BoxMode.XYWH_ABS: XYWH, BoxMode.XYXY_ABS: CORNERS}


@dataclass
class ObjectBoxes:
    """Boxes of a whole dataset that are not crowds and are written alike: N rows, in the order of the records.

    Attributes:
        owner: (N, 2) index of the record and of the annotation in it. numbers: (N, 4) boxes as they are written.
        sizes: (N, 2) width and height of the image. mode: what the numbers mean, XYWH_ABS or XYXY_ABS.
    """

    owner: np.ndarray
    numbers: np.ndarray
    sizes: np.ndarray
    mode: BoxMode

    @property
    def convention(self) -> str:
        return _CONVENTIONS[self.mode]

    def corners(self) -> np.ndarray:
        """(N, 4) x1, y1, x2, y2 in pixels."""
        return corners_as(self.convention, self.numbers)

    def clipped(self) -> np.ndarray:
        """(N, 4) the corners, brought into the image."""
        return np.clip(self.corners(), 0, np.tile(self.sizes, 2))

    def bad(self) -> np.ndarray:
        """(N,) bool: not finite, without area, or outside the image by more than rounding."""
        corners = self.corners()
        with np.errstate(invalid="ignore"):
            least = np.minimum(sides(corners), sides(self.clipped())).min(axis=1)
            return ~(least >= _LEAST_SIDE) | leave_image(corners, self.sizes)


def check_policy(policy: str) -> None:
    """Raises ``DataError`` unless ``policy`` is a value of ``DATASETS.BAD_BOXES``."""
    if policy not in POLICIES:
        raise DataError(f"{_KEY} is {policy!r}; choose one of: {', '.join(POLICIES)}.")


def check_boxes(records: list[dict], policy: str, source: str) -> None:
    """Applies the policy for bad boxes to all annotations that are not crowds.

    Args:
        records: dicts in detectron2's dataset format; with "fix" their annotations change in place.
        policy: "error" refuses bad boxes; "fix" cuts them to the image and drops those without area, with one warning,
            unless so many leave their image that they must mean something else.
        source: names the dataset or annotation file in messages.

    Raises:
        DataError: an unknown policy; a bad box under "error"; boxes in another convention.
    """
    check_policy(policy)
    for mode in _CONVENTIONS:
        check_object_boxes(records, _collect(records, mode), policy, source)


def check_object_boxes(records: list[dict], boxes: ObjectBoxes, policy: str, source: str) -> None:
    """``check_boxes`` for boxes that were collected already."""
    if not len(boxes.owner):
        return
    check_relative(boxes.numbers, boxes.sizes, source)
    bad = np.flatnonzero(boxes.bad())
    if not len(bad):
        return
    if policy == "error":
        raise DataError(_complaint(records, boxes, bad, source))
    check_share(boxes.numbers, boxes.sizes, boxes.convention, source)
    dropped = _repair(records, boxes, bad)
    logging.getLogger(__name__).warning(
        "%s: %d bad boxes: %d cut to their image, %d without area dropped (%s fix).",
        *(source, len(bad), len(bad) - dropped, dropped, _KEY),
    )


def _collect(records: list[dict], mode: BoxMode) -> ObjectBoxes:
    owner: list[tuple[int, int]] = []
    numbers: list[list[float]] = []
    sizes: list[tuple[int, int]] = []
    for row, record in enumerate(records):
        width, height = record.get("width"), record.get("height")
        if width is None or height is None:
            continue
        for column, item in enumerate(record.get("annotations", ())):
            if not item.get("iscrowd", 0) and item["bbox_mode"] == mode:
                numbers.append(item["bbox"])
                owner.append((row, column))
                sizes.append((width, height))
    return ObjectBoxes(
        np.array(owner, dtype=np.int64).reshape(-1, 2),
        np.array(numbers, dtype=np.float64).reshape(-1, 4),
        np.array(sizes, dtype=np.float64).reshape(-1, 2),
        mode,
    )


def _complaint(records: list[dict], boxes: ObjectBoxes, bad: np.ndarray, source: str) -> str:
    lines = []
    for number in bad[:NAMED]:
        row, column = boxes.owner[number]
        record, item = records[row], records[row]["annotations"][column]
        name = item.get(PLACE, entry_name("annotations", item, int(column)))
        form = "x, y, width, height" if item["bbox_mode"] == BoxMode.XYWH_ABS else "x1, y1, x2, y2"
        size = f"{record['width']} x {record['height']}"
        lines.append(f"  {name} of {record['file_name']} ({size} pixels): {list(item['bbox'])} ({form})")
    if len(bad) > NAMED:
        lines.append(f"  and {len(bad) - NAMED} more")
    likely = likely_convention(boxes.numbers, boxes.sizes, boxes.convention)
    few = not are_too_many(find_odd(boxes.numbers, boxes.sizes, boxes.convention))
    return (
        f"{source}: {len(bad)} of {len(boxes.owner)} boxes have no area or lie outside their image:\n"
        + "\n".join(lines)
        + ("" if few and not likely else f"\n{advice(likely, boxes.convention)}")
        + (f"\nCorrect them, or set {_KEY} fix to cut them to the image and drop those without area." if few else "")
    )


def _repair(records: list[dict], boxes: ObjectBoxes, bad: np.ndarray) -> int:
    """Cuts the bad boxes to their images and drops those without area; returns how many it dropped."""
    clipped = boxes.clipped()[bad]
    empty: np.ndarray = ~np.all(sides(clipped) >= _LEAST_SIDE, axis=1)
    drop: dict[int, set[int]] = {}
    for (row, column), corners, is_empty in zip(boxes.owner[bad].tolist(), clipped.tolist(), empty, strict=True):
        if is_empty:
            drop.setdefault(row, set()).add(column)
        else:
            item = records[row]["annotations"][column]
            item["bbox"] = BoxMode.convert(corners, BoxMode.XYXY_ABS, item["bbox_mode"])
    for row, columns in drop.items():
        kept = [item for column, item in enumerate(records[row]["annotations"]) if column not in columns]
        records[row]["annotations"] = kept
    return int(empty.sum())
