"""The decoder of DETR (2005.12872)."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ...registry import DECODER_REGISTRY
from ...structures import CAPTURES, CROSS_ATTENTION, SELF_ATTENTION, DecoderOutput, Memory
from ..layers.attention import GroupLayout, MultiHeadAttention
from ..layers.initialisation import initialise_linear
from .base import DecoderLayer, DecoderRecord, decoder_arguments
from .heads import DetectionHeads


class DetrDecoderLayer(DecoderLayer):
    """Positions are added to queries and keys of both attentions."""

    def __init__(self, width: int, num_heads: int, ffn_width: int, dropout: float):
        super().__init__(width, ffn_width, dropout)
        self.self_attention = MultiHeadAttention(width, num_heads, dropout)
        self.cross_attention = MultiHeadAttention(width, num_heads, dropout)

    def forward(self, content: Tensor, position: Tensor, layout: GroupLayout, memory: Memory, capture: frozenset[str]):
        """(B, Q, C) to (B, Q, C), and the two maps where captured."""
        located = content + position
        attended, self_maps = self.self_attention.within_groups(located, content, layout, SELF_ATTENTION in capture)
        content = self.self_attention_norm(content + self.dropout(attended))
        attended, cross_map = self.cross_attention(
            content + position,
            memory.tokens + memory.position,
            memory.tokens,
            mask=memory.key_mask,
            capture=CROSS_ATTENTION in capture,
        )
        return self.finish(content, attended), self_maps, cross_map


@DECODER_REGISTRY.register()
class DetrDecoder(nn.Module):
    """Layers with a shared final norm and shared heads; boxes are absolute [P].

    Args:
        num_layers, width, num_heads, ffn_width, dropout: of the layers. num_classes, activation: of the class head.

    Attributes:
        position_width: of the queries' positions that this decoder reads.
    """

    captures = CAPTURES

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
    ):
        super().__init__()
        self.position_width = width
        self.layers = nn.ModuleList(DetrDecoderLayer(width, num_heads, ffn_width, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        initialise_linear(self)
        self.heads = DetectionHeads(width, num_classes, activation, zero_boxes=False)

    @classmethod
    def from_config(cls, cfg):
        return decoder_arguments(cfg)

    def forward(
        self, memory: Memory, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> list[DecoderOutput]:
        """Decodes queries.

        Args:
            memory: encoder output. content, position: (B, Q, C) of all groups. layout: the groups.
            capture: which attention maps to keep.

        Returns:
            An output for each group of ``layout``.
        """
        record = DecoderRecord(capture)
        for layer in self.layers:
            content, self_maps, cross_map = layer(content, position, layout, memory, capture)
            record.add(self.norm(content), self_maps, cross_map)
        hidden = torch.stack(record.hidden)
        boxes = self.heads.box_head(hidden).float().sigmoid()
        return record.outputs(hidden, self.heads.class_head(hidden), boxes, self.heads.activation, layout)
