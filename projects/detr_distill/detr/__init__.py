"""The detectors. Nothing here knows of distillation."""

from . import (  # noqa: F401  (registration)
    backbone,
    decoder_adamixer,
    decoder_conditional,
    decoder_dab,
    decoder_deformable,
    decoder_detr,
    encoder,
    encoder_deformable,
    neck,
    queries,
    queries_adamixer,
    queries_deformable,
)
from .detector import DetrDetector

__all__ = ["DetrDetector"]
