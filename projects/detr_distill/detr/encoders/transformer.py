"""Transformer encoders over the flattened feature map."""

from __future__ import annotations

from detectron2.config import configurable
from torch import Tensor, nn

from ...registry import ENCODER_REGISTRY
from ...structures import Memory
from ..layers.attention import MultiHeadAttention
from ..layers.feed_forward import Dropout, FeedForward
from ..layers.initialisation import initialise_linear


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each followed by a residual sum and layer norm (post-norm)."""

    def __init__(self, width: int, num_heads: int, ffn_width: int, dropout: float):
        super().__init__()
        self.attention = MultiHeadAttention(width, num_heads, dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, ffn_width, dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """(B, S, C) to (B, S, C); ``mask`` (B, 1, 1, S), True on padding."""
        located = tokens + position
        attended, _ = self.attention(located, located, tokens, mask=mask)
        tokens = self.attention_norm(tokens + self.dropout(attended))
        return self.feed_forward_norm(tokens + self.dropout(self.feed_forward(tokens)))


@ENCODER_REGISTRY.register()
class TransformerEncoder(nn.Module):
    """The encoder of DETR (2005.12872) [P]; positions are added to queries and keys of every layer.

    Args:
        num_layers: 0 passes the features through. width, num_heads, ffn_width, dropout: of each layer.
    """

    @configurable
    def __init__(self, *, num_layers: int, width: int, num_heads: int, ffn_width: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, num_heads, ffn_width, dropout) for _ in range(num_layers))
        initialise_linear(self)

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.DETR
        return {
            "num_layers": node.ENCODER.NUM_LAYERS,
            "width": node.HIDDEN_DIM,
            "num_heads": node.NUM_HEADS,
            "ffn_width": node.FFN_DIM,
            "dropout": node.DROPOUT,
        }

    def forward(self, memory: Memory) -> Tensor:
        """The tokens of ``memory`` encoded, (B, S, C)."""
        tokens = memory.tokens
        for layer in self.layers:
            tokens = layer(tokens, memory.position, memory.key_mask)
        return tokens
