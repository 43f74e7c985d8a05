"""How many classes a detector predicts."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector

from ...detr import DetrDetector


@singledispatch
def count_classes(detector: Any) -> int:
    """K: the classes that a detector predicts."""
    raise TypeError(f"count_classes() is not registered for {type(detector).__name__}")


@count_classes.register
def _count_detr(detector: DetrDetector) -> int:
    return detector.criterion.num_classes


@count_classes.register
def _count_dense(detector: DenseDetector) -> int:
    return detector.num_classes  # type: ignore[return-value]


@count_classes.register
def _count_rcnn(detector: GeneralizedRCNN) -> int:
    return detector.roi_heads.num_classes  # type: ignore[return-value]
