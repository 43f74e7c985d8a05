"""The encoder of Anchor DETR (2109.07107).

Letters: B images, C width, S memory tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from detectron2.config import configurable
from torch import Tensor

from ...registry import ENCODER_REGISTRY
from ...structures import Memory
from ..keys import ANCHOR_ATTENTION, POSITION_TEMPERATURE
from ..layers.module_list import ModuleList
from ..layers.row_column import ATTENTIONS, EMBEDDINGS, CellAttention, Embeddings
from .base import Encoder, EncoderLayer


class AnchorEncoderLayer(EncoderLayer):
    """Attention of cells to each other."""

    attention: CellAttention

    def forward(self, memory: Memory, points: Embeddings, cells: Embeddings) -> Tensor:
        """The tokens of ``memory``, (B, S, C); points and cells as in :meth:`RowColumnAttention.over_cells`."""
        attended, _ = self.attention.over_cells(memory.tokens, points, memory, cells)
        return self.finish(memory.tokens, attended)


@ENCODER_REGISTRY.register()
class AnchorEncoder(Encoder):
    """Layers of row-column decoupled attention [P], or of standard attention.

    Positions are embedded once and added to queries and keys of every layer; ``memory.position`` is not read. The
    authors share this embedding's perceptron with the decoder [C]; here encoder and decoder are separate parts and each
    has its own [R].

    Attributes:
        attention: "row_column" or "standard". temperature: of the positions' sine embedding.
    """

    takes_levels = False
    layers: ModuleList[AnchorEncoderLayer]

    attention: str = ANCHOR_ATTENTION
    temperature: float = POSITION_TEMPERATURE

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        embedding = EMBEDDINGS[self.attention]
        self.embedding = embedding(self.width, self.temperature) if self.num_layers else None
        self.layers = ModuleList(self._layer() for _ in range(self.num_layers))

    def _layer(self) -> AnchorEncoderLayer:
        attention = ATTENTIONS[self.attention](self.width, self.num_heads, self.dropout)
        return AnchorEncoderLayer(attention, self.width, self.ffn_width, self.dropout)

    def forward(self, memory: Memory) -> Tensor:
        """See the base class."""
        if self.embedding is None:
            return memory.tokens
        cells = self.embedding.cells(memory)
        points = self.embedding.every_cell(cells)
        for layer in self.layers:
            memory = dataclasses.replace(memory, tokens=layer(memory, points, cells))
        return memory.tokens
