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
from ...detr.layers.attention import Kept
from ...detr.layers.deformable_kernel import KERNELS
from ...errors import ConfigError
from ...registry import LOSS_REGISTRY
from ...structures import CROSS_ATTENTION, FACTORS, SELF_ATTENTION, AttentionFactors
from ...structures.levels import resize_tokens
from ...structures.rows import take_rows
from .. import divergence
from ..attention_check import attention_kernels_work
from ..knowledge import Knowledge
from ..match import Match
from ..students.base import Student, StudentOutput
from ..teachers.base import Teacher
from .pair_loss import PairLoss, mean_over_pairs, scaled

_DIVERGENCES = {"kl": divergence.kl, "mse": divergence.mse}
WIDEST_HEAD = 128  # that the kernels' tiles hold


@LOSS_REGISTRY.register()
class AttentionLoss(PairLoss):
    """``weight * (self_weight * D(self-attention) + cross_weight * D(cross-attention))``, mean over heads and pairs.

    Source: D3ETR (2211.09768) distils both maps of every decoder layer [P]; KL or MSE, per head, on the softmax before
    dropout [R]. Where head counts differ the heads' mean is compared, and a cross-attention map over another memory
    grid is resized to the student's [R].

    A map of weight 0 is left out and not captured. On CUDA no map exists where both decoders can hand over queries and
    keys in its place: Triton's kernels compare them, see ../attention_triton.py.

    Args:
        factors: of ``SELF_ATTENTION`` and ``CROSS_ATTENTION``, those that are compared without maps.
    """

    remedies: ClassVar[dict[str, str]] = {
        **dict.fromkeys(FACTORS.values(), "set MODEL.DISTILL.ATTENTION_LOSS.KERNEL auto"),
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

    kernel: str = key(
        "auto",
        '`"auto"`: without maps on CUDA, where Triton works and both decoders allow it, else from maps; `"pytorch"`: '
        'from maps; `"triton"`',
        Words(*KERNELS),
    )

    @configurable
    def __init__(self, *, factors: frozenset[str] = frozenset(), **settings: Any):
        super().__init__(**settings)
        wanted = {SELF_ATTENTION: self.self_weight, CROSS_ATTENTION: self.cross_weight}
        self.requires = frozenset(FACTORS[name] if name in factors else name for name, value in wanted.items() if value)

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student, teacher: Teacher) -> dict[str, Any]:
        settings = super().from_config(cfg, student, teacher)
        factors = frozenset(FACTORS)
        if not compares_without_maps(settings["kernel"], torch.device(cfg.MODEL.DEVICE)):
            factors = frozenset()
        elif settings["kernel"] == "auto":
            factors = frozenset(name for name in factors if FACTORS[name] in student.gives & teacher.gives)
        return {**settings, "factors": factors}

    @classmethod
    def is_active(cls, node: CfgNode) -> bool:
        return super().is_active(node) and (node.SELF_WEIGHT != 0 or node.CROSS_WEIGHT != 0)

    def terms(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> dict[str, Tensor]:
        """The weighted terms ``self_attention`` and ``cross_attention``, (Ls,) each, where captured."""
        losses = {}
        with torch.autocast(student.outputs[match.student_group].logits.device.type, enabled=False):
            if self.self_weight:
                losses["self_attention"] = scaled(self.self_weight, self._self_attention(student, knowledge, match))
            if self.cross_weight:
                losses["cross_attention"] = scaled(self.cross_weight, self._cross_attention(student, knowledge, match))
        return losses

    def _self_attention(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> Tensor:
        own, other = student.outputs[match.student_group], knowledge.output_of(match)
        student_kept, teacher_kept = own.self_factors or own.self_attention, other.self_factors or other.self_attention
        assert student_kept is not None and teacher_kept is not None
        losses = []
        for layer, teacher_layer in enumerate(match.teacher_layer):
            pairs = match.pairs.layer(layer)
            sides = student_kept[layer], teacher_kept[teacher_layer]
            of_student = (pairs.query, pairs.query_in_order, pairs.weight)
            of_teacher = (pairs.target, pairs.target_in_order, pairs.weight)
            factors = without_maps(*sides)
            if factors is None:
                student_map, teacher_map = map(_as_map, sides)
                rows = self._compare(_square(teacher_map, *of_teacher), _square(student_map, *of_student))
            else:
                rows = self._compare_factors(
                    _square_factors(factors[0], *of_student), _square_factors(factors[1], *of_teacher)
                )
            losses.append(rows)
        return mean_over_pairs(torch.stack(losses).mean(2), match.pairs.weight)

    def _cross_attention(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> Tensor:
        own, other = student.outputs[match.student_group], knowledge.output_of(match)
        student_kept = own.cross_factors or own.cross_attention
        teacher_kept = other.cross_factors or other.cross_attention
        assert student_kept is not None and teacher_kept is not None
        assert student.memory is not None and knowledge.memory is not None
        grids = knowledge.memory.shapes, student.memory.shapes
        losses = []
        for layer, teacher_layer in enumerate(match.teacher_layer):
            pairs = match.pairs.layer(layer)
            sides = student_kept[layer], teacher_kept[teacher_layer]
            factors = without_maps(*sides) if grids[0] == grids[1] else None
            if factors is None:
                student_map, teacher_map = (_as_map(side).transpose(1, 2) for side in sides)
                student_map = pairs.take_query(student_map).transpose(1, 2)
                teacher_map = pairs.take_target(teacher_map).transpose(1, 2)
                rows = self._compare(_resize(teacher_map, *grids), student_map)
            else:
                student_side, teacher_side = factors
                rows = self._compare_factors(
                    student_side if pairs.query_in_order else student_side.take_queries(pairs.query),
                    teacher_side if pairs.target_in_order else teacher_side.take_queries(pairs.target),
                )
            losses.append(rows)
        return mean_over_pairs(torch.stack(losses).mean(2), match.pairs.weight)

    def _compare(self, teacher_map: Tensor, student_map: Tensor) -> Tensor:
        """(B, H, M, N) maps to (B, H, M); where the sides have other numbers of heads, to (B, 1, M) of their means."""
        if teacher_map.shape[1] != student_map.shape[1]:
            teacher_map, student_map = teacher_map.mean(1, keepdim=True), student_map.mean(1, keepdim=True)
        return _DIVERGENCES[self.divergence](teacher_map, student_map)

    def _compare_factors(self, student: AttentionFactors, teacher: AttentionFactors) -> Tensor:
        """What :meth:`_compare` gives of their maps."""
        from ..attention_fused import attention_divergence

        return attention_divergence(student, teacher, kind=self.divergence, tiny=divergence.TINY)


def compares_without_maps(kernel: str, device: torch.device) -> bool:
    """Whether decoders are asked for queries and keys in place of maps, by ``MODEL.DISTILL.ATTENTION_LOSS.KERNEL``.

    Raises:
        ConfigError: "triton" on another device than CUDA, or where it does not work.
    """
    if kernel == "pytorch":
        return False
    works = device.type == "cuda" and torch.cuda.is_available() and attention_kernels_work(device)
    if kernel == "triton" and not works:
        raise ConfigError(
            'MODEL.DISTILL.ATTENTION_LOSS.KERNEL is "triton", whose kernels need CUDA and a Triton that works there; '
            f'MODEL.DEVICE is {device.type}. Set the key to "auto" or "pytorch".'
        )
    return works


def without_maps(student: Kept, teacher: Kept) -> tuple[AttentionFactors, AttentionFactors] | None:
    """Both sides as the fused form takes them; None where maps are to be compared."""
    if not isinstance(student, AttentionFactors) or not isinstance(teacher, AttentionFactors):
        return None
    factors = (student, teacher)
    return factors if all(fits_kernels(side.query) for side in factors) else None


def fits_kernels(query: Tensor) -> bool:
    """Whether Triton's kernels take queries (B, H, M, e) such as these."""
    return query.is_cuda and query.dtype != torch.float64 and query.shape[-1] <= WIDEST_HEAD


def _as_map(kept: Kept) -> Tensor:
    return kept.map() if isinstance(kept, AttentionFactors) else kept


def _square_factors(factors: AttentionFactors, index: Tensor, in_order: bool, weight: Tensor) -> AttentionFactors:
    """What :func:`_square` is of a map."""
    if in_order:
        return factors
    some_unmatched = index.shape[1] < factors.key.shape[2]
    return factors.take_queries(index).take_keys(index, weight if some_unmatched else None)


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
