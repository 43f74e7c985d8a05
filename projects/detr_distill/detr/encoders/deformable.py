"""The encoder of Deformable DETR (2010.04159): every cell of every level samples all levels.

Letters: B images, S memory tokens, C width, L levels.
"""

from __future__ import annotations

from detectron2.config import configurable
from torch import Tensor, nn

from ...registry import ENCODER_REGISTRY
from ...structures import Memory
from ...structures.levels import cell_centres
from ..layers.deformable import DeformableAttention
from ..layers.feed_forward import Dropout, FeedForward
from ..layers.initialisation import initialise_linear


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward with residual sums and post-norm."""

    def __init__(self, width: int, num_heads: int, ffn_width: int, dropout: float, num_levels: int, num_points: int):
        super().__init__()
        self.attention = DeformableAttention(width, num_heads, num_levels, num_points)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, ffn_width, dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor, reference: Tensor, memory: Memory) -> Tensor:
        """(B, S, C) to (B, S, C); ``reference`` (B, S, L, 2)."""
        attended = self.attention(tokens + memory.position, reference, tokens, memory)
        tokens = self.attention_norm(tokens + self.dropout(attended))
        return self.feed_forward_norm(tokens + self.dropout(self.feed_forward(tokens)))


@ENCODER_REGISTRY.register()
class DeformableEncoder(nn.Module):
    """Layers of multi-scale deformable attention [P]; a token's reference point is its own place on every level.

    Args:
        num_layers: 0 passes the tokens through. width, num_heads, ffn_width, dropout: of each layer.
        num_levels: L. num_points: sampled by a head on a level.

    Attributes:
        neck_name: the neck that gives these levels.
    """

    neck_name = "MultiLevelNeck"

    @configurable
    def __init__(
        self,
        *,
        num_layers: int,
        width: int,
        num_heads: int,
        ffn_width: int,
        dropout: float,
        num_levels: int = 4,
        num_points: int = 4,
    ):
        super().__init__()
        self.num_levels = num_levels
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(width, num_heads, ffn_width, dropout, num_levels, num_points)
            for _ in range(num_layers)
        )
        initialise_linear(self)
        for layer in self.layers:
            layer.attention.reset_parameters()  # type: ignore[operator, union-attr]

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.DETR
        return {
            "num_layers": node.ENCODER.NUM_LAYERS,
            "width": node.HIDDEN_DIM,
            "num_heads": node.NUM_HEADS,
            "ffn_width": node.FFN_DIM,
            "dropout": node.DROPOUT,
            "num_levels": node.NUM_LEVELS,
            "num_points": node.ENCODER.NUM_POINTS,
        }

    def forward(self, memory: Memory) -> Tensor:
        """Memory that is not encoded yet to its encoded tokens (B, S, C)."""
        assert memory.valid_ratios is not None
        reference = cell_centres(memory).unsqueeze(2) * memory.valid_ratios.unsqueeze(1)
        tokens = memory.tokens
        for layer in self.layers:
            tokens = layer(tokens, reference, memory)
        return tokens
