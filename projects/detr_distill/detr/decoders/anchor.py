"""The decoder of Anchor DETR (2109.07107): queries stay at their anchor points, and boxes are offsets from them.

Letters: B images, Q queries, C width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor

from ...errors import ConfigError
from ...registry import DECODER_REGISTRY
from ...structures import CAPTURES, CROSS_ATTENTION, SELF_FACTORS, DecoderOutput, Keep, Memory
from ..keys import ANCHOR_ATTENTION, POSITION_GAIN, POSITION_TEMPERATURE
from ..layers.attention import GroupLayout, GroupMaps, Kept
from ..layers.module_list import ModuleList
from ..layers.row_column import (
    ATTENTIONS,
    AxisEmbedding,
    CellAttention,
    CellEmbedding,
    Embeddings,
    PlaneEmbedding,
    RowColumnAttention,
)
from .base import Decoder, DecoderRecord, LocatedDecoderLayer
from .heads import DetectionHeads


class AnchorDecoderLayer(LocatedDecoderLayer):
    """Standard self-attention, the chosen cross-attention, feed-forward."""

    cross_attention: CellAttention

    def __init__(self, cross_attention: CellAttention, width: int, num_heads: int, ffn_width: int, dropout: float):
        super().__init__(width, num_heads, ffn_width, dropout)
        self.cross_attention = cross_attention

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        points: Embeddings,
        cells: Embeddings,
        layout: GroupLayout,
        memory: Memory,
        capture: frozenset[str],
    ) -> tuple[Tensor, GroupMaps, Kept | None]:
        """(B, Q, C) to (B, Q, C), and the two maps where captured.

        Args:
            position: (B, Q, C), for self-attention. points, cells: as in :meth:`RowColumnAttention.over_cells`.
        """
        content, self_maps = self.attend_to_queries(content, position, layout, capture)
        attended, cross_map = self.cross_attention.over_cells(
            content, points, memory, cells, Keep.of(capture, CROSS_ATTENTION)
        )
        return self.finish(content, attended), self_maps, cross_map


@DECODER_REGISTRY.register()
class AnchorDecoder(Decoder):
    """Positions of queries and cells pass the same perceptrons.

    One is of both coordinates together, in self-attention and in standard cross-attention; one of each coordinate
    alone, in row-column attention [P].

    The queries' ``position`` (B, Q, 2) is a point as logits, see :class:`AnchorPointQueries`. Layers share the heads,
    with no norm before them; boxes start at the points with a width and height of sigmoid(-2) = 0.12 [C].

    Attributes:
        attention: "row_column" or "standard" cross-attention. temperature: of the positions' sine embedding.
        position_gain: above 0, for row-column attention: every layer starts by attending around the anchor points, the
            sharper the larger [R]; 0 is the authors' start.
    """

    captures = CAPTURES | {SELF_FACTORS}
    position_kind = "point_logits"
    takes_levels = False
    layers: ModuleList[AnchorDecoderLayer]

    attention: str = ANCHOR_ATTENTION
    temperature: float = POSITION_TEMPERATURE
    position_gain: float = POSITION_GAIN

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        width, temperature = self.width, self.temperature
        self.layers = ModuleList(self._layer() for _ in range(self.num_layers))
        self.point_embedding = PlaneEmbedding(width, temperature)
        self.axis_embedding = AxisEmbedding(width, temperature) if self.attention == "row_column" else None
        if self.position_gain:
            self._align()
        self.heads = DetectionHeads(width, self.num_classes, self.activation, zero_boxes=True)
        self.heads.start_size(-2.0)

    def _layer(self) -> AnchorDecoderLayer:
        attention = ATTENTIONS[self.attention](self.width, self.num_heads, self.dropout)
        return AnchorDecoderLayer(attention, *self.layer_sizes)

    def _align(self) -> None:
        if self.axis_embedding is None:
            raise ConfigError(
                f"MODEL.DETR.DECODER.POSITION_GAIN is {self.position_gain}, which AnchorDecoder has for row-column "
                "attention alone. Set it to 0.0, or MODEL.DETR.ANCHOR.ATTENTION to row_column."
            )
        self.axis_embedding.align(self.position_gain)
        for layer in self.layers:
            if isinstance(layer.cross_attention, RowColumnAttention):
                layer.cross_attention.align()

    def forward(
        self, memory: Memory, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> list[DecoderOutput]:
        """See the base class."""
        start = position.float()
        anchors = start.sigmoid()
        (located,) = self.point_embedding.points(anchors)
        embedding: CellEmbedding = self.point_embedding if self.axis_embedding is None else self.axis_embedding
        points, cells = embedding.points(anchors), embedding.cells(memory)
        record = DecoderRecord(capture)
        for layer in self.layers:
            content, self_maps, cross_map = layer(content, located, points, cells, layout, memory, capture)
            record.add(content, self_maps, cross_map)
        hidden = torch.stack(record.hidden)
        logits, boxes = self.heads(hidden, F.pad(start, (0, 2)))
        return record.outputs(hidden, logits, boxes, self.activation, layout)
