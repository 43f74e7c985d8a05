"""The encoder of DETR (2005.12872).

Letters: B images, C width, S memory tokens.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import configurable
from torch import Tensor

from ...registry import ENCODER_REGISTRY
from ...structures import Memory
from ..layers.attention import MultiHeadAttention
from ..layers.initialisation import initialise_linear
from ..layers.module_list import ModuleList
from .base import Encoder, EncoderLayer


class TransformerEncoderLayer(EncoderLayer):
    """Dense attention of tokens to each other; positions are added to queries and keys."""

    def forward(self, tokens: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """(B, S, C) to (B, S, C); ``mask`` (B, 1, 1, S), True on padding."""
        located = tokens + position
        attended, _ = self.attention(located, located, tokens, mask=mask)
        return self.finish(tokens, attended)


@ENCODER_REGISTRY.register()
class TransformerEncoder(Encoder):
    """The encoder of DETR [P]; positions are added to queries and keys of every layer."""

    layers: ModuleList[TransformerEncoderLayer]

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.layers = ModuleList(
            TransformerEncoderLayer(
                MultiHeadAttention(self.width, self.num_heads, self.dropout), self.width, self.ffn_width, self.dropout
            )
            for _ in range(self.num_layers)
        )
        initialise_linear(self)

    def forward(self, memory: Memory) -> Tensor:
        """See the base class."""
        tokens = memory.tokens
        for layer in self.layers:
            tokens = layer(tokens, memory.position, memory.key_mask)
        return tokens
