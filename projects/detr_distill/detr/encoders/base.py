"""What all encoders share.

Letters: B images, C width, S memory tokens, L levels.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from ...config.keys import key
from ...config.ranges import NOT_NEGATIVE
from ...plugin import Plugin
from ...registry import ENCODER_REGISTRY
from ...structures import Memory
from ..keys import DROPOUT, FFN_DIM, HIDDEN_DIM, NUM_HEADS


@ENCODER_REGISTRY.interface
class Encoder(Plugin):
    """Tokens to tokens that know of each other.

    Attributes:
        num_layers: 0 passes the tokens through. width, num_heads, ffn_width, dropout: of each layer.
        num_levels: L, where the encoder samples levels; None: it takes what the neck gives.
        neck_name: the neck that gives these levels, for messages.
    """

    section = "MODEL.DETR"
    num_levels: int | None = None
    neck_name: str = "MultiLevelNeck"

    num_layers: int = key(6, "0 passes the features through", NOT_NEGATIVE, path="MODEL.DETR.ENCODER.NUM_LAYERS")
    width: int = HIDDEN_DIM
    num_heads: int = NUM_HEADS
    ffn_width: int = FFN_DIM
    dropout: float = DROPOUT

    @abstractmethod
    def forward(self, memory: Memory) -> Tensor:
        """The tokens of ``memory`` encoded, (B, S, C)."""
