"""Queries that the encoder chooses among its own detections (two-stage Deformable DETR, 2010.04159).

Letters: B images, Q queries, S memory tokens, C width, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ...registry import QUERIES_REGISTRY
from ...structures import Candidates, DecoderOutput, Memory, QueryGroup
from ...structures.levels import cell_centres, level_lengths
from ...structures.rows import take_rows
from ..decoders.heads import DetectionHeads
from ..keys import ACTIVATIONS, NUM_CLASSES, NUM_LEVELS
from .base import Queries

# The sigmoid of this logit is 1 in float32: a finite stand-in for infinity.
LARGEST_LOGIT = 20.0


@QUERIES_REGISTRY.register()
class TwoStageQueries(Queries):
    """The encoder detects on every token; the boxes of the best tokens are the queries [P].

    Each token refines a square box at its own cell, 0.05 of the image on the finest level and twice as large on each
    further one; tokens in the padding or within 0.01 of the image's border take no part [C]. The score is that of class
    0, the encoder's loss being binary [C]. No gradient passes through the choice or the boxes.

    ``position`` (B, Q, 4) is the box as logits, as in :class:`AnchorBoxQueries`: between such networks of any width,
    queries can be exchanged as they are. Positions of another kind have another width (C) and need a projection.
    ``content`` (B, Q, C) is zero, :class:`DeformableBoxDecoder` reads it from the box and adds any that is given.
    The group has ``proposals``, on which the encoder's loss is taken, and ``candidates``.

    Args:
        activation: of the class head, which is the decoder's in kind but not in weights.

    Attributes:
        num_queries: Q; all tokens are taken where there are fewer. num_levels: of the memory.
    """

    neck_name = "MultiLevelNeck"
    position_kind, content_kind = "box_logits", "zero"
    binary_proposals = True

    num_levels: int = NUM_LEVELS
    num_classes: int = NUM_CLASSES

    @configurable
    def __init__(self, *, activation: str, **settings: Any):
        super().__init__(**settings)
        self.output = nn.Linear(self.width, self.width)
        self.output_norm = nn.LayerNorm(self.width)
        self.heads = DetectionHeads(self.width, self.num_classes, activation, zero_boxes=True)
        nn.init.xavier_uniform_(self.output.weight)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**cls.read_keys(cfg), "activation": ACTIVATIONS[cfg.MODEL.DETR.LOSS.CLASSIFICATION]}

    def forward(self, memory: Memory, beside: QueryGroup | None = None) -> QueryGroup:
        """See the base class."""
        tokens, logits, boxes = self._detect(memory)
        proposals = self._proposals(tokens, logits, boxes)
        candidates = Candidates(self._scores(logits)[..., 0].detach(), boxes.detach())
        best = self._choose(candidates)
        position = box_positions(candidates, best)
        content = tokens.new_zeros(*best.shape, self.width)
        return QueryGroup("own", content, position, proposals=proposals, candidates=candidates)

    @classmethod
    def extra(cls, cfg: CfgNode, count: int) -> Queries:
        """The encoder's next-best detections."""
        node = cfg.MODEL.DETR
        learned = cls.content_kind == "learned"
        return NextProposals(first=node.NUM_QUERIES, count=count, width=node.HIDDEN_DIM, learned_content=learned)

    def _detect(self, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Every token's hidden state (B, S, C), class logits (B, S, K) and box logits (B, S, 4), float32."""
        cells, usable = _cell_boxes(memory)
        tokens = self.output_norm(self.output(memory.tokens.masked_fill(~usable, 0)))
        return tokens, self.heads.class_head(tokens), self.heads.box_head(tokens).float() + cells

    def _proposals(self, tokens: Tensor, logits: Tensor, boxes: Tensor) -> DecoderOutput:
        """One layer of detections."""
        layer = (logits.unsqueeze(0), boxes.sigmoid().unsqueeze(0), tokens.unsqueeze(0))
        return DecoderOutput(*layer, self.heads.activation)

    def _scores(self, logits: Tensor) -> Tensor:
        """(B, S, K) by which tokens are ranked: a softmax head's say more of "no object" than of the classes."""
        return logits.float().softmax(-1)[..., :-1] if self.heads.activation == "softmax" else logits

    def _choose(self, candidates: Candidates) -> Tensor:
        """(B, Q): the tokens of the highest scores, best first."""
        return candidates.scores.topk(min(self.num_queries, candidates.scores.shape[1]), dim=1).indices


class NextProposals(Queries):
    """Queries at the encoder's next-best detections, after those that the detector's own queries took [C: H-DETR].

    Args:
        first: how many better ones are left out. count: of the queries; where there are fewer tokens than both, the
            last ones are taken, whether or not the detector's own queries have them [R].
        learned_content: each rank has a learned content, as in mixed selection; otherwise it is zero.
    """

    position_kind, content_kind = "box_logits", "zero"

    def __init__(self, *, first: int, count: int, learned_content: bool, **settings: Any):
        super().__init__(num_queries=count, **settings)
        self.first = first
        self.content = nn.Embedding(count, self.width) if learned_content else None

    def forward(self, memory: Memory, beside: QueryGroup | None = None) -> QueryGroup:
        """See the base class; ``beside`` are the two-stage queries that come first."""
        assert beside is not None and beside.candidates is not None
        scores = beside.candidates.scores
        ranked = scores.topk(min(self.first + self.num_queries, scores.shape[1]), dim=1).indices
        position = box_positions(beside.candidates, ranked[:, -self.num_queries :])
        content = position.new_zeros(*position.shape[:2], self.width)
        if self.content is not None:
            content = content + self.content.weight[: position.shape[1]]
        return QueryGroup("own", content, position)


def box_positions(candidates: Candidates, best: Tensor) -> Tensor:
    """(B, Q, 4): the boxes of the tokens ``best`` (B, Q), as finite logits."""
    return take_rows(candidates.boxes, best).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)


def _cell_boxes(memory: Memory) -> tuple[Tensor, Tensor]:
    """Logits (B, S, 4) of each token's first box, infinite where unusable, and usable tokens (B, S, 1)."""
    centres = cell_centres(memory)
    lengths = level_lengths(memory.shapes)
    sizes = torch.cat([centres.new_full((length,), 0.05 * 2.0**level) for level, length in enumerate(lengths)])
    boxes = torch.cat([centres, sizes[None, :, None].expand(centres.shape[0], -1, 2)], dim=-1)
    # A cell in the padding has its centre beyond 1.
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1, keepdim=True)
    return boxes.logit(eps=1e-6).masked_fill(~usable, torch.inf), usable
