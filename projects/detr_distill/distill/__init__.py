"""Distillation. It touches a detector only through students.py and the teachers."""

from . import (  # noqa: F401  (registration)
    ema_teacher,
    frozen,
    label_encoder,
    label_map,
    loss_attention,
    loss_feature,
    loss_focal_global,
    loss_masked_generation,
    loss_prediction,
    loss_query_relation,
    loss_sampled_attention,
    loss_target_aware,
    query_general,
    query_matchers,
    query_overlap,
    transformers_teacher,
)
from .meta_arch import DistillDetector

__all__ = ["DistillDetector"]
