"""Distillation of the decoder's attention maps between matched queries.

Letters: Ls student layers, B images, H heads, M pairs, Q queries, S memory tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...config.keys import key
from ...config.ranges import NOT_NEGATIVE, Words
from ...errors import ConfigError
from ...registry import LOSS_REGISTRY
from ...structures import CROSS_ATTENTION, SELF_ATTENTION
from ...structures.levels import resize_tokens
from ...structures.rows import take_rows
from .. import divergence
from ..knowledge import Knowledge
from ..match import Match
from ..students.base import StudentOutput
from .pair_loss import PairLoss, mean_over_pairs

_DIVERGENCES = {"kl": divergence.kl, "mse": divergence.mse}


@LOSS_REGISTRY.register()
class AttentionLoss(PairLoss):
    """``weight * (self_weight * D(self-attention) + cross_weight * D(cross-attention))``, mean over heads and pairs.

    Source: D3ETR (2211.09768) distils both maps of every decoder layer [P]; KL or MSE, per head, on the softmax before
    dropout [R]. Where head counts differ the heads' mean is compared, and a cross-attention map over another memory
    grid is resized to the student's [R].

    A map of weight 0 is left out and not captured.
    """

    remedies: ClassVar[dict[str, str]] = {
        SELF_ATTENTION: "set MODEL.DISTILL.ATTENTION_LOSS.SELF_WEIGHT 0.0",
        CROSS_ATTENTION: "set MODEL.DISTILL.ATTENTION_LOSS.CROSS_WEIGHT 0.0 (where both decoders sample points, "
        "SampledAttentionLoss compares those)",
    }

    divergence: str = key("kl", 'or `"mse"`', Words(*_DIVERGENCES), earlier="kind")
    self_weight: float = key(
        1.0, "weight of the self-attention maps; 0 leaves them uncaptured", NOT_NEGATIVE, earlier="weight_self"
    )
    cross_weight: float = key(
        1.0, "weight of the cross-attention maps; 0 leaves them uncaptured", NOT_NEGATIVE, earlier="weight_cross"
    )

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        wanted = {SELF_ATTENTION: self.self_weight, CROSS_ATTENTION: self.cross_weight}
        self.requires = frozenset(name for name, value in wanted.items() if value)

    @classmethod
    def is_active(cls, node: CfgNode) -> bool:
        return super().is_active(node) and (node.SELF_WEIGHT != 0 or node.CROSS_WEIGHT != 0)

    def terms(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> dict[str, Tensor]:
        """The weighted terms ``self_attention`` and ``cross_attention``, (Ls,) each, where captured."""
        losses = {}
        with torch.autocast(student.outputs[match.student_group].logits.device.type, enabled=False):
            if SELF_ATTENTION in self.requires:
                losses["self_attention"] = self.self_weight * self._self_attention(student, knowledge, match)
            if CROSS_ATTENTION in self.requires:
                losses["cross_attention"] = self.cross_weight * self._cross_attention(student, knowledge, match)
        return losses

    def _self_attention(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> Tensor:
        student_maps = student.outputs[match.student_group].self_attention
        teacher_maps = knowledge.output_of(match).self_attention
        assert student_maps is not None and teacher_maps is not None
        losses = []
        for layer, teacher_layer in enumerate(match.teacher_layer):
            pairs = match.pairs.layer(layer)
            student_map = _square(student_maps[layer], pairs.query, pairs.query_in_order, pairs.weight)
            teacher_map = _square(teacher_maps[teacher_layer], pairs.target, pairs.target_in_order, pairs.weight)
            losses.append(self._mean(teacher_map, student_map, pairs.weight))
        return torch.stack(losses)

    def _cross_attention(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> Tensor:
        student_maps = student.outputs[match.student_group].cross_attention
        teacher_maps = knowledge.output_of(match).cross_attention
        assert student_maps is not None and teacher_maps is not None
        assert student.memory is not None and knowledge.memory is not None
        losses = []
        for layer, teacher_layer in enumerate(match.teacher_layer):
            pairs = match.pairs.layer(layer)
            student_map = pairs.take_query(student_maps[layer].transpose(1, 2)).transpose(1, 2)
            teacher_map = pairs.take_target(teacher_maps[teacher_layer].transpose(1, 2)).transpose(1, 2)
            teacher_map = _resize(teacher_map, knowledge.memory.shapes, student.memory.shapes)
            losses.append(self._mean(teacher_map, student_map, pairs.weight))
        return torch.stack(losses)

    def _mean(self, teacher_map: Tensor, student_map: Tensor, weight: Tensor) -> Tensor:
        """(B, H, M, N) maps and (B, M) pair weights to the mean over heads and pairs."""
        if teacher_map.shape[1] != student_map.shape[1]:
            teacher_map, student_map = teacher_map.mean(1, keepdim=True), student_map.mean(1, keepdim=True)
        compare = _DIVERGENCES[self.divergence]
        return mean_over_pairs(compare(teacher_map, student_map).mean(1), weight)


def _square(maps: Tensor, index: Tensor, in_order: bool, weight: Tensor) -> Tensor:
    """Rows and columns of the matched queries, (B, H, Q, Q) and (B, M) to (B, H, M, M).

    Where some queries are unmatched the rest of a row is made a distribution again.
    """
    if in_order:
        return maps
    rows = take_rows(maps.transpose(1, 2), index).transpose(1, 2)
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
    tokens = maps.flatten(0, 1).transpose(1, 2)  # (B * H, S, M)
    resized = resize_tokens(tokens, old, new).transpose(1, 2).clamp(min=0)
    resized = resized / resized.sum(-1, keepdim=True).clamp(min=divergence.TINY)
    return resized.unflatten(0, maps.shape[:2])
