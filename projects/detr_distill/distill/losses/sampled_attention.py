"""Distillation of where deformable decoders look: the sampled points of matched queries, as distributions.

Letters: Ls student layers, B images, M pairs, H heads, R points (Rs student's, Rt teacher's), K directions,
G nodes along a side of a grid.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from detectron2.config import configurable
from torch import Tensor

from ...config.keys import key
from ...config.ranges import NOT_NEGATIVE, SEVERAL, Words
from ...registry import LOSS_REGISTRY
from ...structures import SAMPLED_ATTENTION, SampledPoints
from ..knowledge import Knowledge
from ..match import Match
from ..students.base import StudentOutput
from .pair_loss import ScoredPairLoss, mean_over_pairs
from .sampled_points import energy_coefficient, grid_distance


@LOSS_REGISTRY.register()
class SampledAttentionLoss(ScoredPairLoss):
    """``weight * D(sampled attention)``, mean over pairs: the cross-attention loss between deformable decoders.

    D3ETR (2211.09768) distils dense cross-attention maps; deformable attention (2010.04159) has weighted points in
    their place, and no source says how to compare them [R]. A query's points, of all levels, are a distribution over
    the image, whose comparison knows no order of points and takes any number of heads, levels and points on each side.
    """

    requires = frozenset({SAMPLED_ATTENTION})
    remedies: ClassVar[dict[str, str]] = {SAMPLED_ATTENTION: "replace it by AttentionLoss, which compares dense maps"}

    weight: float = key(
        1.0,
        "between deformable decoders, in place of the cross-attention loss; 0 builds nothing",
        NOT_NEGATIVE,
    )
    distance: str = key(
        "energy",
        'between the two distributions of points: `"energy"`, or `"js"` on a grid',
        Words("energy", "js"),
    )
    heads: str = key(
        "mean",
        '`"mean"`: all heads together; `"each"`: head by head where both sides have as many',
        Words("mean", "each"),
    )
    directions: int = key(4, '`"energy"`: lines that the points are projected on', SEVERAL)
    grid_size: int = key(16, '`"js"`: nodes along a side of the image', SEVERAL)
    pair_weight: str = key(
        "teacher_score",
        'a pair counts by the teacher\'s best class probability, or `"equal"`, all alike',
        Words("equal", "teacher_score"),
    )

    @configurable
    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self._compare = (
            partial(energy_coefficient, directions=self.directions)
            if self.distance == "energy"
            else partial(grid_distance, size=self.grid_size)
        )

    def terms(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> dict[str, Tensor]:
        """The term ``sampled_attention``, (Ls,)."""
        student_output, teacher_output = student.outputs[match.student_group], knowledge.output_of(match)
        assert student_output.sampled_attention is not None and teacher_output.sampled_attention is not None
        losses = []
        with torch.autocast(student_output.logits.device.type, enabled=False):
            score = self.classes.select_teacher(teacher_output.probabilities()).amax(-1)
            for layer, teacher_layer in enumerate(match.teacher_layer):
                pairs = match.pairs.layer(layer)
                student_points = student_output.sampled_attention[layer].map(pairs.take_query)
                teacher_points = teacher_output.sampled_attention[teacher_layer].map(pairs.take_target)
                as_many = student_points.weights.shape[2] == teacher_points.weights.shape[2]
                by_head = self.heads == "each" and as_many
                values = self._compare(
                    *_as_distribution(teacher_points, by_head), *_as_distribution(student_points, by_head)
                )
                weight = pairs.weight
                if self.pair_weight == "teacher_score":
                    weight = weight * pairs.take_target(score[teacher_layer])
                losses.append(mean_over_pairs(values.mean(2), weight))
        return {"sampled_attention": torch.stack(losses)}


def _as_distribution(points: SampledPoints, by_head: bool) -> tuple[Tensor, Tensor]:
    """Positions (B, M, H, R, 2) and weights (B, M, H, R), adding up to 1; H is 1, all heads, unless ``by_head``."""
    if by_head:
        return points.locations.flatten(3, 4), points.weights.flatten(3)
    heads = points.weights.shape[2]
    return points.locations.flatten(2, 4).unsqueeze(2), points.weights.flatten(2).unsqueeze(2) / heads
