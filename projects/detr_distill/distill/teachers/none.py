"""No teacher at all, for controls."""

from __future__ import annotations

from torch import nn

from ...detr import DetrDetector
from ...registry import TEACHER_REGISTRY
from ..classes import ClassMap
from ..knowledge import Knowledge
from ..students.base import StudentStep


@TEACHER_REGISTRY.register()
class NoTeacher(nn.Module):
    """Knows nothing: for controls that train extra query groups without a teacher."""

    classes: ClassMap | None = None
    detector: DetrDetector | None = None

    def __init__(self, cfg=None, student=None):
        super().__init__()

    def forward(self, step: StudentStep, capture: frozenset[str]) -> Knowledge:
        return Knowledge()
