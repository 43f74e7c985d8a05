"""The encoder of Anchor DETR (2109.07107)."""

from __future__ import annotations

from detectron2.config import configurable
from torch import Tensor, nn

from ...errors import ConfigError
from ...registry import ENCODER_REGISTRY, NECK_REGISTRY
from ...structures import Memory
from ..layers.feed_forward import FeedForward
from ..layers.row_column import attention_kind


class AnchorEncoderLayer(nn.Module):
    """Self-attention and feed-forward with residual sums and post-norm."""

    def __init__(self, attention: nn.Module, width: int, ffn_width: int, dropout: float):
        super().__init__()
        self.attention = attention
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, ffn_width, dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, places: tuple[Tensor, ...], cells: tuple[Tensor, ...], memory: Memory) -> Tensor:
        """(B, S, C) to (B, S, C); places and cells as in :class:`RowColumnAttention`."""
        attended, _ = self.attention(tokens, places, tokens, cells, memory)
        tokens = self.attention_norm(tokens + self.dropout(attended))
        return self.feed_forward_norm(tokens + self.dropout(self.feed_forward(tokens)))


@ENCODER_REGISTRY.register()
class AnchorEncoder(nn.Module):
    """Layers of row-column decoupled attention [P], or of standard attention.

    Places are embedded once and added to queries and keys of every layer; ``memory.position`` is not read. The authors
    share this embedding's perceptron with the decoder [C]; here encoder and decoder are separate parts and each has its
    own [R].

    Args:
        num_layers: 0 passes the tokens through. width, num_heads, ffn_width, dropout: of each layer.
        attention: "row_column" or "standard". temperature: of the places' sine embedding.
    """

    @configurable
    def __init__(
        self,
        *,
        num_layers: int,
        width: int,
        num_heads: int,
        ffn_width: int,
        dropout: float,
        attention: str = "row_column",
        temperature: float = 10000.0,
    ):
        super().__init__()
        attention_class, embedding_class = attention_kind(attention)
        self.embedding = embedding_class(width, temperature) if num_layers else None
        self.layers = nn.ModuleList(
            AnchorEncoderLayer(attention_class(width, num_heads, dropout), width, ffn_width, dropout)
            for _ in range(num_layers)
        )

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.DETR
        check_one_level(cfg, cls.__name__)
        return {
            "num_layers": node.ENCODER.NUM_LAYERS,
            "width": node.HIDDEN_DIM,
            "num_heads": node.NUM_HEADS,
            "ffn_width": node.FFN_DIM,
            "dropout": node.DROPOUT,
            "attention": node.ANCHOR.ATTENTION,
            "temperature": node.POSITION_TEMPERATURE,
        }

    def forward(self, memory: Memory) -> Tensor:
        """The tokens of ``memory`` encoded, (B, S, C)."""
        if self.embedding is None:
            return memory.tokens
        cells = self.embedding.cells(memory)  # type: ignore[operator]
        places = self.embedding.every_cell(cells)  # type: ignore[operator]
        tokens = memory.tokens
        for layer in self.layers:
            tokens = layer(tokens, places, cells, memory)
        return tokens


def check_one_level(cfg, part: str) -> None:
    """Raises ConfigError when the neck gives several levels to a part that reads one."""
    name = cfg.MODEL.DETR.NECK.NAME
    if name in NECK_REGISTRY and getattr(NECK_REGISTRY.get(name), "num_levels", None) != 0:
        raise ConfigError(
            f"MODEL.DETR.NECK.NAME is {name}, which gives several levels; {part} reads one. Set it to AnchorNeck or "
            "SingleLevelNeck."
        )
