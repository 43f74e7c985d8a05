"""What all transformer decoders share: heads, class prior, stacking of the layers' outputs.

Every decoder says in ``position_width`` how wide the queries' positions are that it reads, 4 for boxes, and in
``captures`` which attention it can keep.
"""

from __future__ import annotations

from torch import Tensor, nn

from ...structures import CROSS_ATTENTION, SAMPLED_ATTENTION, SELF_ATTENTION, DecoderOutput, SampledPoints
from ..layers.attention import GroupLayout
from ..layers.feed_forward import Dropout, FeedForward


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward with residual sums and post-norm.

    A subclass sets ``self.self_attention`` and ``self.cross_attention`` and gives the two attention steps.
    """

    def __init__(self, width: int, ffn_width: int, dropout: float):
        super().__init__()
        self.self_attention_norm = nn.LayerNorm(width)
        self.cross_attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, ffn_width, dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def finish(self, content: Tensor, attended: Tensor) -> Tensor:
        """Joins the cross-attention's output and runs the feed-forward step."""
        content = self.cross_attention_norm(content + self.dropout(attended))
        return self.feed_forward_norm(content + self.dropout(self.feed_forward(content)))


class DecoderRecord:
    """Collects what each layer gives, and divides it among the query groups."""

    def __init__(self, capture: frozenset[str]):
        self.capture = capture
        self.hidden: list[Tensor] = []
        self.self_maps: list[tuple[Tensor, ...]] = []
        self.cross_maps: list[Tensor] = []
        self.points: list[SampledPoints] = []

    def add(
        self,
        hidden: Tensor,
        self_maps: tuple[Tensor, ...] | None,
        cross_map: Tensor | None = None,
        points: SampledPoints | None = None,
    ) -> None:
        """One layer: (B, Q, C) of all groups, each group's (B, H, Qg, Qg) map, and the (B, H, Q, S) map of all.

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
        outputs = [DecoderOutput(scores, places, values, activation) for scores, places, values in parts]
        cross_maps = [maps.split(sizes, dim=2) for maps in self.cross_maps]
        for group, output in enumerate(outputs):
            if SELF_ATTENTION in self.capture:
                output.self_attention = tuple(maps[group] for maps in self.self_maps)
            if CROSS_ATTENTION in self.capture:
                output.cross_attention = tuple(maps[group] for maps in cross_maps)
            if SAMPLED_ATTENTION in self.capture:
                output.sampled_attention = tuple(points.take_queries(layout.rows(group)) for points in self.points)
        return outputs


def decoder_arguments(cfg) -> dict:
    """Constructor arguments that every decoder takes from the configuration."""
    node = cfg.MODEL.DETR
    return {
        "num_layers": node.DECODER.NUM_LAYERS,
        "width": node.HIDDEN_DIM,
        "num_heads": node.NUM_HEADS,
        "ffn_width": node.FFN_DIM,
        "dropout": node.DROPOUT,
        "num_classes": node.NUM_CLASSES,
        "activation": "softmax" if node.LOSS.CLASSIFICATION == "softmax" else "sigmoid",
    }
