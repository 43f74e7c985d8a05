"""Multi-head attention whose maps are returned only when a caller asks for them.

Letters: B images, Q queries, S keys, H heads, E width of queries and keys, V width of values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ...structures import AttentionFactors, Keep
from ...structures.constants import is_graph
from . import cpu_operators
from .feed_forward import drop, project_together

# What is kept of an attention: the map (B, H, Q, S) in float32, or what it is made of.
Kept = Tensor | AttentionFactors
# The same of the self-attention of each query group (B, H, Q, Q); None unless captured.
GroupMaps = tuple[Kept, ...] | None


def split_heads(values: Tensor, num_heads: int) -> Tensor:
    """(B, N, E) to (B, H, N, E / H)."""
    images, length, width = values.shape
    return values.view(images, length, num_heads, width // num_heads).transpose(1, 2)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    capture: Keep = Keep.NOTHING,
) -> tuple[Tensor, Kept | None]:
    """Scaled dot-product attention on split heads.

    The attention map is what dropout is applied *to*, so every row of a captured map adds up to 1 in training mode too.
    Unless the map is asked for torch's fused kernel runs and none exists; but torch has none on a CPU with dropout, or
    where values are wider or narrower than keys: there it is an operator of our own.

    Args:
        query: (B, H, Q, e). key: (B, H, S, e). value: (B, H, S, v).
        mask: bool, broadcastable to (B, H, Q, S), True where a query may not look.
        bias: added to the logits before the softmax, broadcastable to (B, H, Q, S).
        dropout: probability of dropping an attention weight.
        capture: what to return beside. Factors leave the bias out: they are for attention without one.

    Returns:
        (B, Q, H * v), and what was asked for or None.
    """
    factors = AttentionFactors(query, key, mask)
    kept: Kept | None = factors if capture == Keep.FACTORS else None
    wants_map, same_width = capture == Keep.MAP, query.shape[-1] == value.shape[-1]
    if query.device.type == "cpu" and not is_graph() and (wants_map or dropout or not same_width):
        if torch.is_autocast_enabled("cpu"):
            kind = torch.get_autocast_dtype("cpu")
            query, key, value = query.to(kind), key.to(kind), value.to(kind)
        output, attention = cpu_operators.attend(query, key, value, mask, bias, dropout)
        return output, attention if wants_map else kept
    if wants_map:
        kept = attention = factors.map(bias)
        dropped = drop(attention, dropout) if dropout else attention
        output = dropped.to(value.dtype) @ value
    else:
        allowed = None if mask is None else ~mask
        if bias is not None:
            allowed = bias.to(query.dtype) if mask is None else bias.to(query.dtype).masked_fill(mask, -torch.inf)
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
        # The strides of a kernel's output are no promise: whoever exports this takes the operator apart.
        output = output.clone(memory_format=torch.contiguous_format) if is_graph() else output
    return output.transpose(1, 2).flatten(2), kept


class MultiHeadAttention(nn.Module):
    """The attention of the original transformer, with separate projections of query, key and value.

    Source: DETR (2005.12872) [P]. Its reference draws the three projections as one (3E, E) matrix by Xavier's rule; the
    gain used here gives separate matrices the same range [C].

    Args:
        width: of queries, keys, values and output.
        num_heads: must divide ``width``.
        dropout: on attention weights.
    """

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        check_heads(width, num_heads)
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_projection = nn.Linear(width, width)
        self.key_projection = nn.Linear(width, width)
        self.value_projection = nn.Linear(width, width)
        self.output_projection = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The published start."""
        for projection in (self.query_projection, self.key_projection, self.value_projection):
            nn.init.xavier_uniform_(projection.weight, gain=math.sqrt(0.5))
        nn.init.xavier_uniform_(self.output_projection.weight)
        clear_biases(self)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, capture: Keep = Keep.NOTHING
    ) -> tuple[Tensor, Kept | None]:
        """Attends from ``query`` (B, Q, E) to ``key`` and ``value`` (B, S, E); see :func:`attend`."""
        dropout = self.dropout if self.training else 0.0
        output, kept = attend(*self._project(query, key, value), mask=mask, dropout=dropout, capture=capture)
        return self.output_projection(output), kept

    def within_groups(
        self, query: Tensor, value: Tensor, layout: GroupLayout, capture: Keep, bias: Tensor | None = None
    ) -> tuple[Tensor, GroupMaps]:
        """Self-attention of packed query groups; keys are the queries; see :func:`attend_within_groups`."""
        dropout = self.dropout if self.training else 0.0
        output, maps = attend_within_groups(
            *self._project(query, query, value), layout, bias=bias, dropout=dropout, capture=capture
        )
        return self.output_projection(output), maps

    def read_projection(self) -> nn.Module:
        """What a query reads of a token (B, S, E) that it attends to alone."""
        return nn.Sequential(self.value_projection, self.output_projection)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if key is query:
            queries, keys = project_together(query, (self.query_projection, self.key_projection))
        else:
            queries, keys = self.query_projection(query), self.key_projection(key)
        return (
            split_heads(queries, self.num_heads),
            split_heads(keys, self.num_heads),
            split_heads(self.value_projection(value), self.num_heads),
        )


