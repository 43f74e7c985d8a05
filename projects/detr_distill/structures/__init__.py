"""The values that travel between the parts: tensors with a name and a meaning."""

import warnings

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


def __getattr__(name: str) -> type:
    if name == "Targets":
        warnings.warn("detr_distill.structures.Targets is now called GroundTruth.", FutureWarning, stacklevel=2)
        return GroundTruth
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
