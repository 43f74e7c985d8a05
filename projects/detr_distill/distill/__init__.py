"""Distillation. It touches a detector only through students/ and teachers/."""

from . import losses, matchers, teachers  # noqa: F401  (registration)
from .meta_arch import DistillDetector

__all__ = ["DistillDetector"]
