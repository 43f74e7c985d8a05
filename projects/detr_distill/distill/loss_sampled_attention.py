"""Distillation of where deformable decoders look: the sampled points of matched queries, as distributions.

Letters: Ls student layers, B images, M pairs, H heads, R points (Rs student's, Rt teacher's), K directions,
G nodes along a side of a grid.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from detectron2.config import configurable
from torch import Tensor

from ..errors import ConfigError
from ..registry import LOSS_REGISTRY
from ..structures import SAMPLED_ATTENTION, SampledPoints
from .classes import ClassMap
from .divergence import TINY
from .knowledge import Knowledge, Match
from .loss_attention import mean_over_pairs, take_rows
from .loss_base import DistillLoss
from .students import StudentOutput

# Added to the denominator of the energy coefficient, in sides of the image: places much nearer than this are one place.
NEAR = 0.01


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


def energy_coefficient(
    goal_places: Tensor, goal_weights: Tensor, places: Tensor, weights: Tensor, directions: int
) -> Tensor:
    """``(E|X - Y| - (E|X - X'| + E|Y - Y'|) / 2) / (E|X - Y| + NEAR)``, X the student's points and Y the teacher's.

    Between 0, for equal distributions, and 1; the same for a small object as for a large one, but for NEAR; with a
    gradient to places and weights however far apart the two are. Source: the energy distance over its largest possible
    value (Szekely and Rizzo) [P], used for attention here [R]. A distance in the plane is pi / 2 times the mean of its
    projections' lengths over all directions; with K of them, evenly spread, it is read from K sorted lines.

    Args:
        goal_places: (..., Rt, 2), goal_weights: (..., Rt), adding up to 1: the teacher's points.
        places: (..., Rs, 2), weights: (..., Rs): the student's.

    Returns:
        (...).
    """
    angles = torch.arange(directions, device=places.device) * (math.pi / directions)
    lines = torch.stack([angles.cos(), angles.sin()]).to(places.dtype)
    along = (torch.cat([goal_places, places], dim=-2) @ lines).transpose(-2, -1)  # (..., K, Rt + Rs)
    along, order = along.sort(-1)
    gaps = along.diff(dim=-1)
    goal_below, below = (
        mass.unsqueeze(-2).expand_as(along).gather(-1, order).cumsum(-1)[..., :-1]
        for mass in (
            torch.cat([goal_weights, torch.zeros_like(weights)], dim=-1),
            torch.cat([torch.zeros_like(goal_weights), weights], dim=-1),
        )
    )
    # With the distribution functions F and G, constant between neighbours, E|X - Y| is the integral of
    # F (1 - G) + G (1 - F), and the numerator that of (F - G)^2.
    difference = ((below - goal_below).square() * gaps).sum(-1).mean(-1)
    between = ((below + goal_below - 2 * below * goal_below) * gaps).sum(-1).mean(-1)
    return difference / (between + NEAR * 2 / math.pi)


def grid_distance(goal_places: Tensor, goal_weights: Tensor, places: Tensor, weights: Tensor, size: int) -> Tensor:
    """:func:`jensen_shannon` of both distributions on a grid; arguments as in :func:`energy_coefficient`."""
    return jensen_shannon(rasterise(goal_places, goal_weights, size), rasterise(places, weights, size))


def rasterise(places: Tensor, weights: Tensor, size: int) -> Tensor:
    """Points as a distribution over G x G nodes, each point shared by the four around it, bilinearly.

    Args:
        places: (..., R, 2), (x, y). weights: (..., R), adding up to 1. size: G; the outer nodes lie on the border.

    Returns:
        (..., G * G + 1), row by row; the last entry is what lies outside of the image.
    """
    nodes = torch.arange(size, dtype=places.dtype, device=places.device) / (size - 1)
    shares = (1 - (places.unsqueeze(-1) - nodes).abs() * (size - 1)).clamp(min=0)  # (..., R, 2, G)
    columns, rows = shares.unbind(-2)
    inside = ((rows * weights.unsqueeze(-1)).transpose(-2, -1) @ columns).flatten(-2)
    outside = (weights.sum(-1) - inside.sum(-1)).clamp(min=0)
    return torch.cat([inside, outside.unsqueeze(-1)], dim=-1)


def jensen_shannon(target: Tensor, prediction: Tensor) -> Tensor:
    """``(KL(t || m) + KL(p || m)) / 2`` with m = (t + p) / 2, in nats: (..., N) and (..., N) to (...), at most log 2.

    KL has no bound where the student does not look at all, as points often do not.
    """
    middle = ((target + prediction) / 2 + TINY).log()
    parts = (values * ((values + TINY).log() - middle) for values in (target, prediction))
    return sum(parts).sum(-1) / 2  # type: ignore[union-attr]


def _take(points: SampledPoints, index: Tensor, in_order: bool) -> SampledPoints:
    """The points of the matched queries, M in place of Q."""
    return SampledPoints(*(take_rows(values, index, in_order) for values in (points.locations, points.weights)))


def _as_distribution(points: SampledPoints, by_head: bool) -> tuple[Tensor, Tensor]:
    """Places (B, M, H, R, 2) and weights (B, M, H, R), adding up to 1; H is 1, all heads, unless ``by_head``."""
    if by_head:
        return points.locations.flatten(3, 4), points.weights.flatten(3)
    heads = points.weights.shape[2]
    return points.locations.flatten(2, 4).unsqueeze(2), points.weights.flatten(2).unsqueeze(2) / heads
