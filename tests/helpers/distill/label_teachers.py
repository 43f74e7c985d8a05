"""Small detectors that learn from a label encoder."""

from __future__ import annotations

from detectron2.modeling import build_model
from helpers.convolutional import CASES


def build_distilling(case: str, **keys):
    """A detector that learns from a label encoder; ``keys`` are below MODEL.DISTILL, with ``__`` for ``.``."""
    cfg = CASES[case]()
    student = cfg.MODEL.META_ARCHITECTURE
    cfg.MODEL.META_ARCHITECTURE = "DistillDetector"
    cfg.MODEL.DISTILL.STUDENT_ARCHITECTURE = student
    cfg.MODEL.DISTILL.TEACHER.NAME = "LabelEncoder"
    cfg.MODEL.DISTILL.MATCHERS, cfg.MODEL.DISTILL.LOSSES = [], ["FeatureLoss"]
    for key, value in keys.items():
        cfg.merge_from_list([f"MODEL.DISTILL.{key.replace('__', '.')}", value])
    return build_model(cfg).train()
