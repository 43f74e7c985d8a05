"""``MODEL.DISTILL.LOSSES``: how two sides are compared."""

from .attention import AttentionLoss
from .feature import FeatureLoss
from .focal_global import FocalGlobalLoss
from .localization import LocalizationLoss
from .masked_generation import MaskedGenerationLoss
from .prediction import PredictionLoss
from .pseudo_label import PseudoLabelLoss
from .query_relation import QueryRelationLoss
from .sampled_attention import SampledAttentionLoss
from .target_aware import TargetAwareLoss

__all__ = [
    "AttentionLoss",
    "FeatureLoss",
    "FocalGlobalLoss",
    "LocalizationLoss",
    "MaskedGenerationLoss",
    "PredictionLoss",
    "PseudoLabelLoss",
    "QueryRelationLoss",
    "SampledAttentionLoss",
    "TargetAwareLoss",
]
