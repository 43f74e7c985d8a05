"""Learned queries whose positions are embeddings.

Letters: B images, Q queries, C width.
"""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import nn

from ...registry import QUERIES_REGISTRY
from ...structures import Memory, QueryGroup


@QUERIES_REGISTRY.register()
class LearnedQueries(nn.Module):
    """Learned positions and zero content, as in DETR (2005.12872) and Conditional DETR (2108.06152) [P].

    Args:
        num_queries: Q. width: C, of content and position.

    Attributes:
        widths: (content, position) width of a query.
    """

    position_kind, content_kind = "embedding", "zero"

    @configurable
    def __init__(self, *, num_queries: int, width: int):
        super().__init__()
        self.position = nn.Embedding(num_queries, width)
        self.widths = (width, width)

    @classmethod
    def from_config(cls, cfg):
        return {"num_queries": cfg.MODEL.DETR.NUM_QUERIES, "width": cfg.MODEL.DETR.HIDDEN_DIM}

    def forward(self, memory: Memory) -> QueryGroup:
        """The group ``own`` for the images of ``memory``."""
        images = memory.tokens.shape[0]
        position = self.position.weight.unsqueeze(0).expand(images, -1, -1)
        return QueryGroup(name="own", content=torch.zeros_like(position), position=position)


@QUERIES_REGISTRY.register()
class LearnedContentQueries(nn.Module):
    """Learned positions and learned content [P].

    ``content`` (B, Q, C) is what the first decoder layer starts from; ``position`` (B, Q, C) is added to queries and
    keys in every layer, and :class:`DeformableDecoder` reads the reference point from it.

    Args:
        num_queries: Q. width: C.

    Attributes:
        widths: (content, position) width of a query.
    """

    position_kind, content_kind = "embedding", "learned"

    @configurable
    def __init__(self, *, num_queries: int, width: int):
        super().__init__()
        self.content = nn.Embedding(num_queries, width)
        self.position = nn.Embedding(num_queries, width)
        self.widths = (width, width)

    @classmethod
    def from_config(cls, cfg):
        return {"num_queries": cfg.MODEL.DETR.NUM_QUERIES, "width": cfg.MODEL.DETR.HIDDEN_DIM}

    def forward(self, memory: Memory) -> QueryGroup:
        """The group ``own`` for the images of ``memory``."""
        images = memory.tokens.shape[0]
        content, position = (
            embedding.weight.unsqueeze(0).expand(images, -1, -1) for embedding in (self.content, self.position)
        )
        return QueryGroup(name="own", content=content, position=position)
