"""What losses that compare maps level by level share, each level with layers of its own.

Letters: B images, C channels of the teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..knowledge import Knowledge
from ..match import Match
from ..students.base import StudentOutput
from .base import DistillLoss
from .map_pairs import FeaturePair, read_target


class LevelLoss(DistillLoss):
    """The sum of ``level_terms`` over pairs of maps: ``loss_distill_<term>``.

    Where widths differ the student's map passes a 1x1 convolution, one a level; where they agree it is compared as it
    is (FGD, 2111.11837, and MGD, 2205.01529) [C].

    Args:
        key: configuration node, for messages. weight: of the whole loss. pairs: the maps.
    """

    needs_pairs = False

    def __init__(self, *, key: str, weight: float, pairs: list[FeaturePair]):
        super().__init__(key=key, weight=weight, groups=[], layers="all")
        self.pairs = pairs
        self.align = nn.ModuleList(_align(pair.channels, pair.teacher_channels) for pair in pairs)

    def forward(self, student: StudentOutput, knowledge: Knowledge, matches: list[Match]) -> dict[str, Tensor]:
        """``loss_distill_<term>`` of every term that :meth:`level_terms` gives."""
        levels = []
        for index, (pair, align) in enumerate(zip(self.pairs, self.align, strict=True)):
            own = align(student.features[pair.name])
            target = read_target(knowledge, pair.teacher_name, (own.shape[-2], own.shape[-1]))
            levels.append(self.level_terms(index, own, target, student))
        return {
            f"loss_distill_{term}": self.weight * torch.stack([level[term] for level in levels]).sum()
            for term in levels[0]
        }

    def level_terms(self, index: int, own: Tensor, target: Tensor, student: StudentOutput) -> dict[str, Tensor]:
        """{term: scalar} of a level, the same terms for each.

        Args:
            index: of the pair. own: (B, C, height, width), the aligned map of the student. target: the teacher's,
                float32, of the same shape, without gradient. student: with the batch that the maps came from.
        """
        raise TypeError(f"{type(self).__name__} does not define level_terms()")


def _align(channels: int, teacher_channels: int) -> nn.Module:
    return nn.Identity() if channels == teacher_channels else nn.Conv2d(channels, teacher_channels, 1)
