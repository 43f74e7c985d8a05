"""Queries of DN-DETR (2203.01305), marked as no denoising queries.

Letters: B images, Q queries, C width.
"""

from __future__ import annotations

import torch.nn.functional as F
from detectron2.config import configurable
from torch import nn

from ...registry import QUERIES_REGISTRY
from ...structures import Memory, QueryGroup
from .anchor_boxes import AnchorQueries


@QUERIES_REGISTRY.register()
class UnknownLabelQueries(AnchorQueries):
    """Learned anchor boxes; the content of all is one learned vector, the embedding of "no label known" [P].

    The content's last entry is 0: the mark by which the decoder tells them from :class:`DenoisingQueries`, whose last
    entry is 1. Source: DN-DETR on DAB-DETR.

    Args:
        num_queries: Q. width: C.
    """

    content_kind = "learned"
    shares_content = True

    @configurable
    def __init__(self, *, num_queries: int, width: int):
        super().__init__(num_queries=num_queries, width=width)
        self.content = nn.Embedding(1 if self.shares_content else num_queries, width - 1)

    def forward(self, memory: Memory) -> QueryGroup:
        """The group ``own`` for the images of ``memory``."""
        images, queries = memory.tokens.shape[0], self.position.num_embeddings
        content = F.pad(self.content.weight, (0, 1)).expand(images, queries, -1)
        return QueryGroup(name="own", content=content, position=self.position.weight.expand(images, -1, -1))


@QUERIES_REGISTRY.register()
class MarkedAnchorQueries(UnknownLabelQueries):
    """The same with content of its own for every query, as DN-DETR has it on DAB-Deformable DETR [C]."""

    shares_content = False
