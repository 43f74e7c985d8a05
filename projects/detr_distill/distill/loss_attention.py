"""Distillation of the decoder's attention maps between matched queries.

Letters: Ls student layers, B images, H heads, M pairs, Q queries, S memory tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor

from ..errors import ConfigError
from ..registry import LOSS_REGISTRY
from ..structures import CROSS_ATTENTION, SELF_ATTENTION, Knowledge, Match
from . import divergence
from .layers import take_layers
from .loss_base import DistillLoss, mean_over_pairs
from .students import StudentOutput

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

    def terms(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> dict[str, Tensor]:
        """The weighted terms ``self_attention`` and ``cross_attention``, (Ls,) each, where captured."""
        output, teacher = student.outputs[match.student_group], knowledge.output
        assert teacher is not None
        pairs, losses = match.pairs, {}
        with torch.autocast(output.logits.device.type, enabled=False):
            if SELF_ATTENTION in self.requires:
                pred = _square(_rows(output.self_attention, pairs.query), pairs.query, pairs.weight)
                goal = take_layers(teacher.self_attention, match.teacher_layer)  # type: ignore[arg-type]
                goal = _square(_rows(goal, pairs.target), pairs.target, pairs.weight)
                losses["self_attention"] = self.weight_self * self._mean(goal, pred, pairs.weight)
            if CROSS_ATTENTION in self.requires:
                assert student.memory is not None
                pred = _rows(output.cross_attention, pairs.query)
                goal = take_layers(teacher.cross_attention, match.teacher_layer)  # type: ignore[arg-type]
                goal = _resize(_rows(goal, pairs.target), knowledge.memory_shapes, student.memory.shapes)
                losses["cross_attention"] = self.weight_cross * self._mean(goal, pred, pairs.weight)
        return losses

    def _mean(self, goal: Tensor, pred: Tensor, weight: Tensor) -> Tensor:
        """(Ls, B, H, M, N) maps to (Ls,)."""
        if goal.shape[2] != pred.shape[2]:
            goal, pred = goal.mean(2, keepdim=True), pred.mean(2, keepdim=True)
        return mean_over_pairs(self.divergence(goal, pred).mean(2), weight)


def _rows(maps: Tensor | None, index: Tensor) -> Tensor:
    """(L, B, H, Q, N) and (L, B, M) to the chosen rows (L, B, H, M, N)."""
    assert maps is not None
    heads, columns = maps.shape[2], maps.shape[-1]
    expanded = index[:, :, None, :, None].expand(-1, -1, heads, -1, columns)
    return maps.gather(3, expanded)


def _square(rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """The columns of the matched queries, (L, B, H, M, Q) to (L, B, H, M, M).

    Where some queries are unmatched the rest is made a distribution again.
    """
    heads, pairs = rows.shape[2], rows.shape[3]
    columns = rows.gather(4, index[:, :, None, None, :].expand(-1, -1, heads, pairs, -1))
    if pairs == rows.shape[-1]:
        return columns
    columns = columns * weight[:, :, None, None, :]
    return columns / columns.sum(-1, keepdim=True).clamp(min=divergence.TINY)


def _resize(maps: Tensor, old: list[tuple[int, int]], new: list[tuple[int, int]]) -> Tensor:
    """(L, B, H, M, S) maps over one memory grid to another, rows adding up to 1 again."""
    if old == new:
        return maps
    if len(old) != 1 or len(new) != 1:
        raise ConfigError(
            f"MODEL.DISTILL.ATTENTION_LOSS: cross-attention over memory levels {old} (teacher) cannot be compared with "
            f"{new} (student). Set MODEL.DISTILL.ATTENTION_LOSS.CROSS_WEIGHT 0."
        )
    grid = maps.flatten(0, 2).unflatten(-1, old[0])
    resized = F.interpolate(grid, size=new[0], mode="bilinear", antialias=True).clamp(min=0).flatten(-2)
    resized = resized / resized.sum(-1, keepdim=True).clamp(min=divergence.TINY)
    return resized.unflatten(0, maps.shape[:3])
