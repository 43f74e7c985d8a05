"""MGD: the student's map, with random cells hidden, has to generate the whole map of the teacher.

Letters: B images, C channels of the teacher.
"""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ...registry import LOSS_REGISTRY
from ..students.base import StudentOutput
from .map_loss import LevelLoss
from .map_pairs import FeaturePair, convolutions, find_pairs


@LOSS_REGISTRY.register()
class MaskedGenerationLoss(LevelLoss):
    """``weight * sum over levels of |teacher - G(student * mask)|^2 / B``, the square summed over channels and cells.

    Source: MGD (2205.01529) [P]. A cell is hidden with probability ``mask_ratio``, in all channels, drawn anew in each
    step [P]; G is a 3x3 convolution, ReLU and another, one G a level [C].

    Args:
        weight: 2e-5 for detectors of one stage, 5e-7 for those of two [C]. pairs: the maps.
        mask_ratio: 0.65 and 0.45 [C].
    """

    @configurable
    def __init__(self, *, weight: float, pairs: list[FeaturePair], mask_ratio: float = 0.65):
        super().__init__(key="MASKED_GENERATION_LOSS", weight=weight, pairs=pairs)
        self.mask_ratio = mask_ratio
        self.generation = nn.ModuleList(
            convolutions(pair.teacher_channels, pair.teacher_channels, layers=2) for pair in pairs
        )

    @classmethod
    def from_config(cls, cfg, student, teacher):
        node = cfg.MODEL.DISTILL.MASKED_GENERATION_LOSS
        return {
            "weight": node.WEIGHT,
            "pairs": find_pairs(node, "MASKED_GENERATION_LOSS", student, teacher),
            "mask_ratio": node.MASK_RATIO,
        }

    def level_terms(self, index: int, own: Tensor, target: Tensor, student: StudentOutput) -> dict[str, Tensor]:
        """``generation``."""
        images, _, height, width = own.shape
        shown = torch.rand(images, 1, height, width, device=own.device) >= self.mask_ratio
        generated = self.generation[index](own * shown)
        with torch.autocast(own.device.type, enabled=False):
            return {"generation": (generated.float() - target).square().sum() / images}
