"""What SMCA-DETR (2101.07448) adds to dense cross-attention: a Gaussian around the point that a query estimates.

Letters: B images, Q queries, C width, H heads, L levels, S memory tokens, N cells along one axis of a level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...structures import Keep, Memory
from ...structures.levels import split_levels, visible_axes, visible_levels
from .attention import Kept, MultiHeadAttention, attend

# Finite in float16 too: a row that is minus infinity everywhere has no softmax.
SMALLEST_LOG = -1e4


class SpatialModulation(nn.Module):
    """The logarithm of each head's Gaussian around a query's centre, for every cell (x, y).

        log G(x, y) = -(a^2 (x - cx - ox)^2 + b^2 (y - cy - oy)^2) / smoothness

    The centre (cx, cy) is shared by all heads; the offsets (ox, oy) and scales (a, b) are linear in the query, for each
    head [P]. The paper divides by squared scales, the authors' code multiplies by them, which cannot divide by zero; it
    is followed here [C]. At the start a = b = 1 and the standard deviation is sqrt(smoothness / 2) cells [C].

    Coordinates count cells from 0 [C]. With several levels they are those of the middle one for all, so that a query
    has one Gaussian in the image [R].

    Args:
        width: C. num_heads: H. smoothness: above 0, the larger the wider.
    """

    def __init__(self, width: int, num_heads: int, smoothness: float):
        super().__init__()
        self.num_heads, self.smoothness = num_heads, smoothness
        self.offset_head = nn.Linear(width, 2 * num_heads)
        self.scale_head = nn.Linear(width, 2 * num_heads)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The published start of the scales [C]."""
        nn.init.zeros_(self.scale_head.weight)
        nn.init.ones_(self.scale_head.bias)

    def forward(self, query: Tensor, centre: Tensor, axes: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """For each level (B, H, Q, cells of the level), float32.

        Args:
            query: (B, Q, C). centre: (B, Q, 2), and axes: the cells' x and y on each level, from :func:`cell_axes`.
        """
        offset, scale = (
            head(query).float().unflatten(-1, (self.num_heads, 2)) for head in (self.offset_head, self.scale_head)
        )
        points = centre.unsqueeze(2) + offset  # (B, Q, H, 2)
        maps = []
        for cells in axes:
            x, y = (self._along(cells[axis], points[..., axis], scale[..., axis]) for axis in (0, 1))
            maps.append((y.unsqueeze(-1) + x.unsqueeze(-2)).clamp(min=SMALLEST_LOG).flatten(-2))
        return maps

    def _along(self, cells: Tensor, point: Tensor, scale: Tensor) -> Tensor:
        """One axis's part of the logarithm, (B, H, Q, N), from (B, N), (B, Q, H) and (B, Q, H)."""
        distance = (cells[:, None, None, :] - point.unsqueeze(-1)) * scale.unsqueeze(-1)
        return -distance.square().transpose(1, 2) / self.smoothness


class ModulatedAttention(MultiHeadAttention):
    """Attention to each level by itself, under the levels' logarithms; the levels are added up by weights."""

    def over_levels(
        self, query: Tensor, memory: Memory, log_maps: list[Tensor], level_weights: Tensor | None, capture: Keep
    ) -> tuple[Tensor, Kept | None]:
        """Attends from ``query`` to ``memory``.

        Args:
            query: (B, Q, C). log_maps: for each level (B, H, Q, cells of the level), added to the logits.
            level_weights: (B, Q, L), adding up to 1; None with one level.

        Returns:
            (B, Q, C), and the map over all levels' tokens (B, H, Q, S), each level's share its weight, or None.
        """
        queries, *parts = self._project(query, memory.tokens + memory.position, memory.tokens)
        masks = split_levels(memory.key_mask, memory.shapes, dim=-1)
        dropout = self.dropout if self.training else 0.0
        keys, values = (split_levels(x, memory.shapes, dim=2) for x in parts)
        levels = zip(keys, values, masks, log_maps, strict=True)
        outputs = [
            attend(queries, key, value, mask=mask, bias=bias, dropout=dropout, capture=capture)
            for key, value, mask, bias in levels
        ]
        output, attention = outputs[0] if level_weights is None else _weigh_levels(outputs, level_weights)
        return self.output_projection(output), attention


def _weigh_levels(parts: list[tuple[Tensor, Kept | None]], weights: Tensor) -> tuple[Tensor, Kept | None]:
    """Levels' outputs (B, Q, C) added up by weights (B, Q, L), and their weighted maps side by side."""
    shares = weights.split(1, dim=-1)
    output = torch.stack([output * share for (output, _), share in zip(parts, shares, strict=True)]).sum(0)
    maps = [
        part * share.unsqueeze(1) for (_, part), share in zip(parts, shares, strict=True) if isinstance(part, Tensor)
    ]
    return output, torch.cat(maps, dim=-1) if maps else None


def cell_axes(memory: Memory) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Positions of the cells, counted from 0 in cells of the middle level.

    Returns:
        For each level the x of its columns (B, N) and the y of its rows (B, N); and (B, 1, 2), width and height of the
        image without padding. B = 1 without padding.
    """
    grids = visible_levels(memory)
    extents = [torch.stack([axis.sum(1) for axis in visible_axes(grid)], dim=-1) for grid in grids]
    middle = extents[len(extents) // 2]
    axes = []
    for grid, extent in zip(grids, extents, strict=True):
        x, y = (torch.arange(grid.shape[2 - axis], device=grid.device) for axis in (0, 1))
        size = (middle / extent).unsqueeze(-1)  # (B, 2, 1), of a cell
        axes.append((x * size[:, 0], y * size[:, 1]))
    return axes, middle.unsqueeze(1)
