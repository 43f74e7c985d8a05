"""Losses on maps: the pairs that they compare, and those that compare level by level with layers of their own.

Letters: B images, C channels of the teacher.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ...config.keys import key
from ..knowledge import Knowledge
from ..match import Match
from ..side import MAPS
from ..students.base import Student, StudentOutput
from ..teachers.base import Teacher
from .base import DistillLoss
from .map_pairs import MapPair, find_pairs, map_size, read_teacher_map


class MapLoss(DistillLoss):
    """Compares pairs of maps.

    Args:
        pairs: the maps.
    """

    needs = frozenset({MAPS})
    remedies: ClassVar[dict[str, str]] = {MAPS: "let a file of predictions keep them: tools/predict.py --maps"}

    in_features: tuple[str, ...] = key((), "maps that are compared; empty: all of the teacher's")
    teacher_features: tuple[str, ...] = key((), "the teacher's maps for `IN_FEATURES`, in order; empty: the same names")

    @configurable
    def __init__(self, *, pairs: tuple[MapPair, ...], **settings: Any):
        super().__init__(**settings)
        self.pairs = pairs

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student, teacher: Teacher) -> dict[str, Any]:
        settings = super().from_config(cfg, student, teacher)
        names = settings["in_features"], settings["teacher_features"]
        return {**settings, "pairs": find_pairs(*names, cls.node, student, teacher)}


class LevelLoss(MapLoss):
    """The sum of :meth:`level_terms` over pairs of maps: ``loss_distill_<term>``.

    Where widths differ the student's map passes a 1x1 convolution, one a level; where they agree it is compared as it
    is (FGD, 2111.11837, and MGD, 2205.01529) [C].
    """

    @configurable
    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.align = nn.ModuleList(_align(pair.channels, pair.teacher_channels) for pair in self.pairs)

    def forward(self, student: StudentOutput, knowledge: Knowledge, matches: list[Match]) -> dict[str, Tensor]:
        """``loss_distill_<term>`` of every term that :meth:`level_terms` gives."""
        levels = []
        for index, (pair, align) in enumerate(zip(self.pairs, self.align, strict=True)):
            student_map = align(student.maps[pair.name])
            teacher_map = read_teacher_map(knowledge, pair.teacher_name, map_size(student_map))
            levels.append(self.level_terms(index, student_map, teacher_map, student))
        return {
            f"loss_distill_{term}": self.weight * torch.stack([level[term] for level in levels]).sum()
            for term in levels[0]
        }

    @abstractmethod
    def level_terms(
        self, index: int, student_map: Tensor, teacher_map: Tensor, student: StudentOutput
    ) -> dict[str, Tensor]:
        """{term: scalar} of a level, the same terms for each.

        Args:
            index: of the pair. student_map: (B, C, height, width), aligned. teacher_map: float32, of the same shape,
                without gradient. student: with the batch that the maps came from.
        """


def convolutions(channels: int, out_channels: int, layers: int, kernel: int = 3) -> nn.Sequential:
    """Convolutions that keep the size, with ReLU between them; the first changes the width."""
    parts: list[nn.Module] = []
    for index in range(layers):
        if index:
            parts.append(nn.ReLU(inplace=True))
        width = out_channels if index else channels
        parts.append(nn.Conv2d(width, out_channels, kernel, padding=kernel // 2))
    return nn.Sequential(*parts)


def _align(channels: int, teacher_channels: int) -> nn.Module:
    return nn.Identity() if channels == teacher_channels else nn.Conv2d(channels, teacher_channels, 1)
