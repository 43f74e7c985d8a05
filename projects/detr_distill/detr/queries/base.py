"""What all queries share: where the decoder starts from.

Letters: B images, Q queries, C width.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from detectron2.config import CfgNode
from torch import Tensor

from ...plugin import Plugin
from ...registry import QUERIES_REGISTRY
from ...structures import Memory, QueryGroup
from ..keys import HIDDEN_DIM, NUM_QUERIES

# Widths of positions that are points or boxes; an embedding is as wide as the content.
PLACE_WIDTHS = {"box_logits": 4, "point_logits": 2}


@dataclass(frozen=True)
class QueryForm:
    """What another network has to know of queries to read them; see :class:`Queries`, which says the same of itself.

    Attributes:
        widths: of a query's content and position.
    """

    widths: tuple[int, int]
    position_kind: str
    content_kind: str


@QUERIES_REGISTRY.interface
class Queries(Plugin):
    """The group of queries that a detector decodes.

    Attributes:
        position_kind: "embedding" (learned, of the network's width), "box_logits" ((centre x, centre y, width, height)
            before the sigmoid) or "point_logits" (a box's first two). content_kind: "learned" or "zero", or "encoded"
            for what an encoder chose. So another network knows how to read these queries.
        binary_proposals: for the loss of the encoder's own detections every object is of class 0.
        num_queries: Q. width: C.
        num_levels: L, where they are chosen among the tokens of levels; None: they are not.
        neck_name: the neck that gives these levels, for messages and for choosing queries that fit.
    """

    section = "MODEL.DETR"
    declares = ("position_kind", "content_kind")
    position_kind: ClassVar[str]
    content_kind: ClassVar[str]
    binary_proposals: ClassVar[bool] = False
    num_levels: int | None = None
    neck_name: ClassVar[str] = ""

    num_queries: int = NUM_QUERIES
    width: int = HIDDEN_DIM

    @property
    def widths(self) -> tuple[int, int]:
        """Of a query's content and position."""
        return self.width, PLACE_WIDTHS.get(self.position_kind, self.width)

    @abstractmethod
    def forward(self, memory: Memory, beside: QueryGroup | None = None) -> QueryGroup:
        """The group ``own`` for the images of ``memory``.

        Args:
            beside: the detector's own queries, for those that stand beside them in training.
        """

    def own_group(self, memory: Memory, content: Tensor | None, position: Tensor) -> QueryGroup:
        """The group ``own`` of queries that all images share.

        Args:
            content: (Q, C) or, one for all, (1, C); None: zero. position: (Q, P) or (P,), P of ``widths``.
        """
        images, queries = memory.tokens.shape[0], self.num_queries
        position = position.expand(images, queries, -1)
        if content is None:
            return QueryGroup("own", position.new_zeros(images, queries, self.width), position)
        return QueryGroup("own", content.expand(images, queries, -1), position)

    @classmethod
    def extra(cls, cfg: CfgNode, count: int) -> Queries:
        """A module for ``count`` queries beside the detector's own, of their kind: a second instance of the class."""
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DETR.NUM_QUERIES = count
        return cls(cfg)
