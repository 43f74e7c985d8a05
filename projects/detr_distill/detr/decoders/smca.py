"""The decoder of SMCA-DETR (2101.07448): cross-attention is drawn towards the point that every query estimates.

Letters: B images, Q queries, C width, L levels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ...config.keys import key
from ...config.ranges import POSITIVE
from ...registry import DECODER_REGISTRY, NECK_REGISTRY, look_up
from ...structures import CAPTURES, CROSS_ATTENTION, SELF_FACTORS, DecoderOutput, Keep, Memory
from ..layers.attention import GroupLayout, GroupMaps, Kept
from ..layers.feed_forward import PerceptronHead
from ..layers.initialisation import initialise_linear
from ..layers.module_list import ModuleList
from ..layers.smca import ModulatedAttention, SpatialModulation, cell_axes
from .base import Decoder, DecoderRecord, LocatedDecoderLayer
from .heads import DetectionHeads


class SmcaDecoderLayer(LocatedDecoderLayer):
    """Self-attention, modulated cross-attention, feed-forward.

    With several levels a query weighs them by a softmax of its own [P], for each layer anew [R].
    """

    cross_attention: ModulatedAttention

    def __init__(self, width: int, num_heads: int, ffn_width: int, dropout: float, num_levels: int, smoothness: float):
        super().__init__(width, num_heads, ffn_width, dropout)
        self.cross_attention = ModulatedAttention(width, num_heads, dropout)
        self.estimate_norm = nn.LayerNorm(width)
        self.modulation = SpatialModulation(width, num_heads, smoothness)
        self.level_head = nn.Linear(width, num_levels) if num_levels > 1 else None

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        estimate: Tensor,
        centre: Tensor,
        axes: list[tuple[Tensor, Tensor]],
        layout: GroupLayout,
        memory: Memory,
        capture: frozenset[str],
    ) -> tuple[Tensor, GroupMaps, Kept | None]:
        """(B, Q, C) to (B, Q, C), and the two maps where captured.

        Args:
            estimate: (B, Q, C), from which centre, scales and level weights are read.
            centre, axes: see :class:`SpatialModulation`.
        """
        log_maps = self.modulation(estimate, centre, axes)
        weights = None if self.level_head is None else self.level_head(estimate).float().softmax(-1)
        content, self_maps = self.attend_to_queries(content, position, layout, capture)
        attended, cross_map = self.cross_attention.over_levels(
            content + position, memory, log_maps, weights, Keep.of(capture, CROSS_ATTENTION)
        )
        return self.finish(content, attended), self_maps, cross_map


@DECODER_REGISTRY.register()
class SmcaDecoder(Decoder):
    """Every query estimates a centre in the first layer; attention and boxes start from it in all layers [P].

    Args:
        num_levels: L.

    Attributes:
        num_levels: L, or None for a plain map or a single level. smoothness: see :class:`SpatialModulation`.
    """

    captures = CAPTURES | {SELF_FACTORS}
    position_kind = "embedding"
    layers: ModuleList[SmcaDecoderLayer]

    smoothness: float = key(
        8.0,
        "`SmcaDecoder`: divisor in the Gaussians around the queries' centres, the larger the wider",
        POSITIVE,
        path="MODEL.DETR.SMCA.SMOOTHNESS",
    )

    @configurable
    def __init__(self, *, num_levels: int = 1, **settings: Any):
        super().__init__(**settings)
        self.num_levels = num_levels if num_levels > 1 else None
        width = self.width
        self.layers = ModuleList(
            SmcaDecoderLayer(*self.layer_sizes, num_levels, self.smoothness) for _ in range(self.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.centre_head = PerceptronHead(width, width, 2, num_layers=3)  # [C]; two in the paper
        initialise_linear(self)
        for layer in self.layers:
            layer.modulation.reset_parameters()
        self.heads = DetectionHeads(width, self.num_classes, self.activation, zero_boxes=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        neck = look_up(NECK_REGISTRY, cfg.MODEL.DETR.NECK.NAME, "MODEL.DETR.NECK.NAME")
        return {**super().from_config(cfg), "num_levels": cfg.MODEL.DETR.NUM_LEVELS if neck.has_levels else 1}

    def forward(
        self, memory: Memory, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> list[DecoderOutput]:
        """See the base class."""
        axes, extent = cell_axes(memory)
        record = DecoderRecord(capture)
        for index, layer in enumerate(self.layers):
            estimate = layer.estimate_norm(content + position)
            if index == 0:
                start = self.centre_head(estimate).float()
                centre = start.sigmoid() * extent
            content, self_maps, cross_map = layer(content, position, estimate, centre, axes, layout, memory, capture)
            record.add(content, self_maps, cross_map)
        hidden = self.norm(torch.stack(record.hidden))
        logits, boxes = self.heads(hidden, F.pad(start, (0, 2)))
        return record.outputs(hidden, logits, boxes, self.activation, layout)
