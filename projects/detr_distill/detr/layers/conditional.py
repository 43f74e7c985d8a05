"""The two attentions of Conditional DETR (2108.06152): content and position side by side.

Letters: B images, Q queries, S memory tokens, C width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...structures import Keep, Memory
from .attention import GroupLayout, GroupMaps, Kept, attend, attend_within_groups, check_heads, split_heads
from .feed_forward import project_together
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
        self, content: Tensor, places: tuple[Tensor, Tensor], layout: GroupLayout, capture: Keep
    ) -> tuple[Tensor, GroupMaps]:
        """(B, Q, C) content of all groups to (B, Q, C), and each group's map where captured.

        Args:
            places: of :func:`project_positions`.
        """
        query, key, value = project_together(content, (self.query_content, self.key_content, self.value))
        attended, maps = attend_within_groups(
            split_heads(query + places[0], self.num_heads),
            split_heads(key + places[1], self.num_heads),
            split_heads(value, self.num_heads),
            layout,
            dropout=self.dropout if self.training else 0.0,
            capture=capture,
        )
        return self.output(attended), maps


def project_positions(attentions: Iterable[ConditionalSelfAttention], position: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What the positions (B, Q, C) add to queries and keys of each self-attention, all at once."""
    linears = [linear for attention in attentions for linear in (attention.query_position, attention.key_position)]
    parts = project_together(position, linears)
    return list(zip(parts[::2], parts[1::2], strict=True))


@dataclass
class ProjectedMemory:
    """A memory as one cross-attention reads it.

    Attributes:
        content: (B, S, C), keys. position: (B, S, C), the keys' positions. value: (B, S, C).
        mask: (B, 1, 1, S), True on padding, or None.
    """

    content: Tensor
    position: Tensor
    value: Tensor
    mask: Tensor | None


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
        self, content: Tensor, position: Tensor, sine: Tensor, memory: ProjectedMemory, capture: Keep
    ) -> tuple[Tensor, Kept | None]:
        """Attends to a memory.

        Args:
            content, position: (B, Q, C). sine: (B, Q, C), the modulated embedding of the reference points.
            memory: of :func:`project_memory`.

        Returns:
            (B, Q, C), and the map (B, H, Q, S), or what it is made of, or None.
        """
        query, key = self.query_content(content), memory.content
        if self.query_position is not None:
            query = query + self.query_position(position)
            key = key + memory.position
        attended, kept = attend(
            torch.cat([self._split(query), self._split(self.query_sine(sine))], dim=-1),
            torch.cat([self._split(key), self._split(memory.position)], dim=-1),
            self._split(memory.value),
            mask=memory.mask,
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


def project_memory(attentions: Sequence[ConditionalCrossAttention], memory: Memory) -> list[ProjectedMemory]:
    """The memory as each cross-attention reads it, all at once: no layer changes it."""
    linears = [linear for attention in attentions for linear in (attention.key_content, attention.value)]
    parts = project_together(memory.tokens, linears)
    positions = project_together(memory.position, [attention.key_position for attention in attentions])
    return [
        ProjectedMemory(content, position.expand_as(content), value, memory.key_mask)
        for content, value, position in zip(parts[::2], parts[1::2], positions, strict=True)
    ]


def _output(width: int) -> nn.Linear:
    """The last projection of an attention; its bias starts at 0, those of the projections before it do not [C]."""
    linear = nn.Linear(width, width)
    nn.init.zeros_(linear.bias)
    return linear
