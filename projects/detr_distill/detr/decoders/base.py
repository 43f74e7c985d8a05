"""What all decoders share: the interface, the frame of a layer, and the stacking of the layers' outputs.

Letters: B images, L decoder layers, Q queries, C width, S memory tokens, H heads.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Protocol

from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ...config.keys import key
from ...config.ranges import LAYERS
from ...plugin import Plugin
from ...registry import DECODER_REGISTRY
from ...structures import (
    SAMPLED_ATTENTION,
    SELF_ATTENTION,
    AttentionFactors,
    DecoderOutput,
    Keep,
    Memory,
    SampledPoints,
)
from ..boxes import EPSILON
from ..keys import ACTIVATIONS, DROPOUT, FFN_DIM, HIDDEN_DIM, LOGIT_EPSILON, NUM_CLASSES, NUM_HEADS
from ..layers.attention import GroupLayout, GroupMaps, Kept, MultiHeadAttention
from ..layers.feed_forward import Dropout, FeedForward
from ..queries.base import PLACE_WIDTHS


@DECODER_REGISTRY.interface
class Decoder(Plugin):
    """Query groups and a memory to boxes, class logits and hidden states of every layer.

    Attributes:
        captures: which attention it can keep, and in which form, see structures/.
        position_kind: of the queries' positions that it reads.
        width, num_heads, ffn_width, dropout: of the layers. num_layers: L. num_classes: without "no object".
        activation: "softmax", with a "no object" column, or "sigmoid"; of the class head.
        num_levels: number of levels that it samples; None: it takes what the neck gives.
        takes_levels: False: it takes one plain map alone.
        neck_name: the neck that gives these levels, for messages.
        layers: L modules.
        logit_epsilon: how far from 0 and 1 references stay before their logit is taken; 0: ``published_epsilon``.
    """

    section = "MODEL.DETR"
    declares = ("captures", "position_kind")
    captures: ClassVar[frozenset[str]]
    position_kind: ClassVar[str]
    num_levels: int | None = None
    takes_levels: ClassVar[bool] = True
    neck_name: ClassVar[str] = "MultiLevelNeck"
    layers: nn.ModuleList
    published_epsilon: ClassVar[float] = EPSILON

    num_layers: int = key(6, "layers of the decoder", LAYERS, path="MODEL.DETR.DECODER.NUM_LAYERS")
    width: int = HIDDEN_DIM
    num_heads: int = NUM_HEADS
    ffn_width: int = FFN_DIM
    dropout: float = DROPOUT
    num_classes: int = NUM_CLASSES
    logit_epsilon: float = LOGIT_EPSILON

    @configurable
    def __init__(self, *, activation: str, **settings: Any):
        super().__init__(**settings)
        self.activation = activation

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**cls.read_keys(cfg), "activation": ACTIVATIONS[cfg.MODEL.DETR.LOSS.CLASSIFICATION]}

    @property
    def position_width(self) -> int:
        """Of the queries' positions that it reads."""
        return PLACE_WIDTHS.get(self.position_kind, self.width)

    @property
    def epsilon(self) -> float:
        """How far from 0 and 1 references stay before their logit is taken."""
        return self.logit_epsilon or self.published_epsilon

    @property
    def layer_sizes(self) -> tuple[int, int, int, float]:
        """What most layers are made of: width, heads, width of the feed-forward step, dropout."""
        return self.width, self.num_heads, self.ffn_width, self.dropout

    @abstractmethod
    def forward(
        self, memory: Memory, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> list[DecoderOutput]:
        """Decodes queries.

        Args:
            memory: encoder output. content: (B, Q, C) and position: (B, Q, ``position_width``) of all groups.
            layout: the groups. capture: which attention to keep.

        Returns:
            An output for each group of ``layout``.
        """

    def read_projection(self) -> nn.Module | None:
        """What a query reads of a token (B, S, C) that it attends to alone, in the last layer; None: nothing is known.

        Both linear layers of that layer's cross-attention, as they are, with their weights.
        """
        last = self.layers[-1]
        return last.read_projection() if isinstance(last, DecoderLayer) else None


class TokenReader(Protocol):
    """A cross-attention that says what a query reads of a token (B, S, C) that it attends to alone."""

    def read_projection(self) -> nn.Module: ...


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward with residual sums and post-norm.

    A subclass sets ``self.self_attention`` and ``self.cross_attention`` and gives the two attention steps.
    """

    cross_attention: TokenReader

    def __init__(self, width: int, ffn_width: int, dropout: float):
        super().__init__()
        self.self_attention_norm = nn.LayerNorm(width)
        self.cross_attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, ffn_width, dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def read_projection(self) -> nn.Module | None:
        """See :meth:`Decoder.read_projection`."""
        return self.cross_attention.read_projection()

    def finish(self, content: Tensor, attended: Tensor) -> Tensor:
        """Joins the cross-attention's output and runs the feed-forward step."""
        content = self.cross_attention_norm(content + self.dropout(attended))
        return self.feed_forward_norm(content + self.dropout(self.feed_forward(content)))


class LocatedDecoderLayer(DecoderLayer):
    """Positions are added to queries and keys of self-attention, as in DETR (2005.12872) [P]."""

    def __init__(self, width: int, num_heads: int, ffn_width: int, dropout: float):
        super().__init__(width, ffn_width, dropout)
        self.self_attention = MultiHeadAttention(width, num_heads, dropout)

    def attend_to_queries(
        self, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> tuple[Tensor, GroupMaps]:
        """The self-attention step: (B, Q, C) to (B, Q, C), and each group's map where captured."""
        located = content + position
        attended, maps = self.self_attention.within_groups(located, content, layout, Keep.of(capture, SELF_ATTENTION))
        return self.self_attention_norm(content + self.dropout(attended)), maps


class DecoderRecord:
    """Collects what each layer gives, and divides it among the query groups."""

    def __init__(self, capture: frozenset[str]):
        self.capture = capture
        self.hidden: list[Tensor] = []
        self.self_maps: list[tuple[Kept, ...]] = []
        self.cross_maps: list[Kept] = []
        self.points: list[SampledPoints] = []

    def add(
        self,
        hidden: Tensor,
        self_maps: GroupMaps,
        cross_map: Kept | None = None,
        points: SampledPoints | None = None,
    ) -> None:
        """One layer: (B, Q, C) of all groups, each group's (B, H, Qg, Qg) map, and the (B, H, Q, S) map of all.

        Where factors are asked for, they stand in the maps' place.
        A deformable layer has ``points`` over the image, of all groups, in place of the second map.
        """
        self.hidden.append(hidden)
        if self_maps is not None:
            self.self_maps.append(self_maps)
        if cross_map is not None:
            self.cross_maps.append(cross_map)
        if points is not None:
            self.points.append(points)

    def outputs(
        self, hidden: Tensor, logits: Tensor, boxes: Tensor, activation: str, layout: GroupLayout
    ) -> list[DecoderOutput]:
        """One output a group, from values (L, B, Q, .) of all groups."""
        sizes = list(layout.sizes)
        # Split, not sliced: the gradient of parts is joined once instead of written into zeros part by part.
        parts = zip(*(values.split(sizes, dim=2) for values in (logits, boxes, hidden)), strict=True)
        outputs = [DecoderOutput(logits, boxes, hidden, activation) for logits, boxes, hidden in parts]
        cross_maps = [maps.split(sizes, dim=2) for maps in self.cross_maps]
        for group, output in enumerate(outputs):
            own_maps = [maps[group] for maps in self.self_maps]
            output.self_attention, output.self_factors = _by_kind(own_maps)
            output.cross_attention, output.cross_factors = _by_kind([maps[group] for maps in cross_maps])
            if SAMPLED_ATTENTION in self.capture:
                output.sampled_attention = tuple(points.take_queries(layout.rows(group)) for points in self.points)
        return outputs


def _by_kind(kept: list[Kept]) -> tuple[tuple[Tensor, ...] | None, tuple[AttentionFactors, ...] | None]:
    """What the layers kept as maps and as factors; one of the two is None, or both."""
    maps = tuple(values for values in kept if isinstance(values, Tensor))
    factors = tuple(values for values in kept if isinstance(values, AttentionFactors))
    return maps or None, factors or None
