"""Queries of Anchor DETR (2109.07107): anchor points with several patterns each."""

from __future__ import annotations

import math

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ...errors import ConfigError
from ...registry import QUERIES_REGISTRY
from ...structures import Memory, QueryGroup
from ..boxes import inverse_sigmoid


@QUERIES_REGISTRY.register()
class AnchorPointQueries(nn.Module):
    """Every pattern, a learned content, at every anchor point, so that one place can hold several objects [P].

    ``position`` (B, Q, 2) is the anchor point (x, y) as logits, ``content`` (B, Q, C) its pattern; query ``p * N + n``
    is pattern p at point n of N. Points are learned from a uniform start, or stay on a grid [P]. The authors learn
    coordinates as they are; logits keep points, and those projected from another network's queries, in the image [R].

    Args:
        num_queries: Q, points times patterns. num_patterns: of each point. width: C.
        points: "learned" or "grid".

    Attributes:
        widths: (content, position) width of a query.
    """

    position_kind, content_kind = "point_logits", "learned"

    @configurable
    def __init__(self, *, num_queries: int, num_patterns: int = 3, width: int, points: str = "learned"):
        super().__init__()
        if num_patterns < 1 or num_queries % num_patterns:
            raise ConfigError(
                f"MODEL.DETR.NUM_QUERIES is {num_queries} and MODEL.DETR.ANCHOR.NUM_PATTERNS {num_patterns}. "
                "Queries are anchor points times patterns: choose a multiple."
            )
        if points not in ("learned", "grid"):
            raise ConfigError(f"MODEL.DETR.ANCHOR.POINTS is '{points}'. Known: 'grid', 'learned'.")
        self.pattern = nn.Embedding(num_patterns, width)
        self.points: Tensor
        count = num_queries // num_patterns
        if points == "learned":
            self.points = nn.Parameter(inverse_sigmoid(torch.rand(count, 2)))
        else:
            self.register_buffer("points", inverse_sigmoid(grid_points(count)), persistent=False)
        self.widths = (width, 2)

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.DETR
        return {
            "num_queries": node.NUM_QUERIES,
            "num_patterns": node.ANCHOR.NUM_PATTERNS,
            "width": node.HIDDEN_DIM,
            "points": node.ANCHOR.POINTS,
        }

    def forward(self, memory: Memory) -> QueryGroup:
        """The group ``own`` for the images of ``memory``."""
        images = memory.tokens.shape[0]
        content = self.pattern.weight.repeat_interleave(len(self.points), dim=0).expand(images, -1, -1)
        position = self.points.repeat(self.pattern.num_embeddings, 1).expand(images, -1, -1)
        return QueryGroup(name="own", content=content, position=position)


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
