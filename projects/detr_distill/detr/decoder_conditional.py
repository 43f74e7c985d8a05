"""The decoder of Conditional DETR (2108.06152): content and position attend side by side."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ..registry import DECODER_REGISTRY
from ..structures import CAPTURES, CROSS_ATTENTION, SELF_ATTENTION, DecoderOutput, Memory
from .attention import GroupLayout, PerceptronHead, attend, attend_within_groups, check_heads, split_heads
from .boxes import inverse_sigmoid
from .decoder import DecoderLayer, DecoderRecord, DetectionHeads, decoder_arguments
from .encoder import initialise_linear
from .position import point_positions


class ConditionalSelfAttention(nn.Module):
    """Self-attention whose content and position have their own projections, summed."""

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        check_heads(width, num_heads)
        self.num_heads, self.dropout = num_heads, dropout
        self.query_content = nn.Linear(width, width)
        self.query_position = nn.Linear(width, width)
        self.key_content = nn.Linear(width, width)
        self.key_position = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, content: Tensor, position: Tensor, layout: GroupLayout, capture: bool):
        """(B, Q, C) content and position of all groups to (B, Q, C), and each group's map where captured."""
        attended, maps = attend_within_groups(
            split_heads(self.query_content(content) + self.query_position(position), self.num_heads),
            split_heads(self.key_content(content) + self.key_position(position), self.num_heads),
            split_heads(self.value(content), self.num_heads),
            layout,
            dropout=self.dropout if self.training else 0.0,
            capture=capture,
        )
        return self.output(attended), maps


class ConditionalCrossAttention(nn.Module):
    """Cross-attention in which each head compares content with content and position with position, concatenated.

    The first layer adds the query's learned position to its content, and the key's position to the key's content [C].
    """

    def __init__(self, width: int, num_heads: int, dropout: float, is_first: bool):
        super().__init__()
        check_heads(width, num_heads)
        self.num_heads, self.dropout = num_heads, dropout
        self.query_content = nn.Linear(width, width)
        self.query_position = nn.Linear(width, width) if is_first else None
        self.query_sine = nn.Linear(width, width)
        self.key_content = nn.Linear(width, width)
        self.key_position = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, content: Tensor, position: Tensor, sine: Tensor, memory: Memory, capture: bool):
        """Attends to ``memory``.

        Args:
            content, position: (B, Q, C). sine: (B, Q, C), the modulated embedding of the reference points.

        Returns:
            (B, Q, C), and the map (B, H, Q, S) or None.
        """
        query, key = self.query_content(content), self.key_content(memory.tokens)
        key_position = self.key_position(memory.position).expand_as(key)
        if self.query_position is not None:
            query = query + self.query_position(position)
            key = key + key_position
        attended, attention = attend(
            torch.cat([self._split(query), self._split(self.query_sine(sine))], dim=-1),
            torch.cat([self._split(key), self._split(key_position)], dim=-1),
            self._split(self.value(memory.tokens)),
            mask=memory.key_mask,
            dropout=self.dropout if self.training else 0.0,
            capture=capture,
        )
        return self.output(attended), attention

    @torch.no_grad()
    def align_positions(self, gain: float) -> None:
        """Starts both position projections as the same scaled permutation [R].

        The product of two sine embeddings is largest where the positions agree, so attention starts around the
        reference point instead of anywhere; small models trained for minutes need that. The permutation deals the
        sine-cosine pairs out to the heads in turn, so that each sees rows and columns, coarse and fine.
        """
        width = self.value.in_features
        pairs = torch.arange(width).view(-1, 2)
        dealt = torch.cat([pairs[head :: self.num_heads].flatten() for head in range(self.num_heads)])
        for projection in (self.query_sine, self.key_position):
            projection.weight.copy_(gain * torch.eye(width)[dealt])
            projection.bias.zero_()

    def _split(self, values: Tensor) -> Tensor:
        return split_heads(values, self.num_heads)


class ConditionalDecoderLayer(DecoderLayer):
    """One layer; see the two attentions above."""

    def __init__(self, width: int, num_heads: int, ffn_width: int, dropout: float, is_first: bool):
        super().__init__(width, ffn_width, dropout)
        self.self_attention = ConditionalSelfAttention(width, num_heads, dropout)
        self.cross_attention = ConditionalCrossAttention(width, num_heads, dropout, is_first)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        sine: Tensor,
        layout: GroupLayout,
        memory: Memory,
        capture: frozenset[str],
    ):
        """(B, Q, C) to (B, Q, C), and the two maps where captured."""
        attended, self_maps = self.self_attention(content, position, layout, SELF_ATTENTION in capture)
        content = self.self_attention_norm(content + self.dropout(attended))
        attended, cross_map = self.cross_attention(content, position, sine, memory, CROSS_ATTENTION in capture)
        return self.finish(content, attended), self_maps, cross_map


@DECODER_REGISTRY.register()
class ConditionalDecoder(nn.Module):
    """Each query has a reference point, read from its position; boxes are offsets from it [P].

    Args:
        num_layers, width, num_heads, ffn_width, dropout: of the layers. num_classes, activation: of the class head.
        temperature: of the reference points' sine embedding.
        position_gain: above 0, every layer starts by attending around its reference point, the sharper the larger, see
            :meth:`ConditionalCrossAttention.align_positions`; 0 is the paper's start.

    Attributes:
        position_width: of the queries' positions that this decoder reads.
    """

    captures = CAPTURES

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
        temperature: float = 10000.0,
        position_gain: float = 0.0,
    ):
        super().__init__()
        self.width, self.temperature, self.position_width = width, temperature, width
        self.layers = nn.ModuleList(
            ConditionalDecoderLayer(width, num_heads, ffn_width, dropout, is_first=index == 0)
            for index in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.reference_head = PerceptronHead(width, width, 2, num_layers=2)
        self.scale_head = PerceptronHead(width, width, width, num_layers=2)
        initialise_linear(self)
        if position_gain:
            for layer in self.layers:
                layer.cross_attention.align_positions(position_gain)  # type: ignore[operator, union-attr]
            nn.init.zeros_(self.scale_head.layers[-1].weight)  # type: ignore[arg-type]
            nn.init.ones_(self.scale_head.layers[-1].bias)  # type: ignore[arg-type]
        self.heads = DetectionHeads(width, num_classes, activation, zero_boxes=True)

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.DETR
        return {
            **decoder_arguments(cfg),
            "temperature": node.DECODER.POINT_TEMPERATURE,
            "position_gain": node.DECODER.POSITION_GAIN,
        }

    def forward(
        self, memory: Memory, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> list[DecoderOutput]:
        """Decodes queries; arguments and result as in :class:`DetrDecoder`."""
        reference = self.reference_head(position).float().sigmoid()
        embedding = point_positions(reference, self.width, self.temperature).to(content.dtype)
        record = DecoderRecord(capture)
        for index, layer in enumerate(self.layers):
            # The first layer has no content yet that could modulate the embedding.
            sine = embedding if index == 0 else embedding * self.scale_head(content)
            content, self_maps, cross_map = layer(content, position, sine, layout, memory, capture)
            record.add(self.norm(content), self_maps, cross_map)
        hidden = torch.stack(record.hidden)
        offsets = self.heads.box_head(hidden).float()
        centre = offsets[..., :2] + inverse_sigmoid(reference)
        boxes = torch.cat([centre, offsets[..., 2:]], dim=-1).sigmoid()
        return record.outputs(hidden, self.heads.class_head(hidden), boxes, self.heads.activation, layout)
