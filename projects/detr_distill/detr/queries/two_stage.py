"""Queries that the encoder chooses among its own detections (two-stage Deformable DETR, 2010.04159).

Letters: B images, Q queries, S memory tokens, C width, K classes.
"""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ...registry import QUERIES_REGISTRY
from ...structures import Candidates, DecoderOutput, Memory, QueryGroup
from ...structures.levels import cell_centres
from ..decoders.heads import DetectionHeads

# The sigmoid of this logit is 1 in float32: a finite stand-in for infinity.
LARGEST_LOGIT = 20.0


@QUERIES_REGISTRY.register()
class TwoStageQueries(nn.Module):
    """The encoder detects on every token; the boxes of the best tokens are the queries [P].

    Each token refines a square box at its own cell, 0.05 of the image on the finest level and twice as large on each
    further one; tokens in the padding or within 0.01 of the image's border take no part [C]. The score is that of class
    0, the encoder's loss being binary [C]. No gradient passes through the choice or the boxes.

    ``position`` (B, Q, 4) is the box as logits, as in :class:`AnchorQueries`: between such networks of any width,
    queries can be exchanged as they are. Positions of another kind have another width (C) and need a projection.
    ``content`` (B, Q, C) is zero, :class:`DeformableBoxDecoder` reads it from the box and adds any that is given.
    Leaves ``memory.proposals`` behind, on which the encoder's loss is taken, and ``memory.candidates``.

    Args:
        num_queries: Q; all tokens are taken where there are fewer. width: C. num_levels: of the memory.
        num_classes, activation: of the class head, which is the decoder's in kind but not in weights.

    Attributes:
        neck_name: the neck that gives the levels. binary_proposals: for the encoder's loss every object is of class 0.
    """

    neck_name = "MultiLevelNeck"
    position_kind, content_kind = "box_logits", "zero"
    binary_proposals = True

    @configurable
    def __init__(self, *, num_queries: int, width: int, num_levels: int, num_classes: int, activation: str):
        super().__init__()
        self.num_queries, self.num_levels = num_queries, num_levels
        self.output = nn.Linear(width, width)
        self.output_norm = nn.LayerNorm(width)
        self.heads = DetectionHeads(width, num_classes, activation, zero_boxes=True)
        nn.init.xavier_uniform_(self.output.weight)
        self.widths = (width, 4)

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.DETR
        return {
            "num_queries": node.NUM_QUERIES,
            "width": node.HIDDEN_DIM,
            "num_levels": node.NUM_LEVELS,
            "num_classes": node.NUM_CLASSES,
            "activation": "softmax" if node.LOSS.CLASSIFICATION == "softmax" else "sigmoid",
        }

    def forward(self, memory: Memory) -> QueryGroup:
        """The group ``own`` for the images of ``memory``."""
        tokens, logits, boxes = self._detect(memory)
        memory.proposals = self._proposals(tokens, logits, boxes)
        best = self._choose(memory, self._scores(logits)[..., 0], boxes)
        position = take_rows(boxes.detach(), best).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        return QueryGroup(name="own", content=tokens.new_zeros(*best.shape, tokens.shape[-1]), position=position)

    @classmethod
    def further(cls, cfg, count: int) -> NextProposals:
        """A module for ``count`` queries beside the detector's own: the encoder's next-best detections."""
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

    def _choose(self, memory: Memory, scores: Tensor, boxes: Tensor) -> Tensor:
        """(B, Q): the tokens of the highest scores (B, S), best first; leaves ``memory.candidates`` behind."""
        memory.candidates = Candidates(scores.detach(), boxes.detach())
        return scores.detach().topk(min(self.num_queries, scores.shape[1]), dim=1).indices


class NextProposals(nn.Module):
    """Queries at the encoder's next-best detections, after those that the detector's own queries took [C: H-DETR].

    Args:
        first: how many better ones are left out. count: of the queries; where there are fewer tokens than both, the
            last ones are taken, whether or not the detector's own queries have them [R]. width: C.
        learned_content: each rank has a learned content, as in mixed selection; otherwise it is zero.
    """

    def __init__(self, *, first: int, count: int, width: int, learned_content: bool):
        super().__init__()
        self.first, self.count, self.width = first, count, width
        self.content = nn.Embedding(count, width) if learned_content else None

    def forward(self, memory: Memory) -> QueryGroup:
        """The group for the images of ``memory``, after the detector's own queries were made."""
        assert memory.candidates is not None
        scores, boxes = memory.candidates.scores, memory.candidates.boxes
        best = scores.topk(min(self.first + self.count, scores.shape[1]), dim=1).indices[:, -self.count :]
        position = take_rows(boxes, best).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        content = position.new_zeros(*best.shape, self.width)
        if self.content is not None:
            content = content + self.content.weight[: best.shape[1]]
        return QueryGroup(name="further", content=content, position=position)


def take_rows(values: Tensor, rows: Tensor) -> Tensor:
    """(B, S, D) to its rows (B, Q, D)."""
    return values.gather(1, rows.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _cell_boxes(memory: Memory) -> tuple[Tensor, Tensor]:
    """Logits (B, S, 4) of each token's first box, infinite where unusable, and usable tokens (B, S, 1)."""
    centres = cell_centres(memory)
    sizes = torch.cat(
        [centres.new_full((height * width,), 0.05 * 2.0**level) for level, (height, width) in enumerate(memory.shapes)]
    )
    boxes = torch.cat([centres, sizes[None, :, None].expand(len(centres), -1, 2)], dim=-1)
    # A cell in the padding has its centre beyond 1.
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1, keepdim=True)
    return boxes.logit(eps=1e-6).masked_fill(~usable, torch.inf), usable
