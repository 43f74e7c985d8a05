"""What all encoders share: the interface, and the frame of a layer.

Letters: B images, C width, S memory tokens, L levels.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from ...config.keys import key
from ...config.ranges import LAYERS_OR_NONE
from ...plugin import Plugin
from ...registry import ENCODER_REGISTRY
from ...structures import Memory
from ..keys import DROPOUT, FFN_DIM, HIDDEN_DIM, NUM_HEADS
from ..layers.feed_forward import Dropout, FeedForward


@ENCODER_REGISTRY.interface
class Encoder(Plugin):
    """Tokens to tokens that know of each other.

    Attributes:
        num_layers: 0 passes the tokens through. width, num_heads, ffn_width, dropout: of each layer.
        num_levels: L, where the encoder samples levels; None: it takes what the neck gives.
        takes_levels: False: it takes one plain map alone.
        neck_name: the neck that gives these levels, for messages.
    """

    section = "MODEL.DETR"
    num_levels: int | None = None
    takes_levels: ClassVar[bool] = True
    neck_name: ClassVar[str] = "MultiLevelNeck"

    num_layers: int = key(6, "0 passes the features through", LAYERS_OR_NONE, path="MODEL.DETR.ENCODER.NUM_LAYERS")
    width: int = HIDDEN_DIM
    num_heads: int = NUM_HEADS
    ffn_width: int = FFN_DIM
    dropout: float = DROPOUT

    @abstractmethod
    def forward(self, memory: Memory) -> Tensor:
        """The tokens of ``memory`` encoded, (B, S, C)."""


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each followed by a residual sum and layer norm (post-norm).

    A subclass runs the attention step.
    """

    def __init__(self, attention: nn.Module, width: int, ffn_width: int, dropout: float):
        super().__init__()
        self.attention = attention
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, ffn_width, dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def finish(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """Joins the attention's output and runs the feed-forward step: (B, S, C) each."""
        tokens = self.attention_norm(tokens + self.dropout(attended))
        return self.feed_forward_norm(tokens + self.dropout(self.feed_forward(tokens)))
