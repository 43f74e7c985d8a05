"""The decoder of DAB-DETR (2201.12329): queries are anchor boxes, refined from layer to layer.

Letters: B images, Q queries, C width.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ...registry import DECODER_REGISTRY
from ...structures import CAPTURES_WITH_FACTORS, DecoderOutput, Memory
from ..boxes import DAB_EPSILON, inverse_sigmoid
from ..keys import POINT_TEMPERATURE
from ..layers.attention import GroupLayout
from ..layers.conditional import project_memory, project_positions
from ..layers.feed_forward import PerceptronHead
from ..layers.initialisation import initialise_linear
from ..layers.module_list import ModuleList
from ..layers.position import box_positions
from .base import Decoder, DecoderRecord
from .conditional import ConditionalDecoderLayer, conditional_layers
from .heads import DetectionHeads


@DECODER_REGISTRY.register()
class DabDecoder(Decoder):
    """Conditional attention around anchor boxes that every layer moves.

    A query's position is its anchor (B, Q, 4), before the sigmoid. The positional part of cross-attention is scaled by
    the content, and by the ratio of a predicted width and height to the anchor's, so that it covers what the box covers
    [P]. Gradients reach a layer's move through the next layer's boxes only, not through its attention [C].

    Attributes:
        temperature: of the anchors' sine embedding.
    """

    captures = CAPTURES_WITH_FACTORS
    position_kind = "box_logits"
    published_epsilon = DAB_EPSILON
    layers: ModuleList[ConditionalDecoderLayer]

    temperature: float = POINT_TEMPERATURE

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        width = self.width
        self.layers = layers = conditional_layers(self)
        for layer in layers:
            layer.feed_forward.use_learned_slope()
        self.norm = nn.LayerNorm(width)
        self.position_head = PerceptronHead(2 * width, width, width, num_layers=2)
        self.scale_head = PerceptronHead(width, width, width, num_layers=2)
        self.size_head = PerceptronHead(width, width, 2, num_layers=2)
        initialise_linear(self)
        self.heads = DetectionHeads(width, self.num_classes, self.activation, zero_boxes=True)

    def forward(
        self, memory: Memory, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> list[DecoderOutput]:
        """See the base class."""
        anchors = [position.float().sigmoid()]
        record = DecoderRecord(capture)
        memories = project_memory([layer.cross_attention for layer in self.layers], memory)
        for index, layer in enumerate(self.layers):
            # The first layer's anchors are learned through its attention too; later ones are moved, not learned.
            anchor = anchors[-1] if index == 0 else anchors[-1].detach()
            embedding = box_positions(anchor, self.width, self.temperature).to(content.dtype)
            sine = embedding[..., : self.width]
            sine = sine if index == 0 else sine * self.scale_head(content)
            sine = sine * self._size_ratio(content, anchor).to(content.dtype)
            position_embedding = self.position_head(embedding)
            places = project_positions([layer.self_attention], position_embedding)[0]
            content, self_maps, cross_map = layer(
                content, position_embedding, sine, places, memories[index], layout, capture
            )
            record.add(content, self_maps, cross_map)
            moved = self.heads.box_head(content).float() + inverse_sigmoid(anchor, self.epsilon)
            anchors.append(moved.sigmoid())
        hidden, start = self.norm(torch.stack(record.hidden)), inverse_sigmoid(torch.stack(anchors[:-1]), self.epsilon)
        logits, boxes = self.heads(hidden, start)
        return record.outputs(hidden, logits, boxes, self.activation, layout)

    def _size_ratio(self, content: Tensor, anchor: Tensor) -> Tensor:
        """(B, Q, C): predicted over actual height for the row half, width for the column half."""
        predicted = self.size_head(content).float().sigmoid()  # (width, height)
        # Not by zero; a larger limit would show where anchors are as narrow as training makes some.
        ratio = (predicted / anchor[..., 2:].clamp(min=1e-20)).flip(-1)
        return ratio.repeat_interleave(self.width // 2, dim=-1)
