"""Queries of AdaMixer (2203.16507): learned content, and positions that all start as the whole image.

Letters: B images, Q queries, C width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from ...registry import QUERIES_REGISTRY
from ...structures import Memory, QueryGroup
from ..boxes import inverse_sigmoid
from .base import Queries

# The sigmoid of a logit is never 1: near enough that a box of the whole image is, to the last digit of float32.
WHOLE = 1e-7


@QUERIES_REGISTRY.register()
class AdaMixerQueries(Queries):
    """Learned content and a fixed first box, the image [P]; content is normalised without weights [C].

    ``position`` (B, Q, 4) is the box as logits, as in :class:`AnchorBoxQueries`: between such networks queries can be
    exchanged as they are [R]. The decoder turns it into (x, y, z, r). It is not learned [C].
    """

    position_kind, content_kind = "box_logits", "learned"
    start: Tensor

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.content = nn.Embedding(self.num_queries, self.width)
        self.register_buffer("start", inverse_sigmoid(torch.tensor([0.5, 0.5, 1.0, 1.0]), WHOLE), persistent=False)

    def forward(self, memory: Memory, beside: QueryGroup | None = None) -> QueryGroup:
        """See the base class."""
        return self.own_group(memory, F.layer_norm(self.content.weight, (self.width,)), self.start)