@dataclass
class GroupLayout:
    """Which queries of a packed query axis see each other.

    Attributes:
        sizes: queries of each group, in order.
        inner_masks: for each group (Q, Q) or (B, 1, Q, Q) bool, True where a query may not look at another of its
            group, or None.
        seen: for each group the numbers of the other groups that its queries may look at.
    """

    sizes: tuple[int, ...]
    inner_masks: tuple[Tensor | None, ...]
    seen: tuple[tuple[int, ...], ...]

    def rows(self, group: int) -> slice:
        """The group's part of the packed axis."""
        start = sum(self.sizes[:group])
        return slice(start, start + self.sizes[group])


def attend_within_groups(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: GroupLayout,
    *,
    bias: Tensor | None = None,
    dropout: float,
    capture: Keep,
) -> tuple[Tensor, GroupMaps]:
    """Self-attention of packed query groups, group by group; see :func:`attend`.

    A group's keys are its own queries and those of the groups that it sees: nothing is computed to be masked away.

    Args:
        bias: (B, H, Q, Q) over the whole axis; what it says of two groups that do not see each other is not read.

    Returns:
        (B, Q, H * v), and each group's map over its own queries (B, H, Qg, Qg), or None. The map of a group that sees
        others leaves out what it gives to them; its factors are those of a group that sees none.
    """
    outputs, maps = [], []
    queries, keys, values = (_split_groups(part, layout) for part in (query, key, value))
    for group, (size, inner_mask, seen) in enumerate(zip(layout.sizes, layout.inner_masks, layout.seen, strict=True)):
        visible = (group, *seen)
        if inner_mask is not None and seen:
            inner_mask = F.pad(inner_mask, (0, sum(layout.sizes[other] for other in seen)), value=False)
        output, kept = attend(
            queries[group],
            _join([keys[other] for other in visible], dim=2),
            _join([values[other] for other in visible], dim=2),
            mask=inner_mask,
            bias=None if bias is None else _join([_block(bias, layout, group, other) for other in visible], dim=-1),
            dropout=dropout,
            capture=capture,
        )
        outputs.append(output)
        if kept is not None:
            maps.append(kept.first_keys(size) if isinstance(kept, AttentionFactors) else kept[..., :size])
    return _join(outputs, dim=1), tuple(maps) if capture else None


def _split_groups(values: Tensor, layout: GroupLayout) -> list[Tensor]:
    """(B, H, N, e) of all groups to each group's part; heads last, as they were split, so that gradients are joined."""
    return [part.transpose(1, 2) for part in values.transpose(1, 2).split(list(layout.sizes), dim=1)]


def _block(bias: Tensor, layout: GroupLayout, group: int, other: int) -> Tensor:
    """What a bias (B, H, Q, Q) says of one group's queries and another's keys."""
    return bias[..., layout.rows(group), layout.rows(other)]


def _join(parts: list[Tensor], dim: int) -> Tensor:
    """One tensor of all parts, without a copy where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def clear_biases(attention: nn.Module) -> None:
    """Sets the biases of an attention's own linear layers to zero."""
    for child in attention.children():
        if isinstance(child, nn.Linear):
            nn.init.zeros_(child.bias)


def check_heads(width: int, num_heads: int) -> None:
    """Raises ConfigError when heads do not divide the width, or the sine embedding's four parts do not."""
    if width % 4:
        raise ConfigError(f"MODEL.DETR.HIDDEN_DIM is {width}; the sine embedding of positions wants a multiple of 4.")
    if width % num_heads:
        raise ConfigError(
            f"MODEL.DETR.HIDDEN_DIM is {width}, which MODEL.DETR.NUM_HEADS = {num_heads} does not divide. "
            "Choose a width that is a multiple of the number of heads."
        )
