"""Queries of DN-DETR (2203.01305) and DINO (2203.03605).

Letters: B images, Q queries, S memory tokens, C width, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from detectron2.config import configurable
from torch import nn

from ..registry import QUERIES_REGISTRY
from ..structures import Memory, QueryGroup
from .queries import AnchorQueries
from .queries_deformable import LARGEST_LOGIT, TwoStageQueries, take_rows


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


@QUERIES_REGISTRY.register()
class MixedQueries(TwoStageQueries):
    """Mixed query selection of DINO: positions from the encoder's best detections, content learned [P].

    The tokens of the highest score in any class are taken. They alone have the encoder's loss, with the objects'
    own classes [C]. Everything else is as in :class:`TwoStageQueries`.

    Args:
        num_queries: Q. width: C. Others as in :class:`TwoStageQueries`.
    """

    content_kind = "learned"
    binary_proposals = False

    @configurable
    def __init__(self, *, num_queries: int, width: int, **arguments):
        super().__init__(num_queries=num_queries, width=width, **arguments)
        self.content = nn.Embedding(num_queries, width)
        nn.init.xavier_uniform_(self.content.weight)

    def forward(self, memory: Memory) -> QueryGroup:
        """The group ``own`` for the images of ``memory``."""
        tokens, logits, boxes = self._detect(memory)
        best = self._choose(memory, self._scores(logits).amax(-1), boxes)
        tokens, logits, boxes = (take_rows(values, best) for values in (tokens, logits, boxes))
        memory.proposals = self._proposals(tokens, logits, boxes)
        images, queries = best.shape
        content = self.content.weight[:queries].expand(images, -1, -1)
        return QueryGroup("own", content, boxes.detach().clamp(-LARGEST_LOGIT, LARGEST_LOGIT))
