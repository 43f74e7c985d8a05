"""What students of all detectors in two halves have in common."""

from __future__ import annotations

import copy

from torch import nn

from ...detr.supervision.criterion import SetCriterion
from ...detr.two_halves import TwoHalvesDetector
from .base import Student


class TwoHalvesStudent(Student):
    """One whose criterion assigns objects to queries."""

    detector: TwoHalvesDetector

    @property
    def criterion(self) -> SetCriterion:
        return self.detector.criterion

    @property
    def num_classes(self) -> int:
        return self.criterion.num_classes

    def detecting_copy(self) -> nn.Module:
        detector = copy.deepcopy(self.detector)
        detector.training_groups = nn.ModuleDict()
        return detector
