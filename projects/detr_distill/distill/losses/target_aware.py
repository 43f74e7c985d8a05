"""Target-aware feature distillation of DETRDistill: feature cells count by what the teacher's queries read there.

Letters: B images, M pairs (padded), C width of the teacher, S memory tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ...config.keys import key
from ...config.ranges import NOT_NEGATIVE, SHARE, Words
from ...distributed import shared_divisor
from ...errors import ConfigError
from ...registry import LOSS_REGISTRY
from ...structures.levels import from_maps, memory_maps, resize_tokens
from ..knowledge import Knowledge
from ..match import Match
from ..side import ASSIGNMENT, HIDDEN, MEMORY
from ..students.base import Student, StudentOutput
from ..teachers.base import Teacher
from .base import DistillLoss
from .map_pairs import map_size
from .target_masks import cell_weights, mask_loss, query_quality


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
        channels: width of the student. teacher_channels: C.
        read: the teacher's projection P for ``projection`` "teacher", from memory tokens (B, S, C) to (B, S, C);
            without gradient, and no part of this loss. None: a linear layer that learns, by a loss of its own (see
            target_masks.py), to tell the cells of each query's object from all others.
    """

    needs_of_teacher = frozenset({MEMORY, HIDDEN, ASSIGNMENT})
    needs_assignment = True
    needs_labels = True
    remedies: ClassVar[dict[str, str]] = {MEMORY: "take a DetrDetector as the teacher"}

    weight: float = key(1.0, "of the loss on the cells that the teacher's queries read; 0 builds nothing", NOT_NEGATIVE)
    exponent: float = key(0.5, "a query's quality is class score ^ this * IoU ^ (1 - this)", SHARE)
    features: str = key(
        "memory", 'what is compared: the encoder\'s output, or `"neck"`, its input', Words("memory", "neck")
    )
    projection: str = key(
        "learned",
        "the masks compare queries with the memory through a layer that learns where objects are, or as the "
        '`"teacher"`\'s last cross-attention reads it (AdaMixer has none)',
        Words("learned", "teacher"),
    )

    @configurable
    def __init__(
        self, *, channels: int, teacher_channels: int, read: Callable[[Tensor], Tensor] | None = None, **settings: Any
    ):
        super().__init__(**settings)
        if self.projection == "teacher" and read is None:
            raise ConfigError("TargetAwareLoss(projection='teacher') needs read=, the teacher's read_projection().")
        # In a closure, so that the teacher's layers stay out of the loss's parameters.
        self._read = None if read is None else lambda tokens: read(tokens)
        self.adapter = nn.Linear(channels, teacher_channels)
        if self.projection == "learned":
            self.mask_projection = nn.Linear(teacher_channels, teacher_channels)
            # Every mask starts at a half, so that all cells count alike until the layer has learned.
            nn.init.zeros_(self.mask_projection.weight)
            nn.init.zeros_(self.mask_projection.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student, teacher: Teacher) -> dict[str, Any]:
        settings = super().from_config(cfg, student, teacher)
        if settings["features"] == "memory" and MEMORY not in student.gives:
            raise ConfigError(f"{cls.node}.FEATURES is 'memory', which {student.name} does not have. Set 'neck'.")
        projection = teacher.read_projection() if settings["projection"] == "teacher" else None
        if settings["projection"] == "teacher" and projection is None:
            raise ConfigError(
                f"{cls.node}.PROJECTION is 'teacher', but the teacher's {teacher.part} has no cross-attention whose "
                "projections could be used. Set 'learned'."
            )
        channels, teacher_channels = (
            _common_width(side.memory_channels if settings["features"] == "memory" else side.feature_channels, who)
            for side, who in ((student, "student"), (teacher, "teacher"))
        )
        return {**settings, "channels": channels, "teacher_channels": teacher_channels, "read": projection}

    def forward(self, student: StudentOutput, knowledge: Knowledge, matches: list[Match]) -> dict[str, Tensor]:
        """``loss_distill_target_aware``; with a learned projection its own ``loss_target_mask`` too."""
        memory, assignment, truth = knowledge.memory, knowledge.assignment, knowledge.ground_truth
        assert memory is not None and assignment is not None and truth is not None and knowledge.output is not None
        student_maps, teacher_maps = (self._chosen(side) for side in (student, knowledge))
        student_tokens = self.adapter(from_maps(student_maps))
        with torch.autocast(student_tokens.device.type, enabled=False):
            pairs = assignment.slice_layers(slice(-1, None))
            quality = query_quality(knowledge.output, truth, pairs, self.exponent)
            queries = pairs.take_query(knowledge.output.hidden[-1:].detach().float())[0]
            logits = self._mask_logits(queries, memory.tokens.detach().float())
            weights = cell_weights(quality, logits, memory.mask)
            teacher_tokens = from_maps(teacher_maps).detach().float()
            shapes = [map_size(values) for values in student_maps.values()]
            if shapes != memory.shapes:
                teacher_tokens = resize_tokens(teacher_tokens, memory.shapes, shapes)
                weights = resize_tokens(weights.unsqueeze(-1), memory.shapes, shapes).squeeze(-1)
            if student.memory is not None and student.memory.mask is not None:
                weights = weights.masked_fill(student.memory.mask, 0)
            errors = (student_tokens.float() - teacher_tokens).square().mean(-1)
            value = (errors * weights).sum() / shared_divisor(weights.sum())
            losses = {"loss_distill_target_aware": self.weight * value}
            if self.projection == "learned":
                boxes = pairs.take_target(truth.boxes.unsqueeze(0))[0]
                losses["loss_target_mask"] = mask_loss(logits, boxes, quality, memory)
        return losses

    def _chosen(self, side: StudentOutput | Knowledge) -> dict[str, Tensor]:
        """The maps of one side that are compared, in order."""
        return memory_maps(side.memory) if self.features == "memory" else side.features

    def _mask_logits(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """(B, M, C) and (B, S, C) to the logits (B, M, S) of the masks."""
        if self._read is None:
            projected = self.mask_projection(tokens)
        else:
            with torch.no_grad():
                projected = self._read(tokens)
        return queries @ projected.transpose(1, 2) / math.sqrt(queries.shape[-1])


def _common_width(channels: Mapping[str, int], side: str) -> int:
    """Channels of all levels of a side."""
    widths = set(channels.values())
    if len(widths) > 1:
        raise ConfigError(
            f"MODEL.DISTILL.LOSSES: TargetAwareLoss takes levels of one width; the {side}'s have {sorted(widths)} "
            f"channels ({', '.join(channels)}). Remove it from the list."
        )
    return widths.pop()
