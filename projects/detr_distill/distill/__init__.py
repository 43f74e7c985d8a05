"""Distillation. It touches a detector only through students.py and the teachers."""

from . import frozen, loss_attention, loss_prediction, query_matchers, transformers_teacher  # noqa: F401  (registration)
from .meta_arch import DistillDetector

__all__ = ["DistillDetector"]
