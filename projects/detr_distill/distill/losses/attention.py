"""Distillation of the decoder's attention maps between matched queries.

Letters: Ls student layers, B images, H heads, M pairs, Q queries, S memory tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...errors import ConfigError
from ...registry import LOSS_REGISTRY
from ...structures import CROSS_ATTENTION, SELF_ATTENTION
from .. import divergence
from ..knowledge import Knowledge
from ..match import Match
from ..students.base import StudentOutput
from .base import DistillLoss

_DIVERGENCES = {"kl": divergence.kl, "mse": divergence.mse}


@LOSS_REGISTRY.register()
class AttentionLoss(DistillLoss):
    """``weight * (weight_self * D(self-attention) + weight_cross * D(cross-attention))``, mean over heads and pairs.

    Source: D3ETR (2211.09768) distils both maps of every decoder layer [P]; KL or MSE, per head, on the softmax before
    dropout [R]. Where head counts differ the heads' mean is compared, and a cross-attention map over another memory
    grid is resized to the student's [R].

    Args:
        kind: "kl" or "mse". weight_self, weight_cross: of the two maps; 0 leaves a map out and it is not captured.
    """

    remedies = {
        SELF_ATTENTION: "set MODEL.DISTILL.ATTENTION_LOSS.SELF_WEIGHT 0.0",
        CROSS_ATTENTION: "set MODEL.DISTILL.ATTENTION_LOSS.CROSS_WEIGHT 0.0 (where both decoders sample points, "
        "SampledAttentionLoss compares those)",
    }

    @configurable
    def __init__(
        self,
        *,
        kind: str = "kl",
        weight_self: float = 1.0,
        weight_cross: float = 1.0,
        weight: float = 1.0,
        groups: list[str] = (),  # type: ignore[assignment]
        layers: str = "all",
    ):
        super().__init__(key="ATTENTION_LOSS", weight=weight, groups=groups, layers=layers)
        if kind not in _DIVERGENCES:
            known = ", ".join(sorted(_DIVERGENCES))
            raise ConfigError(f"MODEL.DISTILL.ATTENTION_LOSS.DIVERGENCE is '{kind}'. Known: {known}.")
        self.divergence = _DIVERGENCES[kind]
        self.weight_self, self.weight_cross = weight_self, weight_cross
        wanted = {SELF_ATTENTION: weight_self, CROSS_ATTENTION: weight_cross}
        self.requires = frozenset(name for name, value in wanted.items() if value)

    @classmethod
    def from_config(cls, cfg, student, teacher):
        node = cfg.MODEL.DISTILL.ATTENTION_LOSS
        return {
            "kind": node.DIVERGENCE,
            "weight_self": node.SELF_WEIGHT,
            "weight_cross": node.CROSS_WEIGHT,
            "weight": node.WEIGHT,
            "groups": list(node.GROUPS),
            "layers": node.LAYERS,
        }

    @classmethod
    def is_active(cls, node: CfgNode) -> bool:
        return super().is_active(node) and (node.SELF_WEIGHT != 0 or node.CROSS_WEIGHT != 0)

    def terms(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> dict[str, Tensor]:
        """The weighted terms ``self_attention`` and ``cross_attention``, (Ls,) each, where captured."""
        losses = {}
        with torch.autocast(student.outputs[match.student_group].logits.device.type, enabled=False):
            if SELF_ATTENTION in self.requires:
                losses["self_attention"] = self.weight_self * self._self_attention(student, knowledge, match)
            if CROSS_ATTENTION in self.requires:
                losses["cross_attention"] = self.weight_cross * self._cross_attention(student, knowledge, match)
        return losses

    def _self_attention(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> Tensor:
        maps, goals = student.outputs[match.student_group].self_attention, knowledge.output_of(match).self_attention
        losses = []
        for layer, teacher_layer in enumerate(match.teacher_layer):
            pairs = match.pairs.layer(layer)
            pred = _square(maps[layer], pairs.query, pairs.query_in_order, pairs.weight)  # type: ignore[index]
            goal = _square(goals[teacher_layer], pairs.target, pairs.target_in_order, pairs.weight)  # type: ignore[index]
            losses.append(self._mean(goal, pred, pairs.weight))
        return torch.stack(losses)

    def _cross_attention(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> Tensor:
        maps, goals = student.outputs[match.student_group].cross_attention, knowledge.output_of(match).cross_attention
        assert student.memory is not None
        losses = []
        for layer, teacher_layer in enumerate(match.teacher_layer):
            pairs = match.pairs.layer(layer)
            pred = _rows(maps[layer], pairs.query, pairs.query_in_order)  # type: ignore[index]
            goal = _rows(goals[teacher_layer], pairs.target, pairs.target_in_order)  # type: ignore[index]
            goal = _resize(goal, knowledge.memory_shapes, student.memory.shapes)
            losses.append(self._mean(goal, pred, pairs.weight))
        return torch.stack(losses)

    def _mean(self, goal: Tensor, pred: Tensor, weight: Tensor) -> Tensor:
        """(B, H, M, N) maps and (B, M) pair weights to the mean over heads and pairs."""
        if goal.shape[1] != pred.shape[1]:
            goal, pred = goal.mean(1, keepdim=True), pred.mean(1, keepdim=True)
        return mean_over_pairs(self.divergence(goal, pred).mean(1), weight)


def mean_over_pairs(values: Tensor, weight: Tensor) -> Tensor:
    """(B, M) values and pair weights to their mean over all pairs; 0 where there is none."""
    return (values * weight).sum() / weight.sum().clamp(min=1)


def take_rows(values: Tensor, index: Tensor, in_order: bool) -> Tensor:
    """(B, Q, ...) and (B, M) to the chosen queries' values (B, M, ...)."""
    if in_order:
        return values
    # Whole rows are copied; a gather would look up an index for every entry.
    image = torch.arange(len(index), device=index.device)[:, None]
    return values[image, index]


