"""The values that travel between the parts: tensors with a name and a meaning."""

from ..moved import renamed
from .attention import CROSS_ATTENTION, CROSS_FACTORS, FACTORS, SELF_ATTENTION, SELF_FACTORS, AttentionFactors, Keep
from .edges import EdgeDistributions
from .ground_truth import GroundTruth
from .pairs import Pairs, join_pairs, no_pairs, pairs_in_order
from .tensors import (
    CAPTURES,
    CAPTURES_WITH_FACTORS,
    PREDICTIONS,
    SAMPLED_ATTENTION,
    Candidates,
    DecoderOutput,
    ImageBatch,
    Memory,
    QueryGroup,
    SampledPoints,
    one_layer,
)

__all__ = [
    "CAPTURES",
    "CAPTURES_WITH_FACTORS",
    "CROSS_ATTENTION",
    "CROSS_FACTORS",
    "FACTORS",
    "PREDICTIONS",
    "SAMPLED_ATTENTION",
    "SELF_ATTENTION",
    "SELF_FACTORS",
    "AttentionFactors",
    "Candidates",
    "DecoderOutput",
    "EdgeDistributions",
    "GroundTruth",
    "ImageBatch",
    "Keep",
    "Memory",
    "Pairs",
    "QueryGroup",
    "SampledPoints",
    "join_pairs",
    "no_pairs",
    "one_layer",
    "pairs_in_order",
]


__getattr__ = renamed(__name__, {"Targets": "GroundTruth"})
