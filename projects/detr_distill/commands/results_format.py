"""Predictions in COCO's results format: the last layer's queries, with the categories of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode

from ..checkpoint.class_names import normal_names
from ..data.predictions.description import shared_id
from ..data.predictions.store import PredictionStore
from ..data.registration import category_names
from ..detr.boxes import to_corners
from ..errors import ConfigError, first
from ..structures import DecoderOutput


@dataclass(frozen=True)
class Categories:
    """Which category of a data set is which class of the detector.

    Attributes:
        ids: of the categories, in the order of the set's classes. classes: the detector's class of each; -1: it has
            none of that name. said: what was left out, or who chose the ids; a sentence, or nothing.
    """

    ids: tuple[int, ...]
    classes: tuple[int, ...]
    said: str = ""


def check_ids(records: Sequence[dict]) -> None:
    """Raises ConfigError where two images share an id, by which alone the format knows them."""
    shared = shared_id((record["image_id"], record["file_name"]) for record in records)
    if shared is not None:
        raise ConfigError(
            f"--output names a .json file, which knows images by id alone, and {shared[0]} is the id of {shared[1]} "
            f"and of {shared[2]}. Name a folder, which tells them apart, or write a file of each set."
        )


def find_categories(cfg: CfgNode, sets: Sequence[str], class_names: Sequence[str]) -> Categories:
    """The categories of the sets that are predicted for or, where these have none, of ``DATASETS.TRAIN``.

    Args:
        sets: names of registered sets; none for loose images. class_names: of the detector, in order.

    Raises:
        ConfigError: two sets have other categories, or detector and sets share no class.
    """
    found = {name: category_names(name) for name in sets}
    if not any(found.values()):
        found = {name: category_names(name) for name in cfg.DATASETS.TRAIN}
    lists = {name: categories for name, categories in found.items() if categories}
    if not lists:
        ids = tuple(range(1, len(class_names) + 1))
        return Categories(
            ids, tuple(range(len(ids))), "No set tells the categories: the detector's classes count from 1."
        )
    source, categories = next(iter(lists.items()))
    for name, other in lists.items():
        if list(other) != list(categories) or normal_names(other.values()) != normal_names(categories.values()):
            raise ConfigError(
                f"{source} and {name} have other categories, and a .json file has one list of them. Name a folder, or "
                "write a file of each set."
            )
    return _pair(categories, class_names, source)


def _pair(categories: dict[int, str], class_names: Sequence[str], source: str) -> Categories:
    """Pairs the categories of a set with a detector's classes by name."""
    mine, theirs = normal_names(categories.values()), normal_names(class_names)
    classes = tuple(theirs.index(name) if name in theirs else -1 for name in mine)
    if max(classes) < 0:
        raise ConfigError(
            f"--weights: the detector's classes ({first(class_names)}) and those of {source} "
            f"({first(categories.values())}) share no name, so its predictions have no category there. Name a folder, "
            "which keeps the detector's own classes."
        )
    unknown = [name for name in theirs if name not in mine]
    absent = [name for name in mine if name not in theirs]
    words = [f"{source} has no category for {first(unknown)}: left out."] if unknown else []
    words += [f"The detector has no class for {first(absent)}: their scores are 0."] if absent else []
    return Categories(tuple(categories), classes, " ".join(words))


def coco_results(
    store: PredictionStore, records: Sequence[dict], categories: Categories, least: float
) -> Iterator[dict]:
    """The last layer's queries from a score on, with the scores of all categories.

    Args:
        records: of the store's images, in its order. least: score of the best category.
    """
    known = [(place, index) for place, index in enumerate(categories.classes) if index >= 0]
    places, classes = (list(column) for column in zip(*known, strict=True))
    for row, record in enumerate(records):
        found = store.read_rows([row])
        output = DecoderOutput(found.logits, found.boxes, found.logits, store.description.activation)
        given = output.probabilities()[-1, 0, : found.counts[0]]
        scores = given.new_zeros(len(given), len(categories.ids))
        scores[:, places] = given[:, classes]
        corners = to_corners(found.boxes[-1, 0]) * torch.tensor([record["width"], record["height"]]).repeat(2)
        best, chosen = scores.max(-1)
        for query in torch.nonzero(best >= least).flatten().tolist():
            x1, y1, x2, y2 = corners[query].tolist()
            yield {
                "image_id": record["image_id"],
                "category_id": categories.ids[int(chosen[query])],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": best[query].item(),
                "scores": scores[query].tolist(),
            }
