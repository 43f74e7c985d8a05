"""MGD: the student's map, with random cells hidden, has to generate the whole map of the teacher.

Letters: B images, C channels of the teacher.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ...config.keys import key
from ...config.ranges import NOT_NEGATIVE, Range
from ...registry import LOSS_REGISTRY
from ..students.base import StudentOutput
from .map_loss import LevelLoss, convolutions


@LOSS_REGISTRY.register()
class MaskedGenerationLoss(LevelLoss):
    """``weight * sum over levels of |teacher - G(student * mask)|^2 / B``, the square summed over channels and cells.

    Source: MGD (2205.01529) [P]. A cell is hidden with probability ``mask_ratio``, in all channels, drawn anew in each
    step [P]; G is a 3x3 convolution, ReLU and another, one G a level [C]. Weight and ratio: 2e-5 and 0.65 for detectors
    of one stage, 5e-7 and 0.45 for those of two [C].
    """

    weight: float = key(2e-5, "MGD, for detectors of one stage; `5e-7` for two; 0 builds nothing", NOT_NEGATIVE)
    mask_ratio: float = key(
        0.65, "part of the student's cells that are hidden; 0.45 for detectors of two stages", Range(0, below=1)
    )

    @configurable
    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.generation = nn.ModuleList(
            convolutions(pair.teacher_channels, pair.teacher_channels, layers=2) for pair in self.pairs
        )

    def level_terms(
        self, index: int, student_map: Tensor, teacher_map: Tensor, student: StudentOutput
    ) -> dict[str, Tensor]:
        """``generation``."""
        images, _, height, width = student_map.shape
        shown = torch.rand(images, 1, height, width, device=student_map.device) >= self.mask_ratio
        generated = self.generation[index](student_map * shown)
        with torch.autocast(student_map.device.type, enabled=False):
            return {"generation": (generated.float() - teacher_map).square().sum() / images}
