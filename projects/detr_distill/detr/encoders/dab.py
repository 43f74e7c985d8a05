"""The encoder of DAB-DETR (2201.12329)."""

from __future__ import annotations

from typing import Any

from detectron2.config import configurable
from torch import Tensor

from ...registry import ENCODER_REGISTRY
from ...structures import Memory
from ..layers.feed_forward import PerceptronHead
from ..layers.initialisation import initialise_linear
from .transformer import TransformerEncoder


@ENCODER_REGISTRY.register()
class DabEncoder(TransformerEncoder):
    """The transformer encoder whose positions are scaled by the content before every layer [C]."""

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        for layer in self.layers:
            layer.feed_forward.use_learned_slope()
        self.scale_head = PerceptronHead(self.width, self.width, self.width, num_layers=2)
        initialise_linear(self.scale_head)

    def forward(self, memory: Memory) -> Tensor:
        """See the base class."""
        tokens = memory.tokens
        for layer in self.layers:
            tokens = layer(tokens, memory.position * self.scale_head(tokens), memory.key_mask)
        return tokens
