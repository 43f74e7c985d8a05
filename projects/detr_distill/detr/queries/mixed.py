"""Mixed query selection of DINO (2203.03605).

Letters: B images, Q queries, S memory tokens, C width, K classes.
"""

from __future__ import annotations

from detectron2.config import configurable
from torch import nn

from ...registry import QUERIES_REGISTRY
from ...structures import Memory, QueryGroup
from .two_stage import LARGEST_LOGIT, TwoStageQueries, take_rows


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
