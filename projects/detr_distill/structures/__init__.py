"""The values that travel between the parts: tensors with a name and a meaning."""

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
    Targets,
)

__all__ = [
    "CAPTURES",
    "CROSS_ATTENTION",
    "PREDICTIONS",
    "SAMPLED_ATTENTION",
    "SELF_ATTENTION",
    "Candidates",
    "DecoderOutput",
    "ImageBatch",
    "Memory",
    "Pairs",
    "QueryGroup",
    "SampledPoints",
    "Targets",
    "no_pairs",
    "pairs_in_order",
]
