"""The decoder of AdaMixer (2203.16507): queries sample all levels and mix the samples; there is no encoder.

Letters: B images, Q queries, C width, L levels, H heads.
"""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ...registry import DECODER_REGISTRY
from ...structures import SELF_ATTENTION, DecoderOutput, Memory
from ..layers.adamixer import (
    AdaptiveMixing,
    AdaptiveSampling,
    boxes_to_positions,
    embed_positions,
    image_extent,
    log_intersection,
    move,
    positions_to_boxes,
)
from ..layers.attention import GroupLayout, MultiHeadAttention
from .base import DecoderLayer, DecoderRecord, decoder_arguments
from .heads import AdaMixerHeads


class AdaMixerLayer(DecoderLayer):
    """A stage: self-attention biased by how boxes cover each other, sampling and mixing, feed-forward.

    Attention logits have ``weight * log(IoF + 1e-7)`` added, with a learned weight a head [P], drawn from [0, 4] [C].
    The embedded position is part of queries, keys, values and the residual sum [C].

    Args:
        width, num_heads, ffn_width, dropout: as elsewhere. num_groups, in_points, out_points: of the mixing.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        ffn_width: int,
        dropout: float,
        num_groups: int,
        in_points: int,
        out_points: int,
    ):
        super().__init__(width, ffn_width, dropout)
        self.self_attention = MultiHeadAttention(width, num_heads, dropout)
        self.intersection_weight = nn.Parameter(torch.empty(num_heads).uniform_(0, 4))
        self.sampling = AdaptiveSampling(width, num_groups, in_points)
        self.mixing = AdaptiveMixing(width, num_groups, in_points, out_points)
        for linear in (self.feed_forward.expand, self.feed_forward.contract):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self, content: Tensor, positions: Tensor, layout: GroupLayout, tokens: Tensor, memory: Memory, capture: bool
    ):
        """(B, Q, C) to (B, Q, C), and each group's self-attention map; ``positions`` (B, Q, 4) without gradient."""
        content = content + embed_positions(positions, content.shape[-1]).to(content.dtype)
        bias = log_intersection(positions).unsqueeze(1) * self.intersection_weight[:, None, None]
        attended, maps = self.self_attention.within_groups(content, content, layout, capture, bias)
        content = self.self_attention_norm(content + self.dropout(attended))
        mixed = self.mixing(content, self.sampling(content, positions, tokens, memory))
        return self.finish(content, mixed), maps


@DECODER_REGISTRY.register()
class AdaMixerDecoder(nn.Module):
    """Stages with heads of their own; each moves the box of the one before, without gradient to it [P].

    The queries' ``position`` (B, Q, 4) is a box as logits. Padding is read as zero, as is all beyond a level [R].

    Args:
        num_layers, width, num_heads, ffn_width, dropout: of the stages. num_classes, activation: of the class heads.
        num_levels: L. num_groups, in_points, out_points: of sampling and mixing.

    Attributes:
        captures: self-attention only, sampling has no dense map.
        position_width: of the queries' positions that this decoder reads. neck_name: the neck that gives the levels.
    """

    neck_name = "AdaMixerNeck"
    captures = frozenset({SELF_ATTENTION})
    position_width = 4

    @configurable
    def __init__(
        self,
        *,
        num_layers: int,
        width: int,
        num_heads: int,
        ffn_width: int,
        dropout: float,
        num_classes: int,
        activation: str,
        num_levels: int = 4,
        num_groups: int = 4,
        in_points: int = 32,
        out_points: int = 128,
    ):
        super().__init__()
        self.num_levels, self.activation = num_levels, activation
        self.layers = nn.ModuleList(
            AdaMixerLayer(width, num_heads, ffn_width, dropout, num_groups, in_points, out_points)
            for _ in range(num_layers)
        )
        self.heads = nn.ModuleList(AdaMixerHeads(width, num_classes, activation) for _ in range(num_layers))

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.DETR
        return {
            **decoder_arguments(cfg),
            "num_levels": len(node.IN_FEATURES),
            "num_groups": node.ADAMIXER.NUM_GROUPS,
            "in_points": node.ADAMIXER.IN_POINTS,
            "out_points": node.ADAMIXER.OUT_POINTS,
        }

    def forward(
        self, memory: Memory, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> list[DecoderOutput]:
        """Decodes queries; arguments and result as in :class:`DetrDecoder`, with ``position`` (B, Q, 4)."""
        extent = image_extent(memory)
        tokens = memory.tokens if memory.mask is None else memory.tokens.masked_fill(memory.mask.unsqueeze(-1), 0)
        positions = boxes_to_positions(position.float().sigmoid(), extent)
        record = DecoderRecord(capture)
        logits, boxes = [], []
        for index, (layer, heads) in enumerate(zip(self.layers, self.heads, strict=True)):
            # Only the first stage's positions can be learned, where another network's queries are projected.
            positions = positions if index == 0 else positions.detach()
            content, maps = layer(content, positions, layout, tokens, memory, SELF_ATTENTION in capture)
            record.add(content, maps, None)
            positions = move(positions, heads.box_head(content).float())  # type: ignore[operator]
            logits.append(heads.class_head(content))  # type: ignore[operator]
            boxes.append(positions_to_boxes(positions, extent))
        hidden = torch.stack(record.hidden)
        return record.outputs(hidden, torch.stack(logits), torch.stack(boxes), self.activation, layout)
