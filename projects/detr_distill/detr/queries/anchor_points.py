"""Queries of Anchor DETR (2109.07107): anchor points with several patterns each.

Letters: B images, Q queries, C width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ...config.keys import key
from ...config.ranges import COUNT, Words
from ...errors import ConfigError
from ...registry import QUERIES_REGISTRY
from ...structures import Memory, QueryGroup
from ..boxes import inverse_sigmoid
from .base import Queries


@QUERIES_REGISTRY.register()
class AnchorPointQueries(Queries):
    """Every pattern, a learned content, at every anchor point, so that one point can hold several objects [P].

    ``position`` (B, Q, 2) is the anchor point (x, y) as logits, ``content`` (B, Q, C) its pattern; query ``p * N + n``
    is pattern p at point n of N. Points are learned from a uniform start, or stay on a grid [P]. The authors learn
    coordinates as they are; logits keep points, and those projected from another network's queries, in the image [R].

    Attributes:
        num_queries: Q, points times patterns. num_patterns: of each point. kind_of_points: "learned" or "grid".
        points: (N, 2).
    """

    position_kind, content_kind = "point_logits", "learned"
    points: Tensor

    num_patterns: int = key(
        3,
        "`AnchorPointQueries`: queries at each anchor point; must divide `MODEL.DETR.NUM_QUERIES`",
        COUNT,
        path="MODEL.DETR.ANCHOR.NUM_PATTERNS",
    )
    kind_of_points: str = key(
        "learned",
        '`AnchorPointQueries`: learned anchor points, or a `"grid"` that stays, of a square number of points',
        Words("grid", "learned"),
        path="MODEL.DETR.ANCHOR.POINTS",
        earlier="points",
    )

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        if self.num_queries % self.num_patterns:
            raise ConfigError(
                f"MODEL.DETR.NUM_QUERIES is {self.num_queries} and MODEL.DETR.ANCHOR.NUM_PATTERNS "
                f"{self.num_patterns}. Queries are anchor points times patterns: choose a multiple."
            )
        self.pattern = nn.Embedding(self.num_patterns, self.width)
        count = self.num_queries // self.num_patterns
        if self.kind_of_points == "learned":
            self.points = nn.Parameter(inverse_sigmoid(torch.rand(count, 2)))
        else:
            self.register_buffer("points", inverse_sigmoid(grid_points(count)), persistent=False)

    def forward(self, memory: Memory, beside: QueryGroup | None = None) -> QueryGroup:
        """See the base class."""
        content = self.pattern.weight.repeat_interleave(len(self.points), dim=0)
        return self.own_group(memory, content, self.points.repeat(self.num_patterns, 1))


def grid_points(count: int) -> Tensor:
    """(count, 2): the centres (x, y) of equal cells of the image, row by row."""
    side = math.isqrt(count)
    if side * side != count:
        raise ConfigError(
            f"MODEL.DETR.ANCHOR.POINTS is 'grid' and MODEL.DETR.NUM_QUERIES gives {count} points, which is no square. "
            f"Choose {side**2} or {(side + 1) ** 2} times MODEL.DETR.ANCHOR.NUM_PATTERNS queries."
        )
    centres = (torch.arange(side) + 0.5) / side
    return torch.stack([centres.repeat(side), centres.repeat_interleave(side)], dim=-1)
