"""The decoders of Deformable DETR (2010.04159): queries sample the memory around their reference points or boxes.

Letters: B images, Q queries, C width, L levels.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from ...config.keys import key
from ...config.ranges import COUNT
from ...errors import ConfigError
from ...registry import DECODER_REGISTRY
from ...structures import SAMPLED_ATTENTION, SELF_ATTENTION, SELF_FACTORS, DecoderOutput, Memory, SampledPoints
from ..boxes import inverse_sigmoid
from ..keys import NUM_LEVELS, POINT_TEMPERATURE
from ..layers.attention import GroupLayout, GroupMaps
from ..layers.deformable import DeformableAttention, project_values
from ..layers.initialisation import initialise_linear
from ..layers.module_list import ModuleList
from ..layers.position import sine_embedding
from .base import Decoder, DecoderRecord, LocatedDecoderLayer
from .heads import DetectionHeads


class DeformableDecoderLayer(LocatedDecoderLayer):
    """Dense self-attention, deformable cross-attention; positions are added to the queries of both."""

    cross_attention: DeformableAttention

    def __init__(self, width: int, num_heads: int, ffn_width: int, dropout: float, num_levels: int, num_points: int):
        super().__init__(width, num_heads, ffn_width, dropout)
        self.cross_attention = DeformableAttention(width, num_heads, num_levels, num_points)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        reference: Tensor,
        values: Tensor,
        layout: GroupLayout,
        memory: Memory,
        capture: frozenset[str],
    ) -> tuple[Tensor, GroupMaps, SampledPoints | None]:
        """(B, Q, C) to (B, Q, C), and where captured each group's self-attention map and the points over the image.

        Args:
            reference: (B, Q, L, 2 or 4) over the padded levels. values: of :func:`project_values`.
                Others as in :class:`DetrDecoderLayer`.
        """
        content, maps = self.attend_to_queries(content, position, layout, capture)
        points = self.cross_attention.choose_points(content + position, reference, memory)
        attended = self.cross_attention.read_values(points, values, memory)
        kept = _over_image(points, memory) if SAMPLED_ATTENTION in capture else None
        return self.finish(content, attended), maps, kept


class SamplingDecoder(Decoder):
    """Layers of deformable attention, with heads for all of them or of their own.

    Deformable attention has no dense map, but sampled points.

    Attributes:
        num_levels: L. num_points: sampled by a head on a level.
        size_bias: logit that the first layer's head adds to a box's width and height at the start [C].
    """

    captures = frozenset({SELF_ATTENTION, SELF_FACTORS, SAMPLED_ATTENTION})
    size_bias: ClassVar[float] = -2.0
    layers: ModuleList[DeformableDecoderLayer]

    num_levels: int = NUM_LEVELS
    num_points: int = key(4, "deformable: points of a head on a level", COUNT, path="MODEL.DETR.DECODER.NUM_POINTS")

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.layers = ModuleList(
            DeformableDecoderLayer(*self.layer_sizes, self.num_levels, self.num_points) for _ in range(self.num_layers)
        )
        self._build_start()
        initialise_linear(self)
        for layer in self.layers:
            layer.cross_attention.reset_parameters()
        self.heads = ModuleList(
            DetectionHeads(self.width, self.num_classes, self.activation, zero_boxes=True)
            for _ in range(self.num_layers if self.has_own_heads else 1)
        )
        self.heads[0].start_size(self.size_bias)

    @property
    @abstractmethod
    def has_own_heads(self) -> bool:
        """Whether every layer has class and box heads of its own."""

    @abstractmethod
    def _build_start(self) -> None:
        """Makes what the decoder has beside layers and heads."""


@DECODER_REGISTRY.register()
class DeformableDecoder(SamplingDecoder):
    """Reference points are read from the queries' positions by a linear layer; boxes are offsets from them [P].

    With box refinement every layer has heads of its own, and its box, without gradient, is the next layer's reference.

    Attributes:
        box_refinement: see above.
    """

    position_kind = "embedding"

    box_refinement: bool = key(
        False,
        "deformable decoders: a layer's boxes are the next layer's references, with heads of its own for each layer",
        path="MODEL.DETR.DECODER.BOX_REFINEMENT",
    )

    @property
    def has_own_heads(self) -> bool:
        """With box refinement."""
        return self.box_refinement

    def _build_start(self) -> None:
        self.reference_points = nn.Linear(self.width, 2)
        nn.init.zeros_(self.reference_points.bias)

    def _start(self, content: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries to content (B, Q, C), position (B, Q, C) and reference (B, Q, 2 or 4) in [0, 1], float32."""
        return content, position, self.reference_points(position).float().sigmoid()

    def forward(
        self, memory: Memory, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> list[DecoderOutput]:
        """See the base class."""
        content, position, reference = self._start(content, position)
        record = DecoderRecord(capture)
        logits, boxes = [], []
        sampled = on_levels(reference, memory)
        values = project_values([layer.cross_attention for layer in self.layers], memory)
        for index, layer in enumerate(self.layers):
            content, maps, points = layer(content, position, sampled, values[index], layout, memory, capture)
            record.add(content, maps, points=points)
            if self.box_refinement:
                heads = self.heads[index]
                logits.append(heads.class_head(content))
                boxes.append(_refine(reference, heads.box_head(content).float(), self.epsilon))
                reference = boxes[-1].detach()
                sampled = on_levels(reference, memory)
        hidden = torch.stack(record.hidden)
        if self.box_refinement:
            return record.outputs(hidden, torch.stack(logits), torch.stack(boxes), self.activation, layout)
        refined = _refine(reference, self.heads[0].box_head(hidden).float(), self.epsilon)
        return record.outputs(hidden, self.heads[0].class_head(hidden), refined, self.activation, layout)


@DECODER_REGISTRY.register()
class DeformableBoxDecoder(DeformableDecoder):
    """The decoder of two-stage Deformable DETR: a query is a box, which gives its position and its content [P].

    Reads the queries' ``position`` (B, Q, 4), box logits; their ``content`` is added to what the box says. Boxes are
    always refined.

    Attributes:
        temperature: of the boxes' sine embedding.
    """

    position_kind = "box_logits"
    size_bias = 0.0

    temperature: float = POINT_TEMPERATURE

    @configurable
    def __init__(self, *, box_refinement: bool = True, **settings: Any):
        if not box_refinement:
            raise ConfigError(
                "MODEL.DETR.DECODER.BOX_REFINEMENT is False; DeformableBoxDecoder starts from boxes and refines them. "
                "Set it to True, or take DeformableDecoder with LearnedContentQueries."
            )
        super().__init__(box_refinement=True, **settings)

    def _build_start(self) -> None:
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


def _refine(reference: Tensor, offsets: Tensor, epsilon: float) -> Tensor:
    """Boxes (..., 4) from offsets (..., 4) in logit space; a reference point (B, Q, 2) moves the centre alone."""
    start = inverse_sigmoid(reference, epsilon)
    if start.shape[-1] == 2:
        start = F.pad(start, (0, 2))
    return (offsets + start).sigmoid()
