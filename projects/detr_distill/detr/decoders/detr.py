"""The decoder of DETR (2005.12872)."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ...registry import DECODER_REGISTRY
from ...structures import CAPTURES_WITH_FACTORS, CROSS_ATTENTION, DecoderOutput, Keep, Memory
from ..layers.attention import GroupLayout, GroupMaps, Kept, MultiHeadAttention
from ..layers.initialisation import initialise_linear
from ..layers.module_list import ModuleList
from .base import Decoder, DecoderRecord, LocatedDecoderLayer
from .heads import DetectionHeads


class DetrDecoderLayer(LocatedDecoderLayer):
    """Positions are added to queries and keys of both attentions."""

    cross_attention: MultiHeadAttention

    def __init__(self, width: int, num_heads: int, ffn_width: int, dropout: float):
        super().__init__(width, num_heads, ffn_width, dropout)
        self.cross_attention = MultiHeadAttention(width, num_heads, dropout)

    def forward(
        self, content: Tensor, position: Tensor, layout: GroupLayout, memory: Memory, capture: frozenset[str]
    ) -> tuple[Tensor, GroupMaps, Kept | None]:
        """(B, Q, C) to (B, Q, C), and the two maps where captured."""
        content, self_maps = self.attend_to_queries(content, position, layout, capture)
        attended, cross_map = self.cross_attention(
            content + position,
            memory.tokens + memory.position,
            memory.tokens,
            mask=memory.key_mask,
            capture=Keep.of(capture, CROSS_ATTENTION),
        )
        return self.finish(content, attended), self_maps, cross_map


@DECODER_REGISTRY.register()
class DetrDecoder(Decoder):
    """Layers with a shared final norm and shared heads; boxes are absolute [P]."""

    captures = CAPTURES_WITH_FACTORS
    position_kind = "embedding"

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.layers = ModuleList(DetrDecoderLayer(*self.layer_sizes) for _ in range(self.num_layers))
        self.norm = nn.LayerNorm(self.width)
        initialise_linear(self)
        self.heads = DetectionHeads(self.width, self.num_classes, self.activation, zero_boxes=False)

    def forward(
        self, memory: Memory, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> list[DecoderOutput]:
        """See the base class."""
        record = DecoderRecord(capture)
        for layer in self.layers:
            content, self_maps, cross_map = layer(content, position, layout, memory, capture)
            record.add(content, self_maps, cross_map)
        hidden = self.norm(torch.stack(record.hidden))
        logits, boxes = self.heads(hidden)
        return record.outputs(hidden, logits, boxes, self.activation, layout)
