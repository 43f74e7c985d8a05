"""The decoder of SMCA-DETR (2101.07448): cross-attention is drawn towards the place that every query estimates.

Letters: B images, Q queries, C width, L levels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from ...registry import DECODER_REGISTRY
from ...structures import CAPTURES, CROSS_ATTENTION, SELF_ATTENTION, DecoderOutput, Memory
from ..layers.attention import GroupLayout, MultiHeadAttention
from ..layers.feed_forward import PerceptronHead
from ..layers.initialisation import initialise_linear
from ..layers.smca import ModulatedAttention, SpatialModulation, cell_axes
from .base import DecoderLayer, DecoderRecord, decoder_arguments
from .heads import DetectionHeads


class SmcaDecoderLayer(DecoderLayer):
    """Self-attention, modulated cross-attention, feed-forward.

    With several levels a query weighs them by a softmax of its own [P], for each layer anew [R].
    """

    def __init__(self, width: int, num_heads: int, ffn_width: int, dropout: float, num_levels: int, smoothness: float):
        super().__init__(width, ffn_width, dropout)
        self.self_attention = MultiHeadAttention(width, num_heads, dropout)
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
    ):
        """(B, Q, C) to (B, Q, C), and the two maps where captured.

        Args:
            estimate: (B, Q, C), from which place, scales and level weights are read.
            centre, axes: see :class:`SpatialModulation`.
        """
        log_maps = self.modulation(estimate, centre, axes)
        weights = None if self.level_head is None else self.level_head(estimate).float().softmax(-1)
        attended, self_maps = self.self_attention.within_groups(
            content + position, content, layout, SELF_ATTENTION in capture
        )
        content = self.self_attention_norm(content + self.dropout(attended))
        attended, cross_map = self.cross_attention.over_levels(
            content + position, memory, log_maps, weights, CROSS_ATTENTION in capture
        )
        return self.finish(content, attended), self_maps, cross_map


@DECODER_REGISTRY.register()
class SmcaDecoder(nn.Module):
    """Every query estimates a centre in the first layer; attention and boxes start from it in all layers [P].

    Args:
        num_layers, width, num_heads, ffn_width, dropout: of the layers. num_classes, activation: of the class head.
        num_levels: L. smoothness: of the Gaussians, see :class:`SpatialModulation`.

    Attributes:
        num_levels: L, or None for a neck of one level. neck_name: the neck that gives several.
        position_width: of the queries' positions that this decoder reads.
    """

    captures = CAPTURES
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
        num_classes: int,
        activation: str,
        num_levels: int = 1,
        smoothness: float = 8.0,
    ):
        super().__init__()
        self.num_levels = num_levels if num_levels > 1 else None
        self.position_width = width
        self.layers = nn.ModuleList(
            SmcaDecoderLayer(width, num_heads, ffn_width, dropout, num_levels, smoothness) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.centre_head = PerceptronHead(width, width, 2, num_layers=3)  # [C]; two in the paper
        initialise_linear(self)
        for layer in self.layers:
            layer.modulation.reset_parameters()  # type: ignore[operator, union-attr]
        self.heads = DetectionHeads(width, num_classes, activation, zero_boxes=False)

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.DETR
        return {
            **decoder_arguments(cfg),
            "num_levels": 1 if node.NECK.NAME == "SingleLevelNeck" else node.NUM_LEVELS,
            "smoothness": node.SMCA.SMOOTHNESS,
        }

    def forward(
        self, memory: Memory, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> list[DecoderOutput]:
        """Decodes queries; arguments and result as in :class:`DetrDecoder`."""
        axes, extent = cell_axes(memory)
        record = DecoderRecord(capture)
        for index, layer in enumerate(self.layers):
            estimate = layer.estimate_norm(content + position)  # type: ignore[operator, union-attr]
            if index == 0:
                start = self.centre_head(estimate).float()
                centre = start.sigmoid() * extent
            content, self_maps, cross_map = layer(content, position, estimate, centre, axes, layout, memory, capture)
            record.add(self.norm(content), self_maps, cross_map)
        hidden = torch.stack(record.hidden)
        boxes = (self.heads.box_head(hidden).float() + F.pad(start, (0, 2))).sigmoid()
        return record.outputs(hidden, self.heads.class_head(hidden), boxes, self.heads.activation, layout)
