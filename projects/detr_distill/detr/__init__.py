"""The detectors. Nothing here knows of distillation."""

from . import (  # noqa: F401  (registration)
    backbone,
    backbone_fpn,
    backbone_timm,
    backbone_torchvision,
    decoder_adamixer,
    decoder_anchor,
    decoder_conditional,
    decoder_dab,
    decoder_deformable,
    decoder_detr,
    decoder_dino,
    decoder_smca,
    denoising,
    encoder,
    encoder_anchor,
    encoder_deformable,
    encoder_smca,
    neck,
    queries,
    queries_adamixer,
    queries_anchor,
    queries_deformable,
    queries_dino,
    training_groups,
)
from .detector import DetrDetector

__all__ = ["DetrDetector"]
