"""Target-aware feature distillation of DETRDistill: feature cells count by what the teacher's queries read there.

Letters: B images, M pairs (padded), C width of the teacher, S memory tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from ...detr import DetrDetector
from ...errors import ConfigError
from ...registry import LOSS_REGISTRY
from ...structures import Memory
from ...structures.levels import from_maps
from ..knowledge import Knowledge
from ..match import Match
from ..students.base import StudentOutput, feature_channels, network_of
from .base import DistillLoss
from .target_masks import KEY, cell_weights, choose_projection, mask_loss, query_quality


@LOSS_REGISTRY.register()
class TargetAwareLoss(DistillLoss):
    """``weight * sum_s w_s |teacher_s - adapter(student)_s|^2 / C / sum_s w_s`` with ``w_s = sum_i q_i m_is^2``.

    The mask ``m_i = sigmoid(<h_i, P(f)> / sqrt(C))`` of the teacher's query i over the cells f of its memory and the
    quality ``q_i = c_i^g IoU_i^(1 - g)`` weigh the squared error. Source: DETRDistill (2211.10156): mask, quality and
    the masked error [P]. Reconstructed [R]: h is the last layer's hidden state; ``P``, see ``projection``; the root of
    the width; c and IoU are those of the object that the teacher's own matching gives the query, and a query without
    one has quality 0; g = 0.5; a weighted mean, whose divisor is at least 1, in place of a sum over queries. The
    masked error trains no part of the masks: masks of zero would minimise it.

    Args:
        channels: width of the student. teacher_channels: C. exponent: g in [0, 1]. features: "memory", the encoder's
            output, or "neck", its input; equal where there is no encoder. The masks are those of the memory.
        projection: P, from memory tokens (B, S, C) to (B, S, C), without gradient; None: a linear layer that learns,
            by a loss of its own (see target_masks.py), to tell the cells of each query's object from all others.
    """

    needs_pairs = False
    needs_assignment = True

    @configurable
    def __init__(
        self,
        *,
        weight: float,
        channels: int,
        teacher_channels: int,
        exponent: float = 0.5,
        features: str = "memory",
        projection: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__(key="TARGET_AWARE_LOSS", weight=weight, groups=[], layers="all")
        if features not in ("memory", "neck"):
            raise ConfigError(f"{KEY}.FEATURES is '{features}'. Known: 'memory', 'neck'.")
        self.exponent, self.features, self.projection = exponent, features, projection
        self.adapter = nn.Linear(channels, teacher_channels)
        if projection is None:
            self.mask_projection = nn.Linear(teacher_channels, teacher_channels)
            # Every mask starts at a half, so that all cells count alike until the layer has learned.
            nn.init.zeros_(self.mask_projection.weight)
            nn.init.zeros_(self.mask_projection.bias)

    @classmethod
    def from_config(cls, cfg, student, teacher):
        node = cfg.MODEL.DISTILL.TARGET_AWARE_LOSS
        detector = network_of(teacher)
        if not isinstance(detector, DetrDetector):
            raise ConfigError(
                f"MODEL.DISTILL.LOSSES: TargetAwareLoss reads the queries and the memory of a DetrDetector, and "
                f"{type(teacher).__name__} has none. Take a teacher with one, or remove TargetAwareLoss from the list."
            )
        if node.FEATURES == "memory" and not isinstance(student, DetrDetector):
            raise ConfigError(f"{KEY}.FEATURES is 'memory', which {type(student).__name__} does not have. Set 'neck'.")
        return {
            "weight": node.WEIGHT,
            "channels": _common_width(feature_channels(student), "student"),
            "teacher_channels": _common_width(feature_channels(detector), "teacher"),
            "exponent": node.EXPONENT,
            "features": node.FEATURES,
            "projection": choose_projection(node.PROJECTION, detector.decoder),
        }

    def forward(self, student: StudentOutput, knowledge: Knowledge, matches: list[Match]) -> dict[str, Tensor]:
        """``loss_distill_target_aware``; with a learned projection its own ``loss_target_mask`` too."""
        memory, assignment, targets = knowledge.memory, knowledge.assignment, knowledge.targets
        assert memory is not None and assignment is not None and targets is not None and knowledge.output is not None
        own = self.adapter(self._tokens(student.features, student.memory))
        with torch.autocast(own.device.type, enabled=False):
            pairs = assignment.slice_layers(slice(-1, None))
            quality = query_quality(knowledge.output, targets, pairs, self.exponent)
            queries = pairs.take_query(knowledge.output.hidden[-1:].detach().float())[0]
            logits = self._mask_logits(queries, memory.tokens.detach().float())
            weights = cell_weights(quality, logits, memory.mask)
            target = self._tokens(knowledge.features, memory).detach().float()
            shapes = [(maps.shape[-2], maps.shape[-1]) for maps in student.features.values()]
            if shapes != memory.shapes:
                target, weights = _resize(target, memory.shapes, shapes), _resize(weights, memory.shapes, shapes)
            if student.memory is not None and student.memory.mask is not None:
                weights = weights.masked_fill(student.memory.mask, 0)
            errors = (own.float() - target).square().mean(-1)
            value = (errors * weights).sum() / weights.sum().clamp(min=1)
            losses = {"loss_distill_target_aware": self.weight * value}
            if self.projection is None:
                boxes = pairs.take_target(targets.boxes.unsqueeze(0))[0]
                losses["loss_target_mask"] = mask_loss(logits, boxes, quality, memory)
        return losses

    def _tokens(self, features: dict[str, Tensor], memory: Memory | None) -> Tensor:
        """(B, S, width) of one side."""
        if self.features == "neck":
            return from_maps(features)
        assert memory is not None
        return memory.tokens

    def _mask_logits(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """(B, M, C) and (B, S, C) to the logits (B, M, S) of the masks."""
        if self.projection is None:
            projected = self.mask_projection(tokens)
        else:
            with torch.no_grad():
                projected = self.projection(tokens)
        return queries @ projected.transpose(1, 2) / math.sqrt(queries.shape[-1])


def _resize(values: Tensor, old: list[tuple[int, int]], new: list[tuple[int, int]]) -> Tensor:
    """(B, S) or (B, S, C) over some grids to the same over others, each from the old grid nearest in size."""
    levels = values.view(*values.shape[:2], -1).split([height * width for height, width in old], dim=1)
    maps = [x.transpose(1, 2).unflatten(-1, shape) for x, shape in zip(levels, old, strict=True)]
    resized = [
        F.interpolate(maps[_nearest(shape, old)], shape, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
        for shape in new
    ]
    tokens = torch.cat(resized, dim=1)
    return tokens if values.dim() == 3 else tokens.squeeze(-1)


def _nearest(shape: tuple[int, int], shapes: list[tuple[int, int]]) -> int:
    return min(range(len(shapes)), key=lambda index: abs(math.log(math.prod(shapes[index]) / math.prod(shape))))


def _common_width(channels: dict[str, int], side: str) -> int:
    """Channels of all levels of a side."""
    widths = set(channels.values())
    if len(widths) > 1:
        raise ConfigError(
            f"MODEL.DISTILL.LOSSES: TargetAwareLoss takes levels of one width; the {side}'s have {sorted(widths)} "
            f"channels ({', '.join(channels)}). Remove it from the list."
        )
    return widths.pop()
