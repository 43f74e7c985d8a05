"""The areas of an annotation file's objects, where they can be right."""

from __future__ import annotations

from typing import Any

import numpy as np

from .fields import Findings, are_numbers, to_number

# An area is no larger than the box; times and square pixels that rounding may add.
_ROUNDED, _ROUNDED_TINY = 2.0, 16.0


def read_areas(annotations: list[dict], boxes: np.ndarray, findings: Findings) -> np.ndarray:
    """(N,) areas in square pixels, NaN where the file has none that can be right, which leaves the entry."""
    column: list[Any] = [item.get("area") for item in annotations]
    if set(map(type, column)) <= {int, float} and are_numbers(column):
        areas = np.array(column, dtype=np.float64)
    else:
        areas = np.array([_area(value) for value in column], dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        largest = boxes[:, 2:].clip(min=0).prod(axis=1) * _ROUNDED + _ROUNDED_TINY
        unknown = ~((areas > 0) & (areas <= largest))
    areas[unknown] = np.nan
    for number in np.flatnonzero(unknown | np.array([type(value) is str for value in column], dtype=bool)):
        item = annotations[number]
        value = item.pop("area", None)
        if not unknown[number]:
            item["area"] = float(areas[number])
        elif value is not None:
            kind = "annotations whose area is no positive number or more than their box, to be measured by evaluation"
            findings.note(kind, f"annotation {item['id']}", value)
    return areas


def _area(value: Any) -> float:
    try:
        return to_number(value)
    except (ValueError, OverflowError):
        return np.nan
