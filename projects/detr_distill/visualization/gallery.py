"""Writes the pictures that compare detectors: predictions, query pairs, attention."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..detr import DetrDetector
from ..distill.matchers.adaptive import AdaptiveMatcher
from . import pictures
from .collect import Sample, View, collect_pairs, detect, has_attention_maps

SCORE = 0.4  # lowest score of a detection that is drawn
SURE = 0.5  # lowest class probability of a teacher query whose partner is drawn
MOST_PAIRS = 9  # of one image
ATTENTION_IMAGES, ATTENTION_QUERIES = 2, 3


def write_gallery(
    folder: str | os.PathLike,
    samples: Sequence[Sample],
    students: Sequence[View],
    teacher: View | None = None,
    matcher: AdaptiveMatcher | None = None,
    *,
    score: float = SCORE,
    sure: float = SURE,
    most_rows: int | None = None,
) -> list[Path]:
    """Writes ``predictions.png`` and, with a teacher of the DETR type, ``pairs.png`` and ``attention.png``.

    Args:
        students: detectors to compare; the pairs are those of the last.
        matcher: pairs their queries with the teacher's.
        score: lowest score of a detection. sure: lowest class probability of a teacher query.
        most_rows: draw the predictions of the first images only, a row each.

    Returns:
        The files written.
    """
    views = [*([teacher] if teacher else []), *students]
    found = {view.name: [detect(view, sample, score) for sample in samples[:most_rows]] for view in views}
    figures = {"predictions": pictures.predictions(samples[:most_rows], found, score)}
    if teacher is not None and matcher is not None and all(isinstance(view.detector, DetrDetector) for view in views):
        last = students[-1]
        pairs = [collect_pairs(sample, teacher, [last], matcher, sure, MOST_PAIRS) for sample in samples]
        figures["pairs"] = pictures.query_pairs(samples, pairs, teacher.name, last.name)
        if all(has_attention_maps(view.detector) for view in views):
            few = samples[:ATTENTION_IMAGES]
            rows = [collect_pairs(sample, teacher, students, matcher, sure, ATTENTION_QUERIES) for sample in few]
            # The student next to the teacher is the one that learned from it.
            names = [teacher.name, *(view.name for view in reversed(students))]
            figures["attention"] = pictures.attention(few, rows, names)
    files = [Path(folder) / f"{name}.png" for name in figures]
    for file, figure in zip(files, figures.values(), strict=True):
        pictures.save(figure, file)
    return files
