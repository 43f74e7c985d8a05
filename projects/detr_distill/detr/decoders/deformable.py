"""The decoders of Deformable DETR (2010.04159): queries sample the memory around their reference points or boxes.

Letters: B images, Q queries, C width, L levels.
"""

from __future__ import annotations

import math

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ...errors import ConfigError
from ...registry import DECODER_REGISTRY
from ...structures import SAMPLED_ATTENTION, SELF_ATTENTION, DecoderOutput, Memory, SampledPoints
from ..boxes import inverse_sigmoid
from ..layers.attention import GroupLayout, MultiHeadAttention
from ..layers.deformable import DeformableAttention
from ..layers.initialisation import initialise_linear
from ..layers.position import sine_embedding
from .base import DecoderLayer, DecoderRecord, decoder_arguments
from .heads import DetectionHeads


class DeformableDecoderLayer(DecoderLayer):
    """Dense self-attention, deformable cross-attention; positions are added to the queries of both."""

    def __init__(self, width: int, num_heads: int, ffn_width: int, dropout: float, num_levels: int, num_points: int):
        super().__init__(width, ffn_width, dropout)
        self.self_attention = MultiHeadAttention(width, num_heads, dropout)
        self.cross_attention = DeformableAttention(width, num_heads, num_levels, num_points)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        reference: Tensor,
        layout: GroupLayout,
        memory: Memory,
        capture: frozenset[str],
    ):
        """(B, Q, C) to (B, Q, C), and where captured each group's self-attention map and the points over the image.

        Args:
            reference: (B, Q, L, 2 or 4) over the padded levels. Others as in :class:`DetrDecoderLayer`.
        """
        located = content + position
        attended, maps = self.self_attention.within_groups(located, content, layout, SELF_ATTENTION in capture)
        content = self.self_attention_norm(content + self.dropout(attended))
        points = self.cross_attention.choose_points(content + position, reference, memory)
        attended = self.cross_attention.read(points, memory.tokens, memory)
        kept = _over_image(points, memory) if SAMPLED_ATTENTION in capture else None
        return self.finish(content, attended), maps, kept


