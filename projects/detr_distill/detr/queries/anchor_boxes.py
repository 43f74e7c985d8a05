"""Learned anchor boxes (DAB-DETR).

Letters: B images, Q queries, C width.
"""

from __future__ import annotations

from detectron2.config import configurable
from torch import nn

from ...registry import QUERIES_REGISTRY
from ...structures import Memory, QueryGroup


@QUERIES_REGISTRY.register()
class AnchorQueries(nn.Module):
    """Learned anchor boxes and zero content, as in DAB-DETR (2201.12329) [P].

    Positions are boxes (centre x, centre y, width, height) before the sigmoid.

    Args:
        num_queries: Q. width: C, of the content.
    """

    position_kind, content_kind = "box_logits", "zero"

    @configurable
    def __init__(self, *, num_queries: int, width: int):
        super().__init__()
        self.position = nn.Embedding(num_queries, 4)
        self.widths = (width, 4)

    @classmethod
    def from_config(cls, cfg):
        return {"num_queries": cfg.MODEL.DETR.NUM_QUERIES, "width": cfg.MODEL.DETR.HIDDEN_DIM}

    def forward(self, memory: Memory) -> QueryGroup:
        """The group ``own`` for the images of ``memory``."""
        images = memory.tokens.shape[0]
        position = self.position.weight.unsqueeze(0).expand(images, -1, -1)
        return QueryGroup(
            name="own", content=position.new_zeros(*position.shape[:2], self.widths[0]), position=position
        )
