"""Distillation of how the queries of an image lie to each other.

Letters: Ls student layers, B images, M pairs, C width of the hidden states.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ...config.keys import key
from ...config.ranges import NOT_NEGATIVE, POSITIVE, Words
from ...registry import LOSS_REGISTRY
from ..divergence import TINY
from ..knowledge import Knowledge
from ..match import Match
from ..matchers.layer_pairs import take_layers
from ..side import HIDDEN
from ..students.base import Student, StudentOutput
from ..teachers.base import Teacher
from .pair_loss import PairLoss


@LOSS_REGISTRY.register()
class QueryRelationLoss(PairLoss):
    """``weight * mean |D_s[i, j] - D_t[i, j]|``, D the distances of an image's matched queries from each other.

    Source: DETRDistill (2211.10156, first version) takes the L1 distance of the two matrices of Euclidean distances
    between queries, the student's rows permuted by the matching [P]. Its code has a cross-entropy between matched
    queries in place of it: cosine similarities over a temperature of 0.07, with weight 0.2 [C]. That a query is its
    hidden state, what the distances are measured in, the mean over pairs, that a query's partner is told from others of
    its image, and a projection only where widths differ are reconstructions [R].

    Args:
        widths: of the student's and the teacher's hidden states.
    """

    needs = frozenset({HIDDEN})
    remedies: ClassVar[dict[str, str]] = {HIDDEN: "choose a DetrDetector"}

    weight: float = key(1.0, "of the loss on the distances between queries; 0 builds nothing", NOT_NEGATIVE)
    divergence: str = key(
        "distance",
        'the difference of the distances, or `"contrastive"`: a cross-entropy that finds each query\'s partner',
        Words("distance", "contrastive"),
        earlier="kind",
    )
    # So that neither width nor scale of the states counts.
    normalize: bool = key(True, '`"distance"`: measured in the image\'s mean distance')
    temperature: float = key(0.07, 'of `"contrastive"`', POSITIVE)

    @configurable
    def __init__(self, *, widths: tuple[int, int], **settings: Any):
        super().__init__(**settings)
        project = self.divergence == "contrastive" and widths[0] != widths[1]
        self.projection = nn.Linear(*widths) if project else nn.Identity()

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student, teacher: Teacher) -> dict[str, Any]:
        return {
            **super().from_config(cfg, student, teacher),
            "widths": (student.hidden_width, teacher.hidden_width),
        }

    def terms(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> dict[str, Tensor]:
        """The term ``query_relation``, (Ls,)."""
        student_hidden = student.outputs[match.student_group].hidden
        teacher_hidden = knowledge.output_of(match).hidden
        with torch.autocast(student_hidden.device.type, enabled=False):
            student_states = match.pairs.take_query(student_hidden.float())
            teacher_states = take_layers(teacher_hidden.detach().float(), match.teacher_layer)
            teacher_states = match.pairs.take_target(teacher_states)
            weight = match.pairs.weight
            if self.divergence == "contrastive":
                value = contrastive(self.projection(student_states), teacher_states, weight, self.temperature)
            else:
                value = distance_difference(student_states, teacher_states, weight, self.normalize)
        return {"query_relation": value}


def pairwise_distances(states: Tensor) -> Tensor:
    """Euclidean distances (..., M, M) between the rows of (..., M, C), with a gradient of 0 where two rows are equal.

    Written as a product of matrices: a difference for every two rows would be C times as large.
    """
    # Whatever is taken from all rows, their differences stay; the squares that cancel below become smaller.
    states = states - states.detach().mean(-2, keepdim=True)
    squares = states.square().sum(-1)
    squared = squares.unsqueeze(-1) + squares.unsqueeze(-2) - 2 * states @ states.transpose(-2, -1)
    return (squared.clamp(min=0) + TINY).sqrt()


def distance_difference(student_states: Tensor, teacher_states: Tensor, weight: Tensor, normalize: bool) -> Tensor:
    """Mean over two different pairs of an image of the difference between student's and teacher's distance.

    Args:
        student_states: (L, B, M, C). teacher_states: (L, B, M, C'). weight: (L, B, M), 0 for padding.
        normalize: each side's distances are divided by their mean in the image.

    Returns:
        (L,), 0 where no image has two pairs.
    """
    others = 1 - torch.eye(weight.shape[-1], device=weight.device)
    both = weight.unsqueeze(-1) * weight.unsqueeze(-2) * others
    student, teacher = pairwise_distances(student_states), pairwise_distances(teacher_states)
    if normalize:
        student, teacher = student / _mean_of_image(student, both), teacher / _mean_of_image(teacher, both)
    return ((student - teacher).abs() * both).sum((1, 2, 3)) / both.sum((1, 2, 3)).clamp(min=1)


def contrastive(student_states: Tensor, teacher_states: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Mean over pairs of ``-log softmax_j(cos(s_i, t_j) / temperature)`` at j = i, over the image's pairs (InfoNCE).

    Args:
        student_states, teacher_states: (L, B, M, C), row i of one belongs to row i of the other.
        weight: (L, B, M), 0 for padding.

    Returns:
        (L,), 0 where there is no pair.
    """
    student, teacher = F.normalize(student_states, dim=-1), F.normalize(teacher_states, dim=-1)
    cosine = student @ teacher.transpose(-2, -1)
    padding = (weight == 0).unsqueeze(-2)
    logits = (cosine / temperature).masked_fill(padding, torch.finfo(cosine.dtype).min)
    values = -logits.log_softmax(-1).diagonal(dim1=-2, dim2=-1)
    return (values * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)


def _mean_of_image(distances: Tensor, both: Tensor) -> Tensor:
    """(L, B, M, M) distances and weights to their weighted mean (L, B, 1, 1)."""
    total, count = ((values * both).sum((-2, -1), keepdim=True) for values in (distances, torch.ones_like(both)))
    return (total / count.clamp(min=1)).clamp(min=TINY)