def _rows(maps: Tensor, index: Tensor, in_order: bool) -> Tensor:
    """(B, H, Q, N) and (B, M) to the chosen rows (B, H, M, N)."""
    return take_rows(maps.transpose(1, 2), index, in_order).transpose(1, 2)


def _square(maps: Tensor, index: Tensor, in_order: bool, weight: Tensor) -> Tensor:
    """Rows and columns of the matched queries, (B, H, Q, Q) and (B, M) to (B, H, M, M).

    Where some queries are unmatched the rest of a row is made a distribution again.
    """
    if in_order:
        return maps
    rows = _rows(maps, index, in_order)
    columns = rows.gather(3, index[:, None, None, :].expand(-1, maps.shape[1], index.shape[1], -1))
    if index.shape[1] == maps.shape[3]:
        return columns
    columns = columns * weight[:, None, None, :]
    return columns / columns.sum(-1, keepdim=True).clamp(min=divergence.TINY)


def _resize(maps: Tensor, old: list[tuple[int, int]], new: list[tuple[int, int]]) -> Tensor:
    """(B, H, M, S) maps over one memory grid to another, rows adding up to 1 again."""
    if old == new:
        return maps
    if len(old) != 1 or len(new) != 1:
        raise ConfigError(
            f"MODEL.DISTILL.ATTENTION_LOSS: cross-attention over memory levels {old} (teacher) cannot be compared with "
            f"{new} (student). Set MODEL.DISTILL.ATTENTION_LOSS.CROSS_WEIGHT 0."
        )
    grid = maps.flatten(0, 1).unflatten(-1, old[0])
    resized = F.interpolate(grid, size=new[0], mode="bilinear", antialias=True).clamp(min=0).flatten(-2)
    resized = resized / resized.sum(-1, keepdim=True).clamp(min=divergence.TINY)
    return resized.unflatten(0, maps.shape[:2])
