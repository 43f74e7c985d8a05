"""Multi-scale deformable attention (2010.04159): a query looks at a few sampled points instead of at every cell.

Letters: B images, Q queries, S memory tokens, H heads, C width, c = C / H, L levels, P points a head and level.
Points are (x, y) in [0, 1] over a whole padded level.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...structures import Memory, SampledPoints
from ...structures.levels import level_lengths
from .attention import check_heads
from .deformable_kernel import find_triton_form
from .feed_forward import project_together


def multi_scale_deformable_attention(
    values: Tensor, shapes: list[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Weighted sum of values that are read between the cells of several levels, bilinearly; outside a level is zero.

    Computed in the wider of the arguments' types, float32 at least with Triton, and outside autocast, so half-precision
    values are sampled in float32; see deformable_kernel.py for the form that runs.
    Source: Deformable DETR (2010.04159), equation 3 [P]; a cell's value lies at its centre [C].

    Args:
        values: (B, S, H, c). shapes: (height, width) of each level; their products add up to S.
        sampling_locations: (B, Q, H, L, P, 2). attention_weights: (B, Q, H, L, P).

    Returns:
        (B, Q, H * c), in the type of ``values``.
    """
    attend = find_triton_form(values, sampling_locations) or attend_with_pytorch
    return attend(values, shapes, sampling_locations, attention_weights)


def attend_with_pytorch(
    values: Tensor, shapes: list[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """:func:`multi_scale_deformable_attention` in PyTorch's operators, on any device."""
    images, _, heads, channels = values.shape
    queries = sampling_locations.shape[1]
    kind = (
        values.dtype
        if values.dtype == sampling_locations.dtype
        else torch.promote_types(values.dtype, sampling_locations.dtype)
    )
    with torch.autocast(values.device.type, enabled=False):
        maps = values.to(kind).permute(0, 2, 3, 1).flatten(0, 1).split(level_lengths(shapes), dim=-1)
        # Levels first, queries last and each level in one piece: twice as fast on a CPU as points last. grid_sample
        # counts from -1 to 1.
        grids = (2 * sampling_locations.to(kind) - 1).permute(3, 0, 2, 4, 1, 5).contiguous().flatten(1, 2)
        weights = attention_weights.to(kind).permute(0, 2, 3, 4, 1).contiguous().flatten(2, 3).flatten(0, 1)
        levels = [
            F.grid_sample(cells.unflatten(-1, shape), grid, align_corners=False)
            for shape, cells, grid in zip(shapes, maps, grids, strict=True)
        ]
        sampled = levels[0] if len(levels) == 1 else torch.cat(levels, dim=2)  # (B * H, c, L * P, Q)
        output = (sampled * weights.unsqueeze(1)).sum(2)
    return output.view(images, heads * channels, queries).transpose(1, 2).contiguous().to(values.dtype)


def without_padding(values: Tensor, memory: Memory) -> Tensor:
    """Values (B, S, C) of a memory's tokens, zero where these are padding."""
    return values if memory.mask is None else values.masked_fill(memory.mask.unsqueeze(-1), 0)


def project_values(attentions: Iterable[DeformableAttention], memory: Memory) -> list[Tensor]:
    """What each attention reads at its points of the same memory, all at once: (B, S, C) each, see `read_values`."""
    parts = project_together(memory.tokens, [attention.value_projection for attention in attentions])
    return [without_padding(values, memory) for values in parts]


class DeformableAttention(nn.Module):
    """Attention whose points and weights are read from the query alone; there is no dense attention map.

    At the start the points of a head lie on a ray, point p at p cells from the reference, one direction a head; all
    weights are equal. Source: Deformable DETR (2010.04159) [P].

    Args:
        width: C. num_heads: H. num_levels: L. num_points: P.
    """

    def __init__(self, width: int, num_heads: int, num_levels: int, num_points: int):
        super().__init__()
        check_heads(width, num_heads)
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(width, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(width, num_heads * num_levels * num_points)
        self.value_projection = nn.Linear(width, width)
        self.output_projection = nn.Linear(width, width)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published start."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        # On the sides of a square, not on a circle: the first points are the neighbouring cells [C].
        directions = directions / directions.abs().amax(-1, keepdim=True)
        lengths = torch.arange(1, self.num_points + 1)
        star = directions[:, None, None, :] * lengths[None, None, :, None]
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.copy_(star.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_projection, self.output_projection):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, reference: Tensor, tokens: Tensor, memory: Memory) -> Tensor:
        """Samples around reference points or boxes.

        Args:
            query: (B, Q, C). reference: (B, Q, L, 2) points, or (B, Q, L, 4) boxes (centre and size), for each level.
            tokens: (B, S, C), what is sampled. memory: layout and mask of the levels; its own tokens are not read.

        Returns:
            (B, Q, C).
        """
        return self.read(self.choose_points(query, reference, memory), tokens, memory)

    def choose_points(self, query: Tensor, reference: Tensor, memory: Memory) -> SampledPoints:
        """The points that the queries look at, over the padded levels; arguments as in :meth:`forward`."""
        grid = (self.num_heads, self.num_levels, self.num_points)
        offsets, weights = project_together(query, (self.sampling_offsets, self.attention_weights))
        weights = weights.unflatten(-1, (self.num_heads, -1)).float().softmax(-1).unflatten(-1, grid[1:])
        return SampledPoints(self._locations(offsets.unflatten(-1, (*grid, 2)), reference, memory), weights)

    def read(self, points: SampledPoints, tokens: Tensor, memory: Memory) -> Tensor:
        """(B, Q, C): the values of ``tokens`` (B, S, C) at the points, weighted."""
        return self.read_values(points, without_padding(self.value_projection(tokens), memory), memory)

    def read_values(self, points: SampledPoints, values: Tensor, memory: Memory) -> Tensor:
        """:meth:`read` of what the value projection made of the tokens, zero in the padding."""
        heads = values.unflatten(-1, (self.num_heads, -1))
        return self.output_projection(
            multi_scale_deformable_attention(heads, memory.shapes, points.locations, points.weights)
        )

    def read_projection(self) -> nn.Module:
        """What a query reads of a token (B, S, C) that it samples alone."""
        return nn.Sequential(self.value_projection, self.output_projection)

    def _locations(self, offsets: Tensor, reference: Tensor, memory: Memory) -> Tensor:
        """(B, Q, H, L, P, 2): offsets count cells from a point, and P-ths of half a box's size from a box [C]."""
        assert memory.level_sizes is not None
        reference = reference[:, :, None, :, None, :]
        if reference.shape[-1] == 2:
            return reference + offsets / memory.level_sizes[:, None, :]
        return reference[..., :2] + offsets * (0.5 / self.num_points) * reference[..., 2:]
