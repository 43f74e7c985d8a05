"""The decoder of AdaMixer (2203.16507): queries sample all levels and mix the samples; there is no encoder.

Letters: B images, Q queries, C width, L levels, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ...config.keys import key
from ...config.ranges import COUNT
from ...registry import DECODER_REGISTRY
from ...structures import SELF_ATTENTION, DecoderOutput, Keep, Memory
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
from ..layers.attention import GroupLayout, GroupMaps, MultiHeadAttention
from ..layers.module_list import ModuleList
from .base import Decoder, DecoderLayer, DecoderRecord
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

    def read_projection(self) -> None:
        """Nothing is known: samples are mixed by matrices that the query makes."""

    def forward(
        self, content: Tensor, positions: Tensor, layout: GroupLayout, tokens: Tensor, memory: Memory, capture: Keep
    ) -> tuple[Tensor, GroupMaps]:
        """(B, Q, C) to (B, Q, C), and each group's self-attention map; ``positions`` (B, Q, 4) without gradient."""
        content = content + embed_positions(positions, content.shape[-1]).to(content.dtype)
        bias = log_intersection(positions).unsqueeze(1) * self.intersection_weight[:, None, None]
        attended, maps = self.self_attention.within_groups(content, content, layout, capture, bias)
        content = self.self_attention_norm(content + self.dropout(attended))
        mixed = self.mixing(content, self.sampling(content, positions, tokens, memory))
        return self.finish(content, mixed), maps


@DECODER_REGISTRY.register()
class AdaMixerDecoder(Decoder):
    """Stages with heads of their own; each moves the box of the one before, without gradient to it [P].

    The queries' ``position`` (B, Q, 4) is a box as logits. All beyond a level is read as zero [C]; padding too, unless
    ``read_padding`` [R]. Sampling has no dense map; self-attention alone can be captured.

    Args:
        num_levels: L, one a feature.

    Attributes:
        num_groups, in_points, out_points: of sampling and mixing. read_padding: read what the levels hold in the
            padding, as published [C].
    """

    neck_name = "AdaMixerNeck"
    captures = frozenset({SELF_ATTENTION})
    position_kind = "box_logits"
    layers: ModuleList[AdaMixerLayer]

    num_groups: int = key(
        4,
        "`AdaMixerDecoder`: groups of channels, each with points and mixing matrices of its own; must divide the width",
        COUNT,
        path="MODEL.DETR.ADAMIXER.NUM_GROUPS",
    )
    in_points: int = key(
        32, "`AdaMixerDecoder`: points that a group samples", COUNT, path="MODEL.DETR.ADAMIXER.IN_POINTS"
    )
    out_points: int = key(
        128, "`AdaMixerDecoder`: points of a group after mixing", COUNT, path="MODEL.DETR.ADAMIXER.OUT_POINTS"
    )

    read_padding: bool = key(
        False,
        "`AdaMixerDecoder`: points in an image's padding read what convolutions left there, as published, and not zero",
        path="MODEL.DETR.ADAMIXER.READ_PADDING",
    )

    @configurable
    def __init__(self, *, num_levels: int = 4, **settings: Any):
        super().__init__(**settings)
        self.num_levels = num_levels
        self.layers = ModuleList(
            AdaMixerLayer(*self.layer_sizes, self.num_groups, self.in_points, self.out_points)
            for _ in range(self.num_layers)
        )
        self.heads = ModuleList(
            AdaMixerHeads(self.width, self.num_classes, self.activation) for _ in range(self.num_layers)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().from_config(cfg), "num_levels": len(cfg.MODEL.DETR.IN_FEATURES)}

    def forward(
        self, memory: Memory, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> list[DecoderOutput]:
        """See the base class."""
        extent = image_extent(memory)
        tokens = memory.tokens
        if memory.mask is not None and not self.read_padding:
            tokens = tokens.masked_fill(memory.mask.unsqueeze(-1), 0)
        positions = boxes_to_positions(position.float().sigmoid(), extent)
        record = DecoderRecord(capture)
        logits, boxes = [], []
        for index, (layer, heads) in enumerate(zip(self.layers, self.heads, strict=True)):
            # Only the first stage's positions can be learned, where another network's queries are projected.
            positions = positions if index == 0 else positions.detach()
            content, maps = layer(content, positions, layout, tokens, memory, Keep.of(capture, SELF_ATTENTION))
            record.add(content, maps, None)
            positions = move(positions, heads.box_head(content).float())
            logits.append(heads.class_head(content))
            boxes.append(positions_to_boxes(positions, extent))
        hidden = torch.stack(record.hidden)
        return record.outputs(hidden, torch.stack(logits), torch.stack(boxes), self.activation, layout)
