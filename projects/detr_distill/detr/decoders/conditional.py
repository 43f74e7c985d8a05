"""The decoder of Conditional DETR (2108.06152): content and position attend side by side."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ...registry import DECODER_REGISTRY
from ...structures import CAPTURES_WITH_FACTORS, CROSS_ATTENTION, SELF_ATTENTION, DecoderOutput, Keep, Memory
from ..boxes import inverse_sigmoid
from ..keys import POINT_TEMPERATURE, POSITION_GAIN
from ..layers.attention import GroupLayout, GroupMaps, Kept
from ..layers.conditional import (
    ConditionalCrossAttention,
    ConditionalSelfAttention,
    ProjectedMemory,
    project_memory,
    project_positions,
)
from ..layers.feed_forward import PerceptronHead
from ..layers.initialisation import initialise_linear
from ..layers.module_list import ModuleList
from ..layers.position import point_positions
from .base import Decoder, DecoderLayer, DecoderRecord
from .heads import DetectionHeads


class ConditionalDecoderLayer(DecoderLayer):
    """One layer; see the two attentions above."""

    self_attention: ConditionalSelfAttention
    cross_attention: ConditionalCrossAttention

    def __init__(self, width: int, num_heads: int, ffn_width: int, dropout: float, is_first: bool):
        super().__init__(width, ffn_width, dropout)
        self.self_attention = ConditionalSelfAttention(width, num_heads, dropout)
        self.cross_attention = ConditionalCrossAttention(width, num_heads, dropout, is_first)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        sine: Tensor,
        places: tuple[Tensor, Tensor],
        memory: ProjectedMemory,
        layout: GroupLayout,
        capture: frozenset[str],
    ) -> tuple[Tensor, GroupMaps, Kept | None]:
        """(B, Q, C) to (B, Q, C), and the two maps where captured; other arguments as the two attentions take them."""
        attended, self_maps = self.self_attention(content, places, layout, Keep.of(capture, SELF_ATTENTION))
        content = self.self_attention_norm(content + self.dropout(attended))
        attended, cross_map = self.cross_attention(content, position, sine, memory, Keep.of(capture, CROSS_ATTENTION))
        return self.finish(content, attended), self_maps, cross_map


@DECODER_REGISTRY.register()
class ConditionalDecoder(Decoder):
    """Each query has a reference point, read from its position; boxes are offsets from it [P].

    Attributes:
        temperature: of the reference points' sine embedding.
        position_gain: above 0, every layer starts by attending around its reference point, the sharper the larger, see
            :meth:`ConditionalCrossAttention.align_positions`; 0 is the paper's start.
    """

    captures = CAPTURES_WITH_FACTORS
    position_kind = "embedding"
    layers: ModuleList[ConditionalDecoderLayer]

    temperature: float = POINT_TEMPERATURE
    position_gain: float = POSITION_GAIN

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        width = self.width
        self.layers = conditional_layers(self)
        self.norm = nn.LayerNorm(width)
        self.reference_head = PerceptronHead(width, width, 2, num_layers=2)
        self.scale_head = PerceptronHead(width, width, width, num_layers=2)
        initialise_linear(self)
        if self.position_gain:
            for layer in self.layers:
                layer.cross_attention.align_positions(self.position_gain)
            nn.init.zeros_(self.scale_head.layers[-1].weight)
            nn.init.ones_(self.scale_head.layers[-1].bias)
        self.heads = DetectionHeads(width, self.num_classes, self.activation, zero_boxes=True)

    def forward(
        self, memory: Memory, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> list[DecoderOutput]:
        """See the base class."""
        reference = self.reference_head(position).float().sigmoid()
        embedding = point_positions(reference, self.width, self.temperature).to(content.dtype)
        record = DecoderRecord(capture)
        places = project_positions([layer.self_attention for layer in self.layers], position)
        memories = project_memory([layer.cross_attention for layer in self.layers], memory)
        for index, layer in enumerate(self.layers):
            # The first layer has no content yet that could modulate the embedding.
            sine = embedding if index == 0 else embedding * self.scale_head(content)
            content, self_maps, cross_map = layer(
                content, position, sine, places[index], memories[index], layout, capture
            )
            record.add(content, self_maps, cross_map)
        hidden = self.norm(torch.stack(record.hidden))
        offsets = self.heads.box_head(hidden).float()
        centre = offsets[..., :2] + inverse_sigmoid(reference, self.epsilon)
        boxes = torch.cat([centre, offsets[..., 2:]], dim=-1).sigmoid()
        return record.outputs(hidden, self.heads.class_head(hidden), boxes, self.activation, layout)


def conditional_layers(decoder: Decoder) -> ModuleList[ConditionalDecoderLayer]:
    """The layers of a decoder with conditional attention."""
    return ModuleList(
        ConditionalDecoderLayer(*decoder.layer_sizes, is_first=index == 0) for index in range(decoder.num_layers)
    )
