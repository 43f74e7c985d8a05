"""The two attentions of Conditional DETR (2108.06152): content and position side by side.

Letters: B images, Q queries, S memory tokens, C width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...structures import Keep, Memory
from .attention import GroupLayout, GroupMaps, Kept, attend, attend_within_groups, check_heads, split_heads
from .initialisation import deal_pairs


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
        self.output = _output(width)

    def forward(
        self, content: Tensor, position: Tensor, layout: GroupLayout, capture: Keep
    ) -> tuple[Tensor, GroupMaps]:
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
        self.output = _output(width)

    def forward(
        self, content: Tensor, position: Tensor, sine: Tensor, memory: Memory, capture: Keep
    ) -> tuple[Tensor, Kept | None]:
        """Attends to ``memory``.

        Args:
            content, position: (B, Q, C). sine: (B, Q, C), the modulated embedding of the reference points.

        Returns:
            (B, Q, C), and the map (B, H, Q, S), or what it is made of, or None.
        """
        query, key = self.query_content(content), self.key_content(memory.tokens)
        key_position = self.key_position(memory.position).expand_as(key)
        if self.query_position is not None:
            query = query + self.query_position(position)
            key = key + key_position
        attended, kept = attend(
            torch.cat([self._split(query), self._split(self.query_sine(sine))], dim=-1),
            torch.cat([self._split(key), self._split(key_position)], dim=-1),
            self._split(self.value(memory.tokens)),
            mask=memory.key_mask,
            dropout=self.dropout if self.training else 0.0,
            capture=capture,
        )
        return self.output(attended), kept

    @torch.no_grad()
    def align_positions(self, gain: float) -> None:
        """Starts both position projections as the same scaled permutation [R].

        The product of two sine embeddings is largest where the positions agree, so attention starts around the
        reference point instead of anywhere; small models trained for minutes need that.
        """
        start = gain * deal_pairs(self.value.in_features, self.num_heads)
        for projection in (self.query_sine, self.key_position):
            projection.weight.copy_(start)
            projection.bias.zero_()

    def read_projection(self) -> nn.Module:
        """What a query reads of a token (B, S, C) that it attends to alone."""
        return nn.Sequential(self.value, self.output)

    def _split(self, values: Tensor) -> Tensor:
        return split_heads(values, self.num_heads)


def _output(width: int) -> nn.Linear:
    """The last projection of an attention; its bias starts at 0, those of the projections before it do not [C]."""
    linear = nn.Linear(width, width)
    nn.init.zeros_(linear.bias)
    return linear
