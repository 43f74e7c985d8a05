"""The detectors. Nothing here knows of distillation."""

from . import backbone, decoder_conditional, decoder_dab, decoder_detr, encoder, queries  # noqa: F401  (registration)
from .detector import DetrDetector

__all__ = ["DetrDetector"]
