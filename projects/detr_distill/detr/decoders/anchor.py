"""The decoder of Anchor DETR (2109.07107): queries stay at their anchor points, and boxes are offsets from them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from ...errors import ConfigError
from ...registry import DECODER_REGISTRY
from ...structures import CAPTURES, CROSS_ATTENTION, SELF_ATTENTION, DecoderOutput, Memory
from ..encoders.anchor import check_one_level
from ..layers.attention import GroupLayout, MultiHeadAttention
from ..layers.row_column import PlaneEmbedding, attention_kind
from .base import DecoderLayer, DecoderRecord, decoder_arguments
from .heads import DetectionHeads


class AnchorDecoderLayer(DecoderLayer):
    """Standard self-attention, the chosen cross-attention, feed-forward."""

    def __init__(self, cross_attention: nn.Module, width: int, num_heads: int, ffn_width: int, dropout: float):
        super().__init__(width, ffn_width, dropout)
        self.self_attention = MultiHeadAttention(width, num_heads, dropout)
        self.cross_attention = cross_attention

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        places: tuple[Tensor, ...],
        cells: tuple[Tensor, ...],
        layout: GroupLayout,
        memory: Memory,
        capture: frozenset[str],
    ):
        """(B, Q, C) to (B, Q, C), and the two maps where captured.

        Args:
            position: (B, Q, C), for self-attention. places, cells: as in :class:`RowColumnAttention`.
        """
        attended, self_maps = self.self_attention.within_groups(
            content + position, content, layout, SELF_ATTENTION in capture
        )
        content = self.self_attention_norm(content + self.dropout(attended))
        attended, cross_map = self.cross_attention(
            content, places, memory.tokens, cells, memory, CROSS_ATTENTION in capture
        )
        return self.finish(content, attended), self_maps, cross_map


@DECODER_REGISTRY.register()
class AnchorDecoder(nn.Module):
    """Places of queries and cells pass the same perceptrons: one of both coordinates together, in self-attention and in
    standard cross-attention, and one of each coordinate alone, in row-column attention [P].

    The queries' ``position`` (B, Q, 2) is a point as logits, see :class:`AnchorPointQueries`. Layers share the heads,
    with no norm before them; boxes start at the points with a width and height of sigmoid(-2) = 0.12 [C].

    Args:
        num_layers, width, num_heads, ffn_width, dropout: of the layers. num_classes, activation: of the class head.
        attention: "row_column" or "standard" cross-attention. temperature: of the places' sine embedding.
        position_gain: above 0, for row-column attention: every layer starts by attending around the anchor points, the
            sharper the larger [R]; 0 is the authors' start.

    Attributes:
        position_width: of the queries' positions that this decoder reads.
    """

    captures = CAPTURES
    position_width = 2

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
        attention: str = "row_column",
        temperature: float = 10000.0,
        position_gain: float = 0.0,
    ):
        super().__init__()
        attention_class, embedding_class = attention_kind(attention)
        self.layers = nn.ModuleList(
            AnchorDecoderLayer(attention_class(width, num_heads, dropout), width, num_heads, ffn_width, dropout)
            for _ in range(num_layers)
        )
        self.point_embedding = PlaneEmbedding(width, temperature)
        self.axis_embedding = None if embedding_class is PlaneEmbedding else embedding_class(width, temperature)
        if position_gain:
            self._align(position_gain)
        self.heads = DetectionHeads(width, num_classes, activation, zero_boxes=True)
        nn.init.constant_(self.heads.box_head.layers[-1].bias[2:], -2.0)  # type: ignore[index, arg-type]

    @classmethod
    def from_config(cls, cfg):
        check_one_level(cfg, cls.__name__)
        return {
            **decoder_arguments(cfg),
            "attention": cfg.MODEL.DETR.ANCHOR.ATTENTION,
            "temperature": cfg.MODEL.DETR.POSITION_TEMPERATURE,
            "position_gain": cfg.MODEL.DETR.DECODER.POSITION_GAIN,
        }

    def _align(self, gain: float) -> None:
        if self.axis_embedding is None:
            raise ConfigError(
                f"MODEL.DETR.DECODER.POSITION_GAIN is {gain}, which AnchorDecoder has for row-column attention alone. "
                "Set it to 0.0, or MODEL.DETR.ANCHOR.ATTENTION to row_column."
            )
        self.axis_embedding.align(gain)  # type: ignore[operator]
        for layer in self.layers:
            layer.cross_attention.align()  # type: ignore[operator, union-attr]

    def forward(
        self, memory: Memory, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> list[DecoderOutput]:
        """Decodes queries; arguments and result as in :class:`DetrDecoder`, with ``position`` (B, Q, 2)."""
        start = position.float()
        points = start.sigmoid()
        (located,) = self.point_embedding.points(points)
        cross_embedding = self.point_embedding if self.axis_embedding is None else self.axis_embedding
        places, cells = cross_embedding.points(points), cross_embedding.cells(memory)  # type: ignore[operator]
        record = DecoderRecord(capture)
        for layer in self.layers:
            content, self_maps, cross_map = layer(content, located, places, cells, layout, memory, capture)
            record.add(content, self_maps, cross_map)
        hidden = torch.stack(record.hidden)
        boxes = (self.heads.box_head(hidden).float() + F.pad(start, (0, 2))).sigmoid()
        return record.outputs(hidden, self.heads.class_head(hidden), boxes, self.heads.activation, layout)
