"""The encoder of Deformable DETR (2010.04159): every cell of every level samples all levels.

Letters: B images, S memory tokens, C width, L levels.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import configurable
from torch import Tensor

from ...config.keys import key
from ...config.ranges import COUNT
from ...registry import ENCODER_REGISTRY
from ...structures import Memory
from ...structures.levels import cell_centres
from ..keys import NUM_LEVELS
from ..layers.deformable import DeformableAttention
from ..layers.initialisation import initialise_linear
from ..layers.module_list import ModuleList
from .base import Encoder, EncoderLayer


class DeformableEncoderLayer(EncoderLayer):
    """Deformable attention of tokens to each other."""

    attention: DeformableAttention

    def forward(self, tokens: Tensor, reference: Tensor, memory: Memory) -> Tensor:
        """(B, S, C) to (B, S, C); ``reference`` (B, S, L, 2)."""
        attended = self.attention(tokens + memory.position, reference, tokens, memory)
        return self.finish(tokens, attended)


@ENCODER_REGISTRY.register()
class DeformableEncoder(Encoder):
    """Layers of multi-scale deformable attention [P]; a token's reference point is its own cell on every level.

    Attributes:
        num_levels: L. num_points: sampled by a head on a level.
    """

    layers: ModuleList[DeformableEncoderLayer]

    num_levels: int = NUM_LEVELS
    num_points: int = key(4, "deformable: points of a head on a level", COUNT, path="MODEL.DETR.ENCODER.NUM_POINTS")

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.layers = ModuleList(self._layer() for _ in range(self.num_layers))
        initialise_linear(self)
        for layer in self.layers:
            layer.attention.reset_parameters()

    def _layer(self) -> DeformableEncoderLayer:
        attention = DeformableAttention(self.width, self.num_heads, self.num_levels, self.num_points)
        return DeformableEncoderLayer(attention, self.width, self.ffn_width, self.dropout)

    def forward(self, memory: Memory) -> Tensor:
        """See the base class; ``memory`` has levels."""
        assert memory.valid_ratios is not None
        reference = cell_centres(memory).unsqueeze(2) * memory.valid_ratios.unsqueeze(1)
        tokens = memory.tokens
        for layer in self.layers:
            tokens = layer(tokens, reference, memory)
        return tokens
