"""Scored detections in COCO's results format, read as predictions.

Letters: N images, Q detections of the image with the most, K classes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import DataError, first
from ..annotations.box_convention import check_relative
from .store import NOTHING, StoredPredictions

_KEYS = ("image_id", "category_id", "bbox", "score")
_NEEDED = "image_id, category_id, bbox (x, y, width, height) and score"
_LARGEST = 1e30  # a number whose square floating point still holds
_ROUNDED = 0.01  # between a score and its place among the scores
_NEARLY = 1e-6  # a score of 0 or 1 has no finite logit


class ResultsFile:
    """Detections by image id; one layer, as many queries as the image with the most detections.

    A detection has ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels), ``score`` and, where the
    detector gives them, ``scores`` of all classes in the order of their ids. The other classes of a detection without
    ``scores`` count as improbable.

    Args:
        path: of the JSON file. categories: category id -> class, 0, 1, ...; sizes: image id -> (width, height).

    Raises:
        DataError: not a list of detections; with the entry's number: a key that is missing, an unknown image or
            category, a score outside of 0 to 1 or another than its place in ``scores``, a box that is none; boxes that
            seem to be corners or shares of the image.
    """

    layers = 1
    activation = "sigmoid"

    def __init__(
        self, path: str | os.PathLike[str], categories: Mapping[int, int], sizes: Mapping[int | str, tuple[int, int]]
    ):
        self.path, self.categories, self.sizes = Path(path), categories, sizes
        self._found: dict[int | str, list[tuple[list[float], list[float]]]] = {image_id: [] for image_id in sizes}
        numbers, image_sizes = [], []
        for number, entry in enumerate(_read_list(self.path)):
            image_id, logits, box = self._read_entry(entry, f"{self.path}, entry {number}")
            width, height = sizes[image_id]
            x, y, w, h = box
            centred = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
            self._found[image_id].append((logits, centred))
            numbers.append(box)
            image_sizes.append((width, height))
        self._check_convention(numbers, image_sizes)
        self.image_ids = frozenset(image_id for image_id, entries in self._found.items() if entries)
        self.queries = max((len(entries) for entries in self._found.values()), default=0)

    def read(self, image_ids: Sequence[int | str]) -> StoredPredictions:
        """The predictions of some images, in this order."""
        found = [self._found[image_id] for image_id in image_ids]
        rows, width = max(1, max(map(len, found))), len(self.categories)
        logits = torch.full((1, len(found), rows, width), NOTHING)
        boxes = torch.full((1, len(found), rows, 4), 0.5)
        for image, entries in enumerate(found):
            if entries:
                logits[0, image, : len(entries)] = torch.tensor([logit for logit, _ in entries])
                boxes[0, image, : len(entries)] = torch.tensor([box for _, box in entries])
        return StoredPredictions(logits, boxes, [len(entries) for entries in found])

    def _read_entry(self, entry: Any, place: str) -> tuple[int | str, list[float], list[float]]:
        """Image id, logits of all classes, and the box as written."""
        if not isinstance(entry, dict):
            raise DataError(f"{place} is {_few(entry)}; a result is an object with {_NEEDED}.")
        absent = [key for key in _KEYS if key not in entry]
        if absent:
            raise DataError(f"{place} lacks {first(map(repr, absent))}. A result has {_NEEDED}.")
        image_id, category, box, score = (entry[key] for key in _KEYS)
        if not _is_id(image_id) or image_id not in self.sizes:
            raise DataError(
                f"{place}: there is no image {_few(image_id)} in DATASETS.TRAIN. Is the file of another data set?"
            )
        if not _is_id(category) or category not in self.categories:
            raise DataError(f"{place}: there is no category {_few(category)}. There are: {first(self.categories)}.")
        if not _are_numbers(box, 4) or box[2] < 0 or box[3] < 0:
            raise DataError(f"{place}: bbox is {_few(box)}; expected x, y, width, height in pixels.")
        if not _are_numbers([score], 1) or not 0 <= score <= 1:
            raise DataError(f"{place}: the score is {_few(score)}; expected a probability from 0 to 1.")
        return image_id, self._logits(entry.get("scores"), self.categories[category], score, place), box

    def _logits(self, scores: Any, label: int, score: float, place: str) -> list[float]:
        """Of all classes; the others of a detection without ``scores`` are improbable."""
        count = len(self.categories)
        if scores is None:
            logits = [NOTHING] * count
            logits[label] = _logit(score)
            return logits
        if not _are_numbers(scores, count) or not all(0 <= value <= 1 for value in scores):
            raise DataError(
                f"{place}: scores are {_few(scores)}; expected {count} probabilities from 0 to 1, one a class."
            )
        if abs(scores[label] - score) > _ROUNDED:
            raise DataError(
                f"{place}: the score is {score}, and scores have {scores[label]} for its category. Scores stand in the "
                "order of the category ids: correct one of the two."
            )
        return [_logit(value) for value in scores]

    def _check_convention(self, numbers: list[list[float]], sizes: list[tuple[int, int]]) -> None:
        """Raises DataError where boxes are corners or shares of the image, as far as they tell."""
        if not numbers:
            return
        boxes, extent = np.array(numbers, dtype=np.float64), np.array(sizes, dtype=np.float64)
        check_relative(boxes, extent, str(self.path))
        beyond = (boxes[:, :2] + boxes[:, 2:] > 1.05 * extent).any(axis=1).mean()
        if beyond > 0.1:
            raise DataError(
                f"{self.path}: {beyond:.0%} of the boxes end outside of their image, as x1, y1, x2, y2 do when they "
                "are read as x, y, width, height. Write the boxes in COCO's form."
            )


def _read_list(path: Path) -> list:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. Correct the path.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not JSON, or nested too deeply: {error}. Name a COCO results file, or a folder of predictions."
        ) from error
    if not isinstance(content, list):
        raise DataError(f"{path} holds a {type(content).__name__}; COCO's results format is a list of detections.")
    return content


def _are_numbers(values: Any, count: int) -> bool:
    """Whether these are so many finite numbers that floating point holds."""
    return (
        isinstance(values, (list, tuple))
        and len(values) == count
        and all(isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) <= _LARGEST for x in values)
    )


def _is_id(value: Any) -> bool:
    """A truth value is no id, although it equals one; a list cannot be looked up."""
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _logit(score: float) -> float:
    bounded = min(max(score, _NEARLY), 1 - _NEARLY)
    return math.log(bounded / (1 - bounded))


def _few(value: Any, most: int = 60) -> str:
    """A value as a message shows it, whatever it is."""
    huge = isinstance(value, int) and abs(value) > _LARGEST
    text = "a number of very many digits" if huge else repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
