"""The decoder of Conditional DETR (2108.06152): content and position attend side by side."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ...registry import DECODER_REGISTRY
from ...structures import CAPTURES, CROSS_ATTENTION, SELF_ATTENTION, DecoderOutput, Memory
from ..boxes import inverse_sigmoid
from ..layers.attention import GroupLayout
from ..layers.conditional import ConditionalCrossAttention, ConditionalSelfAttention
from ..layers.feed_forward import PerceptronHead
from ..layers.initialisation import initialise_linear
from ..layers.position import point_positions
from .base import DecoderLayer, DecoderRecord, decoder_arguments
from .heads import DetectionHeads


class ConditionalDecoderLayer(DecoderLayer):
    """One layer; see the two attentions above."""

    def __init__(self, width: int, num_heads: int, ffn_width: int, dropout: float, is_first: bool):
        super().__init__(width, ffn_width, dropout)
        self.self_attention = ConditionalSelfAttention(width, num_heads, dropout)
        self.cross_attention = ConditionalCrossAttention(width, num_heads, dropout, is_first)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        sine: Tensor,
        layout: GroupLayout,
        memory: Memory,
        capture: frozenset[str],
    ):
        """(B, Q, C) to (B, Q, C), and the two maps where captured."""
        attended, self_maps = self.self_attention(content, position, layout, SELF_ATTENTION in capture)
        content = self.self_attention_norm(content + self.dropout(attended))
        attended, cross_map = self.cross_attention(content, position, sine, memory, CROSS_ATTENTION in capture)
        return self.finish(content, attended), self_maps, cross_map


@DECODER_REGISTRY.register()
class ConditionalDecoder(nn.Module):
    """Each query has a reference point, read from its position; boxes are offsets from it [P].

    Args:
        num_layers, width, num_heads, ffn_width, dropout: of the layers. num_classes, activation: of the class head.
        temperature: of the reference points' sine embedding.
        position_gain: above 0, every layer starts by attending around its reference point, the sharper the larger, see
            :meth:`ConditionalCrossAttention.align_positions`; 0 is the paper's start.

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
        temperature: float = 10000.0,
        position_gain: float = 0.0,
    ):
        super().__init__()
        self.width, self.temperature, self.position_width = width, temperature, width
        self.layers = nn.ModuleList(
            ConditionalDecoderLayer(width, num_heads, ffn_width, dropout, is_first=index == 0)
            for index in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.reference_head = PerceptronHead(width, width, 2, num_layers=2)
        self.scale_head = PerceptronHead(width, width, width, num_layers=2)
        initialise_linear(self)
        if position_gain:
            for layer in self.layers:
                layer.cross_attention.align_positions(position_gain)  # type: ignore[operator, union-attr]
            nn.init.zeros_(self.scale_head.layers[-1].weight)  # type: ignore[arg-type]
            nn.init.ones_(self.scale_head.layers[-1].bias)  # type: ignore[arg-type]
        self.heads = DetectionHeads(width, num_classes, activation, zero_boxes=True)

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.DETR
        return {
            **decoder_arguments(cfg),
            "temperature": node.DECODER.POINT_TEMPERATURE,
            "position_gain": node.DECODER.POSITION_GAIN,
        }

    def forward(
        self, memory: Memory, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> list[DecoderOutput]:
        """Decodes queries; arguments and result as in :class:`DetrDecoder`."""
        reference = self.reference_head(position).float().sigmoid()
        embedding = point_positions(reference, self.width, self.temperature).to(content.dtype)
        record = DecoderRecord(capture)
        for index, layer in enumerate(self.layers):
            # The first layer has no content yet that could modulate the embedding.
            sine = embedding if index == 0 else embedding * self.scale_head(content)
            content, self_maps, cross_map = layer(content, position, sine, layout, memory, capture)
            record.add(self.norm(content), self_maps, cross_map)
        hidden = torch.stack(record.hidden)
        offsets = self.heads.box_head(hidden).float()
        centre = offsets[..., :2] + inverse_sigmoid(reference)
        boxes = torch.cat([centre, offsets[..., 2:]], dim=-1).sigmoid()
        return record.outputs(hidden, self.heads.class_head(hidden), boxes, self.heads.activation, layout)