@DECODER_REGISTRY.register()
class DeformableDecoder(nn.Module):
    """Reference points are read from the queries' positions by a linear layer; boxes are offsets from them [P].

    With box refinement every layer has heads of its own, and its box, without gradient, is the next layer's reference.

    Args:
        num_layers, width, num_heads, ffn_width, dropout: of the layers. num_classes, activation: of the class head.
        num_levels: L. num_points: sampled by a head on a level. box_refinement: see above.

    Attributes:
        captures: deformable attention has no dense map, but sampled points.
        position_width: of the queries' positions that this decoder reads. neck_name: the neck that gives the levels.
    """

    neck_name = "MultiLevelNeck"
    captures = frozenset({SELF_ATTENTION, SAMPLED_ATTENTION})
    # Logit of a box's first width and height, on the first layer's head [C].
    size_bias = -2.0

    @configurable
    def __init__(
        self,
        *,
        num_layers: int,
        width: int,
        num_heads: int,
        ffn_width: int,
        dropout: float,
        num_classes: int,
        activation: str,
        num_levels: int = 4,
        num_points: int = 4,
        box_refinement: bool = False,
    ):
        super().__init__()
        self.num_levels, self.width = num_levels, width
        self.box_refinement = box_refinement
        self.layers = nn.ModuleList(
            DeformableDecoderLayer(width, num_heads, ffn_width, dropout, num_levels, num_points)
            for _ in range(num_layers)
        )
        self._build_start()
        initialise_linear(self)
        for layer in self.layers:
            layer.cross_attention.reset_parameters()  # type: ignore[operator, union-attr]
        self.heads = nn.ModuleList(
            DetectionHeads(width, num_classes, activation, zero_boxes=True)
            for _ in range(num_layers if box_refinement else 1)
        )
        nn.init.constant_(self.heads[0].box_head.layers[-1].bias[2:], self.size_bias)  # type: ignore[union-attr, index]

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.DETR
        return {
            **decoder_arguments(cfg),
            "num_levels": node.NUM_LEVELS,
            "num_points": node.DECODER.NUM_POINTS,
            "box_refinement": node.DECODER.BOX_REFINEMENT,
        }

    def _build_start(self) -> None:
        self.position_width = self.width
        self.reference_points = nn.Linear(self.width, 2)
        nn.init.zeros_(self.reference_points.bias)

    def _start(self, content: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries to content (B, Q, C), position (B, Q, C) and reference (B, Q, 2 or 4) in [0, 1], float32."""
        return content, position, self.reference_points(position).float().sigmoid()

    def forward(
        self, memory: Memory, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> list[DecoderOutput]:
        """Decodes queries; arguments and result as in :class:`DetrDecoder`."""
        content, position, reference = self._start(content, position)
        record = DecoderRecord(capture)
        logits, boxes = [], []
        for index, layer in enumerate(self.layers):
            places = on_levels(reference, memory)
            content, maps, points = layer(content, position, places, layout, memory, capture)
            record.add(content, maps, points=points)
            heads = self.heads[index if self.box_refinement else 0]
            logits.append(heads.class_head(content))  # type: ignore[operator, union-attr]
            boxes.append(_refine(reference, heads.box_head(content).float()))  # type: ignore[operator, union-attr]
            if self.box_refinement:
                reference = boxes[-1].detach()
        activation: str = self.heads[0].activation  # type: ignore[assignment]
        return record.outputs(torch.stack(record.hidden), torch.stack(logits), torch.stack(boxes), activation, layout)


@DECODER_REGISTRY.register()
class DeformableBoxDecoder(DeformableDecoder):
    """The decoder of two-stage Deformable DETR: a query is a box, which gives its position and its content [P].

    Reads the queries' ``position`` (B, Q, 4), box logits; their ``content`` is added to what the box says.

    Args:
        temperature: of the boxes' sine embedding. Others as in :class:`DeformableDecoder`; boxes are always refined.
    """

    size_bias = 0.0

    @configurable
    def __init__(self, *, temperature: float = 10000.0, box_refinement: bool = True, **arguments):
        if not box_refinement:
            raise ConfigError(
                "MODEL.DETR.DECODER.BOX_REFINEMENT is False; DeformableBoxDecoder starts from boxes and refines them. "
                "Set it to True, or take DeformableDecoder with LearnedContentQueries."
            )
        super().__init__(box_refinement=True, **arguments)
        self.temperature = temperature

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "temperature": cfg.MODEL.DETR.DECODER.POINT_TEMPERATURE}

    def _build_start(self) -> None:
        self.position_width = 4
        self.start_projection = nn.Linear(2 * self.width, 2 * self.width)
        self.start_norm = nn.LayerNorm(2 * self.width)

    def _start(self, content: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reference = position.float().sigmoid()
        embedding = sine_embedding(reference * (2 * math.pi), self.width // 2, self.temperature)
        start = self.start_norm(self.start_projection(embedding.to(content.dtype)))
        position, own_content = start.split(self.width, dim=-1)
        return content + own_content, position, reference


def on_levels(reference: Tensor, memory: Memory) -> Tensor:
    """(B, Q, 2 or 4) over the image to (B, Q, L, 2 or 4) over each padded level."""
    ratios = memory.valid_ratios
    assert ratios is not None
    if reference.shape[-1] == 4:
        ratios = torch.cat([ratios, ratios], dim=-1)
    return reference.unsqueeze(2) * ratios.unsqueeze(1)


def _over_image(points: SampledPoints, memory: Memory) -> SampledPoints:
    """Points over the padded levels as points over the image without its padding."""
    assert memory.valid_ratios is not None
    return SampledPoints(points.locations / memory.valid_ratios[:, None, None, :, None, :], points.weights)


def _refine(reference: Tensor, offsets: Tensor) -> Tensor:
    """Boxes (B, Q, 4) from offsets (B, Q, 4) in logit space; a reference point moves the centre alone."""
    start = inverse_sigmoid(reference)
    if start.shape[-1] == 2:
        start = torch.cat([start, torch.zeros_like(start)], dim=-1)
    return (offsets + start).sigmoid()
