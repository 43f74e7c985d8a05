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

import torch

from ...errors import DataError
from .store import NOTHING, StoredPredictions

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
            category, a score outside of 0 to 1, a box that is none or seems to be two corners.
    """

    layers = 1
    activation = "sigmoid"

    def __init__(
        self, path: str | os.PathLike[str], categories: Mapping[int, int], sizes: Mapping[int | str, tuple[int, int]]
    ):
        self.path, self.categories, self.sizes = Path(path), categories, sizes
        self._found: dict[int | str, list[tuple[list[float], list[float]]]] = {image_id: [] for image_id in sizes}
        present = set()
        for number, entry in enumerate(_read_list(self.path)):
            image_id, logits, box = self._read_entry(entry, f"{self.path}, entry {number}")
            self._found[image_id].append((logits, box))
            present.add(image_id)
        self._check_corners()
        self.image_ids = frozenset(present)
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

    def _read_entry(self, entry: Any, place: str) -> tuple[int, list[float], list[float]]:
        try:
            image_id, category, box, score = (entry[key] for key in ("image_id", "category_id", "bbox", "score"))
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{place} lacks {error}. A result has image_id, category_id, bbox (x, y, width, height) and score."
            ) from error
        if image_id not in self.sizes:
            raise DataError(
                f"{place}: there is no image {image_id!r} in DATASETS.TRAIN. Is the file of another data set?"
            )
        if category not in self.categories:
            raise DataError(f"{place}: there is no category {category!r}. There are: {_few(list(self.categories))}.")
        width, height = self.sizes[image_id]
        if not _are_numbers(box, 4) or box[2] < 0 or box[3] < 0:
            raise DataError(f"{place}: bbox is {box!r}; expected x, y, width, height in pixels.")
        logits = [NOTHING] * len(self.categories)
        given = entry.get("scores")
        if given is not None and len(given) == len(self.categories) and _are_numbers(given, len(given)):
            logits = [_logit(value, place) for value in given]
        elif given is not None:
            raise DataError(f"{place}: scores are {_few(given)}; expected {len(self.categories)} numbers, one a class.")
        logits[self.categories[category]] = _logit(score, place)
        x, y, w, h = box
        return image_id, logits, [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]

    def _check_corners(self) -> None:
        """Raises DataError where boxes reach as far outside their images as corners read as sizes do."""
        boxes = torch.tensor([box for entries in self._found.values() for _, box in entries]).reshape(-1, 4)
        if not len(boxes):
            return
        ends = boxes[:, :2] + boxes[:, 2:] / 2
        if (ends > 1.05).any(-1).float().mean() > 0.1:
            share = (ends > 1.05).any(-1).float().mean().item()
            raise DataError(
                f"{self.path}: {share:.0%} of the boxes end outside of their image, as x1, y1, x2, y2 do when they are "
                "read as x, y, width, height. Write the boxes in COCO's form."
            )


def _read_list(path: Path) -> list:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. Correct the path.") from error
    except ValueError as error:
        raise DataError(
            f"{path} is not JSON: {error}. Name a COCO results file, or a folder of predictions."
        ) from error
    if not isinstance(content, list):
        raise DataError(f"{path} holds a {type(content).__name__}; COCO's results format is a list of detections.")
    return content


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, (list, tuple))
        and len(values) == count
        and all(isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) for x in values)
    )


def _logit(score: Any, place: str) -> float:
    if not _are_numbers([score], 1) or not 0 <= score <= 1:
        raise DataError(f"{place}: the score is {score!r}; expected a probability from 0 to 1.")
    bounded = min(max(score, _NEARLY), 1 - _NEARLY)
    return math.log(bounded / (1 - bounded))


def _few(values: Any, most: int = 5) -> str:
    text = ", ".join(str(value) for value in list(values)[:most])
    return text + (", ..." if len(values) > most else "")
