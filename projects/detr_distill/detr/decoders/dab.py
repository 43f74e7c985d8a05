"""The decoder of DAB-DETR (2201.12329): queries are anchor boxes, refined from layer to layer."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ...registry import DECODER_REGISTRY
from ...structures import CAPTURES, DecoderOutput, Memory
from ..boxes import inverse_sigmoid
from ..layers.attention import GroupLayout
from ..layers.feed_forward import PerceptronHead
from ..layers.initialisation import initialise_linear
from ..layers.position import box_positions
from .base import DecoderRecord, decoder_arguments
from .conditional import ConditionalDecoderLayer
from .heads import DetectionHeads


def use_learned_slope(layers: nn.ModuleList) -> None:
    """Gives the feed-forward part of every layer PReLU instead of ReLU [C]."""
    for layer in layers:
        layer.feed_forward.activation = nn.PReLU()  # type: ignore[union-attr]


@DECODER_REGISTRY.register()
class DabDecoder(nn.Module):
    """Conditional attention around anchor boxes that every layer moves.

    A query's position is its anchor (B, Q, 4), before the sigmoid. The positional part of cross-attention is scaled by
    the content, and by the ratio of a predicted width and height to the anchor's, so that it covers what the box covers
    [P]. Gradients reach a layer's move through the next layer's boxes only, not through its attention [C].

    Args:
        num_layers, width, num_heads, ffn_width, dropout: of the layers. num_classes, activation: of the class head.
        temperature: of the anchors' sine embedding.

    Attributes:
        position_width: of the queries' positions that this decoder reads.
    """

    captures = CAPTURES
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
        temperature: float = 10000.0,
    ):
        super().__init__()
        self.width, self.temperature = width, temperature
        self.layers = nn.ModuleList(
            ConditionalDecoderLayer(width, num_heads, ffn_width, dropout, is_first=index == 0)
            for index in range(num_layers)
        )
        use_learned_slope(self.layers)
        self.norm = nn.LayerNorm(width)
        self.position_head = PerceptronHead(2 * width, width, width, num_layers=2)
        self.scale_head = PerceptronHead(width, width, width, num_layers=2)
        self.size_head = PerceptronHead(width, width, 2, num_layers=2)
        initialise_linear(self)
        self.heads = DetectionHeads(width, num_classes, activation, zero_boxes=True)

    @classmethod
    def from_config(cls, cfg):
        return {**decoder_arguments(cfg), "temperature": cfg.MODEL.DETR.DECODER.POINT_TEMPERATURE}

    def forward(
        self, memory: Memory, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> list[DecoderOutput]:
        """Decodes queries; arguments and result as in :class:`DetrDecoder`, with ``position`` (B, Q, 4)."""
        anchors = [position.float().sigmoid()]
        record = DecoderRecord(capture)
        for index, layer in enumerate(self.layers):
            # The first layer's anchors are learned through its attention too; later ones are moved, not learned.
            anchor = anchors[-1] if index == 0 else anchors[-1].detach()
            embedding = box_positions(anchor, self.width, self.temperature).to(content.dtype)
            sine = embedding[..., : self.width]
            sine = sine if index == 0 else sine * self.scale_head(content)
            sine = sine * self._size_ratio(content, anchor).to(content.dtype)
            position_embedding = self.position_head(embedding)
            content, self_maps, cross_map = layer(content, position_embedding, sine, layout, memory, capture)
            record.add(self.norm(content), self_maps, cross_map)
            anchors.append((self.heads.box_head(content).float() + inverse_sigmoid(anchor)).sigmoid())
        hidden = torch.stack(record.hidden)
        boxes = (self.heads.box_head(hidden).float() + inverse_sigmoid(torch.stack(anchors[:-1]))).sigmoid()
        return record.outputs(hidden, self.heads.class_head(hidden), boxes, self.heads.activation, layout)

    def _size_ratio(self, content: Tensor, anchor: Tensor) -> Tensor:
        """(B, Q, width): predicted over actual height for the row half, width for the column half."""
        predicted = self.size_head(content).float().sigmoid()  # (width, height)
        ratio = (predicted / anchor[..., 2:].clamp(min=1e-6)).flip(-1)
        return ratio.repeat_interleave(self.width // 2, dim=-1)
