"""A teacher's best detections, as far as it knows them of a batch.

Letters: B images, N detections of an image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..structures.transfer import copy_to
from .classes import ClassMap
from .knowledge import Knowledge


class Detections(NamedTuple):
    """A teacher's best detections, N of each image.

    Attributes:
        query: (B, N), indices of the teacher's queries. score: (B, N), best class probability.
        labels: (B, N), of the shared classes. boxes: (B, N, 4) float32.
    """

    query: Tensor
    score: Tensor
    labels: Tensor
    boxes: Tensor


def best_detections(knowledge: Knowledge, classes: ClassMap, number: int) -> Detections:
    """The teacher's best detections of each image by its last layer, the best first; padding scores -1."""
    output = knowledge.output
    assert output is not None
    score, labels = classes.select_teacher(output.probabilities()[-1]).max(-1)
    if knowledge.counts is not None:  # what follows them is padding
        counts = copy_to(torch.tensor(knowledge.counts), score.device)
        score = score.masked_fill(torch.arange(score.shape[1], device=score.device) >= counts[:, None], -1.0)
    score, index = score.topk(min(number, score.shape[1]), dim=1)
    boxes = output.boxes[-1].float().gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
    return Detections(index, score, labels.gather(1, index), boxes)
