"""Queries of DN-DETR (2203.01305), marked as no denoising queries.

Letters: B images, Q queries, C width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from detectron2.config import configurable
from torch import nn

from ...registry import QUERIES_REGISTRY
from ...structures import Memory, QueryGroup
from .anchor_boxes import AnchorBoxQueries


@QUERIES_REGISTRY.register()
class UnknownLabelQueries(AnchorBoxQueries):
    """Learned anchor boxes; the content of all is one learned vector, the embedding of "no label known" [P].

    The content's last entry is 0: the mark by which the decoder tells them from :class:`DenoisingQueries`, whose last
    entry is 1. Source: DN-DETR on DAB-DETR.
    """

    content_kind = "learned"
    shares_content: ClassVar[bool] = True

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.content = nn.Embedding(1 if self.shares_content else self.num_queries, self.width - 1)

    def forward(self, memory: Memory, beside: QueryGroup | None = None) -> QueryGroup:
        """See the base class."""
        return self.own_group(memory, F.pad(self.content.weight, (0, 1)), self.position.weight)


@QUERIES_REGISTRY.register()
class MarkedAnchorQueries(UnknownLabelQueries):
    """The same with content of its own for every query, as DN-DETR has it on DAB-Deformable DETR [C]."""

    shares_content = False
