"""No teacher at all, for controls."""

from __future__ import annotations

from ...registry import TEACHER_REGISTRY
from ..knowledge import Knowledge
from ..students.base import StudentStep
from .base import Teacher


@TEACHER_REGISTRY.register()
class NoTeacher(Teacher):
    """Knows nothing: for controls that train extra query groups without a teacher."""

    def forward(self, step: StudentStep, capture: frozenset[str]) -> Knowledge:
        """Nothing."""
        return Knowledge()
