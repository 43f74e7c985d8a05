"""Mixed query selection of DINO (2203.03605).

Letters: B images, Q queries, S memory tokens, C width, K classes.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import configurable
from torch import nn

from ...registry import QUERIES_REGISTRY
from ...structures import Candidates, Memory, QueryGroup
from ...structures.rows import take_rows
from .two_stage import TwoStageQueries, box_positions


@QUERIES_REGISTRY.register()
class MixedQueries(TwoStageQueries):
    """Mixed query selection of DINO: positions from the encoder's best detections, content learned [P].

    The tokens of the highest score in any class are taken. They alone have the encoder's loss, with the objects'
    own classes [C]. Everything else is as in :class:`TwoStageQueries`.
    """

    content_kind = "learned"
    binary_proposals = False

    @configurable
    def __init__(self, *, activation: str, **settings: Any):
        super().__init__(activation=activation, **settings)
        self.content = nn.Embedding(self.num_queries, self.width)
        nn.init.xavier_uniform_(self.content.weight)

    def forward(self, memory: Memory, beside: QueryGroup | None = None) -> QueryGroup:
        """See the base class."""
        tokens, logits, boxes = self._detect(memory)
        candidates = Candidates(self._scores(logits).amax(-1).detach(), boxes.detach())
        best = self._choose(candidates)
        proposals = self._proposals(*(take_rows(values, best) for values in (tokens, logits, boxes)))
        images, queries = best.shape
        content = self.content.weight[:queries].expand(images, -1, -1)
        position = box_positions(candidates, best)
        return QueryGroup("own", content, position, proposals=proposals, candidates=candidates)
