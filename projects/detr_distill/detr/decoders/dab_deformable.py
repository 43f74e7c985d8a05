"""The decoder of DAB-Deformable DETR (2201.12329): deformable attention around anchor boxes.

Letters: B images, Q queries, C width, L levels.
"""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ...registry import DECODER_REGISTRY
from ...structures import SAMPLED_ATTENTION, SELF_ATTENTION, DecoderOutput, Memory
from ..boxes import DINO_EPSILON, inverse_sigmoid
from ..layers.attention import GroupLayout
from ..layers.feed_forward import PerceptronHead
from ..layers.initialisation import initialise_linear
from ..layers.position import box_positions
from .base import DecoderRecord, decoder_arguments
from .deformable import DeformableDecoderLayer, on_levels
from .heads import DetectionHeads


@DECODER_REGISTRY.register()
class DabDeformableDecoder(nn.Module):
    """Deformable attention around anchor boxes that every layer moves.

    Reads the queries' ``position`` (B, Q, 4), box logits, and starts from their ``content``. The position that is added
    to queries and keys is read from the sine embedding of the anchor, as it lies on the finest padded level [C], and
    scaled by the content from the second layer on. A layer's box, without gradient, is the next layer's anchor.

    Args:
        num_layers, width, num_heads, ffn_width, dropout: of the layers. num_classes, activation: of the class head.
        num_levels: L. num_points: sampled by a head on a level. temperature: of the anchors' sine embedding.
        shared_heads: one class and box head for all layers.

    Attributes:
        captures: as in :class:`DeformableDecoder`. position_width: of the queries' positions that this decoder reads.
        neck_name: the neck that gives the levels. epsilon: distance that boxes keep from 0 and 1 before their logit.
    """

    neck_name = "MultiLevelNeck"
    captures = frozenset({SELF_ATTENTION, SAMPLED_ATTENTION})
    position_width = 4
    epsilon = DINO_EPSILON
    # Logit that the first layer's head adds to a box's width and height at the start [C].
    size_bias = -2.0
    look_forward_twice = False

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
        num_points: int = 4,
        temperature: float = 10000.0,
        shared_heads: bool = False,
    ):
        super().__init__()
        self.num_levels, self.width, self.temperature = num_levels, width, temperature
        self.layers = nn.ModuleList(
            DeformableDecoderLayer(width, num_heads, ffn_width, dropout, num_levels, num_points)
            for _ in range(num_layers)
        )
        self.position_head = PerceptronHead(2 * width, width, width, num_layers=2)
        self._build_rest()
        initialise_linear(self)
        for layer in self.layers:
            layer.cross_attention.reset_parameters()  # type: ignore[operator, union-attr]
        self.heads = nn.ModuleList(
            DetectionHeads(width, num_classes, activation, zero_boxes=True)
            for _ in range(1 if shared_heads else num_layers)
        )
        nn.init.constant_(self.heads[0].box_head.layers[-1].bias[2:], self.size_bias)  # type: ignore[union-attr, index]

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.DETR
        return {
            **decoder_arguments(cfg),
            "num_levels": node.NUM_LEVELS,
            "num_points": node.DECODER.NUM_POINTS,
            "temperature": node.DECODER.POINT_TEMPERATURE,
        }

    def forward(
        self, memory: Memory, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> list[DecoderOutput]:
        """Decodes queries; arguments and result as in :class:`DetrDecoder`, with ``position`` (B, Q, 4)."""
        start = anchor = position.float().sigmoid()
        record = DecoderRecord(capture)
        logits, boxes = [], []
        for index, layer in enumerate(self.layers):
            heads = self.heads[min(index, len(self.heads) - 1)]
            places = on_levels(anchor, memory)
            position = self._position(content, places[:, :, 0], index)
            content, maps, points = layer(content, position, places, layout, memory, capture)
            hidden = self._finish(content)
            record.add(hidden, maps, points=points)
            logits.append(heads.class_head(hidden))  # type: ignore[operator, union-attr]
            boxes.append(self._move(start, heads.box_head(hidden)))  # type: ignore[operator, union-attr]
            # The next anchor is read before the norm, the box after it [C].
            moved = boxes[-1] if hidden is content else self._move(anchor, heads.box_head(content))  # type: ignore[operator, union-attr]
            anchor = moved.detach()
            start = moved if self.look_forward_twice else anchor
        activation: str = self.heads[0].activation  # type: ignore[assignment]
        return record.outputs(torch.stack(record.hidden), torch.stack(logits), torch.stack(boxes), activation, layout)

    def _build_rest(self) -> None:
        self.scale_head = PerceptronHead(self.width, self.width, self.width, num_layers=2)

    def _position(self, content: Tensor, anchor: Tensor, index: int) -> Tensor:
        """(B, Q, C): the position that layer ``index`` adds, from ``content`` (B, Q, C) and ``anchor`` (B, Q, 4)."""
        position = self._embed(content, anchor)
        return position if index == 0 else position * self.scale_head(content)

    def _embed(self, content: Tensor, anchor: Tensor) -> Tensor:
        return self.position_head(box_positions(anchor, self.width, self.temperature).to(content.dtype))

    def _finish(self, content: Tensor) -> Tensor:
        """(B, Q, C): what the heads read."""
        return content

    def _move(self, anchor: Tensor, offsets: Tensor) -> Tensor:
        """Boxes (B, Q, 4) from offsets (B, Q, 4) in logit space, float32."""
        return (offsets.float() + inverse_sigmoid(anchor, self.epsilon)).sigmoid()
