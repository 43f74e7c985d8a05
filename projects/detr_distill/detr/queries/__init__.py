"""``MODEL.DETR.QUERIES.NAME``: where the decoder's own queries come from."""

import warnings

from .adamixer import AdaMixerQueries
from .anchor_boxes import AnchorBoxQueries
from .anchor_points import AnchorPointQueries
from .learned import LearnedContentQueries, LearnedQueries
from .marked import MarkedAnchorQueries, UnknownLabelQueries
from .mixed import MixedQueries
from .two_stage import TwoStageQueries

__all__ = [
    "AdaMixerQueries",
    "AnchorBoxQueries",
    "AnchorPointQueries",
    "LearnedContentQueries",
    "LearnedQueries",
    "MarkedAnchorQueries",
    "MixedQueries",
    "TwoStageQueries",
    "UnknownLabelQueries",
]


def __getattr__(name: str) -> type:
    if name == "AnchorQueries":
        warnings.warn("AnchorQueries is now called AnchorBoxQueries.", FutureWarning, stacklevel=2)
        return AnchorBoxQueries
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
