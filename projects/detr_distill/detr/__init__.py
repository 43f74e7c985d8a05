"""The detectors. Nothing here knows of distillation."""

from . import backbones, decoders, encoders, necks, queries, training_groups  # noqa: F401  (registration)
from .detector import DetrDetector

__all__ = ["DetrDetector"]
