"""``MODEL.DETR.QUERIES.NAME``: where the decoder's own queries come from."""

from ...moved import renamed
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


__getattr__ = renamed(__name__, {"AnchorQueries": "AnchorBoxQueries"})
