"""Learned anchor boxes (DAB-DETR).

Letters: B images, Q queries, C width.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import configurable
from torch import nn

from ...registry import QUERIES_REGISTRY
from ...structures import Memory, QueryGroup
from .base import Queries


@QUERIES_REGISTRY.register()
class AnchorBoxQueries(Queries):
    """Learned anchor boxes and zero content, as in DAB-DETR (2201.12329) [P].

    Positions are boxes (centre x, centre y, width, height) before the sigmoid.
    """

    position_kind, content_kind = "box_logits", "zero"

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.position = nn.Embedding(self.num_queries, 4)

    def forward(self, memory: Memory, beside: QueryGroup | None = None) -> QueryGroup:
        """See the base class."""
        return self.own_group(memory, None, self.position.weight)


QUERIES_REGISTRY.rename("AnchorQueries", "AnchorBoxQueries")
