"""Distillation. It touches a detector only through students.py and the teachers."""

from . import (  # noqa: F401  (registration)
    frozen,
    label_encoder,
    label_map,
    loss_attention,
    loss_feature,
    loss_prediction,
    loss_sampled_attention,
    query_matchers,
    transformers_teacher,
)
from .meta_arch import DistillDetector

__all__ = ["DistillDetector"]
