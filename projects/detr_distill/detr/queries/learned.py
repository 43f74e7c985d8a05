"""Learned queries whose positions are embeddings.

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
class LearnedQueries(Queries):
    """Learned positions and zero content, as in DETR (2005.12872) and Conditional DETR (2108.06152) [P]."""

    position_kind, content_kind = "embedding", "zero"

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.position = nn.Embedding(self.num_queries, self.width)

    def forward(self, memory: Memory, beside: QueryGroup | None = None) -> QueryGroup:
        """See the base class."""
        return self.own_group(memory, None, self.position.weight)


@QUERIES_REGISTRY.register()
class LearnedContentQueries(Queries):
    """Learned positions and learned content [P].

    ``content`` (B, Q, C) is what the first decoder layer starts from; ``position`` (B, Q, C) is added to queries and
    keys in every layer, and :class:`DeformableDecoder` reads the reference point from it.
    """

    position_kind, content_kind = "embedding", "learned"

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.content = nn.Embedding(self.num_queries, self.width)
        self.position = nn.Embedding(self.num_queries, self.width)

    def forward(self, memory: Memory, beside: QueryGroup | None = None) -> QueryGroup:
        """See the base class."""
        return self.own_group(memory, self.content.weight, self.position.weight)
