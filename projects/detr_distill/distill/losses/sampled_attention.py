"""Distillation of where deformable decoders look: the sampled points of matched queries, as distributions.

Letters: Ls student layers, B images, M pairs, H heads, R points (Rs student's, Rt teacher's), K directions,
G nodes along a side of a grid.
"""

from __future__ import annotations

from functools import partial

import torch
from detectron2.config import configurable
from torch import Tensor

from ...errors import ConfigError
from ...registry import LOSS_REGISTRY
from ...structures import SAMPLED_ATTENTION, SampledPoints
from ..classes import ClassMap
from ..knowledge import Knowledge
from ..match import Match
from ..students.base import StudentOutput
from .attention import mean_over_pairs, take_rows
from .base import DistillLoss
from .sampled_points import energy_coefficient, grid_distance


@LOSS_REGISTRY.register()
class SampledAttentionLoss(DistillLoss):
    """``weight * D(sampled attention)``, mean over pairs: the cross-attention loss between deformable decoders.

    D3ETR (2211.09768) distils dense cross-attention maps; deformable attention (2010.04159) has weighted points in
    their place, and no source says how to compare them [R]. A query's points, of all levels, are a distribution over
    the image, whose comparison knows no order of points and takes any number of heads, levels and points on each side.

    Args:
        classes: shared classes.
        distance: "energy" (:func:`energy_coefficient`) or "js" (:func:`jensen_shannon` on a grid).
        heads: "mean", one distribution of all heads; "each", head by head where both sides have as many.
        directions: K, of "energy". grid_size: G, of "js": G x G nodes over the image.
        pair_weight: "teacher_score": a pair counts by the teacher's best class probability; "equal".
    """

    requires = frozenset({SAMPLED_ATTENTION})
    remedies = {SAMPLED_ATTENTION: "replace it by AttentionLoss, which compares dense maps"}

    @configurable
    def __init__(
        self,
        *,
        classes: ClassMap,
        distance: str = "energy",
        heads: str = "mean",
        directions: int = 4,
        grid_size: int = 16,
        pair_weight: str = "teacher_score",
        weight: float = 1.0,
        groups: list[str] = (),  # type: ignore[assignment]
        layers: str = "all",
    ):
        super().__init__(key="SAMPLED_ATTENTION_LOSS", weight=weight, groups=groups, layers=layers)
        for key, value, known in (
            ("DISTANCE", distance, ("energy", "js")),
            ("HEADS", heads, ("mean", "each")),
            ("PAIR_WEIGHT", pair_weight, ("equal", "teacher_score")),
        ):
            if value not in known:
                raise ConfigError(f"MODEL.DISTILL.{self.key}.{key} is '{value}'. Known: {', '.join(known)}.")
        self.classes, self.heads, self.by_score = classes, heads, pair_weight == "teacher_score"
        self.distance = (
            partial(energy_coefficient, directions=directions)
            if distance == "energy"
            else partial(grid_distance, size=grid_size)
        )

    @classmethod
    def from_config(cls, cfg, student, teacher):
        node = cfg.MODEL.DISTILL.SAMPLED_ATTENTION_LOSS
        return {
            "classes": teacher.classes,
            "distance": node.DISTANCE,
            "heads": node.HEADS,
            "directions": node.DIRECTIONS,
            "grid_size": node.GRID_SIZE,
            "pair_weight": node.PAIR_WEIGHT,
            "weight": node.WEIGHT,
            "groups": list(node.GROUPS),
            "layers": node.LAYERS,
        }

    def terms(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> dict[str, Tensor]:
        """The term ``sampled_attention``, (Ls,)."""
        output, teacher = student.outputs[match.student_group], knowledge.output_of(match)
        assert output.sampled_attention is not None and teacher.sampled_attention is not None
        losses = []
        with torch.autocast(output.logits.device.type, enabled=False):
            score = self.classes.select_teacher(teacher.probabilities()).amax(-1)
            for layer, teacher_layer in enumerate(match.teacher_layer):
                pairs = match.pairs.layer(layer)
                pred = _take(output.sampled_attention[layer], pairs.query, pairs.query_in_order)
                goal = _take(teacher.sampled_attention[teacher_layer], pairs.target, pairs.target_in_order)
                by_head = self.heads == "each" and pred.weights.shape[2] == goal.weights.shape[2]
                values = self.distance(*_as_distribution(goal, by_head), *_as_distribution(pred, by_head))
                weight = pairs.weight
                if self.by_score:
                    weight = weight * take_rows(score[teacher_layer], pairs.target, pairs.target_in_order)
                losses.append(mean_over_pairs(values.mean(2), weight))
        return {"sampled_attention": torch.stack(losses)}


def _take(points: SampledPoints, index: Tensor, in_order: bool) -> SampledPoints:
    """The points of the matched queries, M in place of Q."""
    return SampledPoints(*(take_rows(values, index, in_order) for values in (points.locations, points.weights)))


def _as_distribution(points: SampledPoints, by_head: bool) -> tuple[Tensor, Tensor]:
    """Places (B, M, H, R, 2) and weights (B, M, H, R), adding up to 1; H is 1, all heads, unless ``by_head``."""
    if by_head:
        return points.locations.flatten(3, 4), points.weights.flatten(3)
    heads = points.weights.shape[2]
    return points.locations.flatten(2, 4).unsqueeze(2), points.weights.flatten(2).unsqueeze(2) / heads
