"""The values that travel between the parts: tensors with a name and a meaning."""

from ..moved import renamed
from .ground_truth import GroundTruth
from .pairs import Pairs, no_pairs, pairs_in_order
from .tensors import (
    CAPTURES,
    CROSS_ATTENTION,
    PREDICTIONS,
    SAMPLED_ATTENTION,
    SELF_ATTENTION,
    Candidates,
    DecoderOutput,
    ImageBatch,
    Memory,
    QueryGroup,
    SampledPoints,
)

__all__ = [
    "CAPTURES",
    "CROSS_ATTENTION",
    "PREDICTIONS",
    "SAMPLED_ATTENTION",
    "SELF_ATTENTION",
    "Candidates",
    "DecoderOutput",
    "GroundTruth",
    "ImageBatch",
    "Memory",
    "Pairs",
    "QueryGroup",
    "SampledPoints",
    "no_pairs",
    "pairs_in_order",
]


__getattr__ = renamed(__name__, {"Targets": "GroundTruth"})
