"""The encoder of DAB-DETR (2201.12329)."""

from __future__ import annotations

from detectron2.config import configurable
from torch import Tensor

from ...registry import ENCODER_REGISTRY
from ...structures import Memory
from ..decoders.dab import use_learned_slope
from ..layers.feed_forward import PerceptronHead
from ..layers.initialisation import initialise_linear
from .transformer import TransformerEncoder


@ENCODER_REGISTRY.register()
class DabEncoder(TransformerEncoder):
    """The transformer encoder whose positions are scaled by the content before every layer [C]."""

    @configurable
    def __init__(self, *, num_layers: int, width: int, num_heads: int, ffn_width: int, dropout: float):
        super().__init__(num_layers=num_layers, width=width, num_heads=num_heads, ffn_width=ffn_width, dropout=dropout)
        use_learned_slope(self.layers)
        self.scale_head = PerceptronHead(width, width, width, num_layers=2)
        initialise_linear(self.scale_head)

    def forward(self, memory: Memory) -> Tensor:
        """As :class:`TransformerEncoder`."""
        tokens = memory.tokens
        for layer in self.layers:
            tokens = layer(tokens, memory.position * self.scale_head(tokens), memory.key_mask)
        return tokens
