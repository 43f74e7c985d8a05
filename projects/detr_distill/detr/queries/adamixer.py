"""Queries of AdaMixer (2203.16507): learned content, and positions that all start as the whole image.

Letters: B images, Q queries, C width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from ...registry import QUERIES_REGISTRY
from ...structures import Memory, QueryGroup
from ..boxes import inverse_sigmoid


@QUERIES_REGISTRY.register()
class AdaMixerQueries(nn.Module):
    """Learned content and a fixed first box, the image [P]; content is normalised without weights [C].

    ``position`` (B, Q, 4) is the box as logits, as in :class:`AnchorQueries`: between such networks queries can be
    exchanged as they are [R]. The decoder turns it into (x, y, z, r). It is not learned [C].

    Args:
        num_queries: Q. width: C.

    Attributes:
        widths: (content, position) width of a query.
    """

    position_kind, content_kind = "box_logits", "learned"
    start: Tensor

    @configurable
    def __init__(self, *, num_queries: int, width: int):
        super().__init__()
        self.content = nn.Embedding(num_queries, width)
        self.register_buffer("start", inverse_sigmoid(torch.tensor([0.5, 0.5, 1.0, 1.0])), persistent=False)
        self.widths = (width, 4)

    @classmethod
    def from_config(cls, cfg):
        return {"num_queries": cfg.MODEL.DETR.NUM_QUERIES, "width": cfg.MODEL.DETR.HIDDEN_DIM}

    def forward(self, memory: Memory) -> QueryGroup:
        """The group ``own`` for the images of ``memory``."""
        images, queries = memory.tokens.shape[0], len(self.content.weight)
        content = F.layer_norm(self.content.weight, self.widths[:1]).expand(images, -1, -1)
        return QueryGroup(name="own", content=content, position=self.start.expand(images, queries, -1))
