"""``MODEL.DETR.TRAINING_GROUPS``: query groups of the training step, gone at inference."""

from .denoising import ContrastiveDenoisingQueries, DenoisingQueries
from .group_detr import GroupQueries
from .hybrid import HybridQueries

__all__ = ["ContrastiveDenoisingQueries", "DenoisingQueries", "GroupQueries", "HybridQueries"]
