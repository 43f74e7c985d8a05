"""Intervals of a difference in AP: a paired bootstrap over the test images, the seeds of each side pooled.

Letters: I images, D detections, T IoU thresholds, N resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detr_distill.engine.evaluation import evaluate_boxes

import numpy as np

RECALLS = np.linspace(0, 1, 101)  # COCO's


@dataclass(frozen=True)
class Matched:
    """The detections of one class in the order of their scores, highest first.

    Attributes:
        image: (D,) index. hit, miss: (T, D) whether each is an object, or counts as none; neither where it is ignored.
        objects: (I,) how many of each image count.
    """

    image: np.ndarray
    hit: np.ndarray
    miss: np.ndarray
    objects: np.ndarray


def match_images(dataset: dict, results: list[dict]) -> list[Matched]:
    """What COCO's matching says of each class, over all sizes.

    Args:
        dataset: an annotation file's content. results: COCO's.
    """
    evaluation = evaluate_boxes(dataset, results, fast=False)
    images = len(evaluation.params.imgIds)
    # In the order of classes, size ranges, images; the first range is "all".
    entries = np.array(evaluation.evalImgs, dtype=object).reshape(-1, len(evaluation.params.areaRng), images)[:, 0]
    found = []
    for per_class in entries:
        present = [(index, entry) for index, entry in enumerate(per_class) if entry is not None]
        objects = np.zeros(images)
        for index, entry in present:
            objects[index] = np.sum(np.asarray(entry["gtIgnore"]) == 0)
        if not objects.sum():
            continue
        order = np.argsort(-np.concatenate([entry["dtScores"] for _, entry in present]), kind="mergesort")
        image = np.concatenate([[index] * len(entry["dtScores"]) for index, entry in present]).astype(int)[order]
        hit = np.concatenate([entry["dtMatches"] > 0 for _, entry in present], axis=1)[:, order]
        ignored = np.concatenate([np.asarray(entry["dtIgnore"], bool) for _, entry in present], axis=1)[:, order]
        found.append(Matched(image, hit & ~ignored, ~hit & ~ignored, objects))
    return found


def resample(images: int, resamples: int, seed: int = 0) -> np.ndarray:
    """(1 + N, I) how often each image is drawn; the first row is the test set itself."""
    drawn = np.random.default_rng(seed).integers(0, images, (resamples, images))
    counts = np.stack([np.bincount(row, minlength=images) for row in drawn])
    return np.concatenate([np.ones((1, images), int), counts])


def average_precision(classes: Sequence[Matched], weights: np.ndarray) -> np.ndarray:
    """(N, T) COCO's AP, from 0 to 100, of test sets that hold each image so many times.

    Args:
        weights: (N, I).
    """
    totals, counted = np.zeros((len(weights), len(classes[0].hit))), np.zeros((len(weights), 1))
    for matched in classes:
        objects = weights @ matched.objects  # (N,)
        counted[:, 0] += objects > 0
        drawn = weights[:, matched.image]  # (N, D)
        for threshold, (hit, miss) in enumerate(zip(matched.hit, matched.miss, strict=True)):
            hits, misses = (np.cumsum(drawn * kind, axis=1, dtype=float) for kind in (hit, miss))
            precision = hits / np.maximum(hits + misses, 1e-9)
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            recall = hits / np.maximum(objects, 1)[:, None]
            for row in range(len(weights)):
                places = np.searchsorted(recall[row], RECALLS, side="left")
                inside = places < recall.shape[1]
                totals[row, threshold] += precision[row, places[inside]].sum() / len(RECALLS)
    return 100 * totals / np.maximum(counted, 1)


def interval(gains: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle share of (N,) differences."""
    low, high = np.quantile(gains, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
