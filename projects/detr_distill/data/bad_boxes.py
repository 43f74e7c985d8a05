"""Finds, and on request repairs, ground-truth boxes that no detector can learn from."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from detectron2.structures import BoxMode

from ..errors import DataError

POLICIES = ("error", "fix")

_KEY = "DATASETS.BAD_BOXES"
# Annotation tools round: a box may end this many pixels beyond its image.
_TOLERANCE = 1.0
_NAMED = 5  # boxes that an error message lists


@dataclass
class _Boxes:
    """Boxes of a whole dataset that are not crowds: N rows, in the order of the records.

    Attributes:
        owner: (N, 2) index of the record and of the annotation in it.
        corners: (N, 4) x1, y1, x2, y2 in pixels. limit: (N, 4) width, height, width, height of the image.
    """

    owner: np.ndarray
    corners: np.ndarray
    limit: np.ndarray

    def clipped(self) -> np.ndarray:
        return np.clip(self.corners, 0, self.limit)

    def bad(self) -> np.ndarray:
        """(N,) bool: not finite, without area, or outside the image by more than rounding."""
        with np.errstate(invalid="ignore"):
            sides = np.minimum(_sides(self.corners), _sides(self.clipped())).min(axis=1)
            overhang = np.maximum(-self.corners, self.corners - self.limit).max(axis=1)
            # Written so that NaN is bad.
            return ~((sides > 0) & (overhang <= _TOLERANCE))


def check_policy(policy: str) -> None:
    """Raises ``DataError`` unless ``policy`` is a value of ``DATASETS.BAD_BOXES``."""
    if policy not in POLICIES:
        raise DataError(f"{_KEY} is {policy!r}; choose one of: {', '.join(POLICIES)}.")


def check_boxes(records: list[dict], policy: str, source: str) -> None:
    """Applies the policy for bad boxes to all annotations that are not crowds.

    Args:
        records: dicts in detectron2's dataset format; with "fix" their annotations change in place.
        policy: "error" refuses bad boxes; "fix" cuts them to the image and drops those without area, with one warning.
        source: names the dataset or annotation file in messages.

    Raises:
        DataError: an unknown policy; a bad box under "error".
    """
    check_policy(policy)
    boxes = _collect(records)
    bad = np.flatnonzero(boxes.bad())
    if not len(bad):
        return
    if policy == "error":
        raise DataError(_complaint(records, boxes, bad, source))
    dropped = _repair(records, boxes, bad)
    logging.getLogger(__name__).warning(
        "%s: %d bad boxes: %d cut to their image, %d without area dropped (%s fix).",
        *(source, len(bad), len(bad) - dropped, dropped, _KEY),
    )


def _collect(records: list[dict]) -> _Boxes:
    owner: list[tuple[int, int]] = []
    corners: list[tuple[float, ...]] = []
    limit: list[tuple[int, int, int, int]] = []
    for row, record in enumerate(records):
        width, height = record.get("width"), record.get("height")
        if width is None or height is None:
            continue
        for column, item in enumerate(record.get("annotations", ())):
            mode = item["bbox_mode"]
            if item.get("iscrowd", 0) or mode not in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
                continue
            x, y, right, bottom = item["bbox"]
            corners.append((x, y, x + right, y + bottom) if mode == BoxMode.XYWH_ABS else (x, y, right, bottom))
            owner.append((row, column))
            limit.append((width, height, width, height))
    return _Boxes(
        np.array(owner, dtype=np.int64).reshape(-1, 2),
        np.array(corners, dtype=np.float64).reshape(-1, 4),
        np.array(limit, dtype=np.float64).reshape(-1, 4),
    )


def _complaint(records: list[dict], boxes: _Boxes, bad: np.ndarray, source: str) -> str:
    lines = []
    for number in bad[:_NAMED]:
        row, column = boxes.owner[number]
        record, item = records[row], records[row]["annotations"][column]
        name = f"annotation {item['id']}" if "id" in item else f"annotation number {column + 1}"
        form = "x, y, width, height" if item["bbox_mode"] == BoxMode.XYWH_ABS else "x1, y1, x2, y2"
        size = f"{record['width']} x {record['height']}"
        lines.append(f"  {name} of {record['file_name']} ({size} pixels): {list(item['bbox'])} ({form})")
    if len(bad) > _NAMED:
        lines.append(f"  and {len(bad) - _NAMED} more")
    return (
        f"{source}: {len(bad)} of {len(boxes.owner)} boxes have no area or lie outside their image:\n"
        + "\n".join(lines)
        + f"\nCorrect them, or set {_KEY} fix to cut them to the image and drop those without area."
    )


def _repair(records: list[dict], boxes: _Boxes, bad: np.ndarray) -> int:
    """Cuts the bad boxes to their images and drops those without area; returns how many it dropped."""
    clipped = boxes.clipped()[bad]
    empty: np.ndarray = ~np.all(_sides(clipped) > 0, axis=1)
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


def _sides(corners: np.ndarray) -> np.ndarray:
    return corners[:, 2:] - corners[:, :2]
