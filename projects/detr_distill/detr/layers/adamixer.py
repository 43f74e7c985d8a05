"""Adaptive 3-D sampling and adaptive mixing, the two operators of AdaMixer (2203.16507), and its positions.

Letters: B images, Q queries, S memory tokens, L levels, G groups, P sampled points a group, O mixed points a group,
C width, c = C / G.

A position is (x, y, z, r): a box's centre, z = log2 of the square root of its area, r = log2 of height over width.
x, y and 2^z count pixels where the finest level has stride 4, the paper's base stride [P]; on a backbone whose finest
level is finer or coarser they count quarters of its cells. The paper's r is half of this one, which the code has [C].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ...structures import Memory
from ...structures.levels import image_extents
from ..boxes import area, to_corners
from .deformable import multi_scale_deformable_attention
from .position import sine_embedding

BASE_STRIDE = 4.0  # of the finest level, in units of x and y [P]
LEVEL_SPREAD = 2.0  # tau: divides the squared distance between a point's z and a level's [C]
POSITION_SCALE = 1000.0  # x and y are divided by it before their sine embedding [C]


def level_strides(memory: Memory) -> Tensor:
    """(L,) size of each level's cells in units of x and y; each level halves the one before."""
    return BASE_STRIDE * 2.0 ** torch.arange(len(memory.shapes), device=memory.tokens.device)


def image_extent(memory: Memory) -> Tensor:
    """(B, 1, 2) width and height of each image without its padding, in units of x and y; B = 1 where none is padded."""
    return image_extents(memory)[:, :1] * BASE_STRIDE


def boxes_to_positions(boxes: Tensor, extent: Tensor) -> Tensor:
    """(B, Q, 4) from boxes normalised by the image, whose ``extent`` is (B, 1, 2), to (x, y, z, r)."""
    width, height = (boxes[..., 2:] * extent).clamp(min=1e-3).log2().unbind(-1)
    return torch.cat([boxes[..., :2] * extent, torch.stack([(width + height) / 2, height - width], dim=-1)], dim=-1)


def position_sizes(positions: Tensor) -> Tensor:
    """(..., 2) width and height of (x, y, z, r): 2^(z - r / 2) and 2^(z + r / 2)."""
    scale, ratio = positions[..., 2], positions[..., 3]
    return torch.stack([scale - ratio / 2, scale + ratio / 2], dim=-1).exp2()


def positions_to_boxes(positions: Tensor, extent: Tensor) -> Tensor:
    """The inverse of :func:`boxes_to_positions`."""
    return torch.cat([positions[..., :2], position_sizes(positions)], dim=-1) / torch.cat([extent, extent], dim=-1)


def move(positions: Tensor, change: Tensor) -> Tensor:
    """Positions (..., 4) after a stage: x and y move by multiples of 2^z, z and r by sums [P]."""
    step = change[..., :2] * positions[..., 2:3].exp2()
    return torch.cat([positions[..., :2] + step, positions[..., 2:] + change[..., 2:]], dim=-1)


def embed_positions(positions: Tensor, width: int) -> Tensor:
    """Sine embedding of (x, y, z, r), (B, Q, 4) to (B, Q, width) [P]; scale of x and y [C]."""
    scaled = torch.cat([positions[..., :2] / POSITION_SCALE, positions[..., 2:]], dim=-1)
    return sine_embedding(scaled, width // 4)


def log_intersection(positions: Tensor) -> Tensor:
    """log(intersection over foreground + 1e-7): how much of each query's box another one covers [P].

    Args:
        positions: (B, Q, 4).

    Returns:
        (B, Q, Q), row i and column j: the part of box i that lies in box j.
    """
    sizes = position_sizes(positions)
    corners = to_corners(torch.cat([positions[..., :2], sizes], dim=-1))
    first, second = corners.unsqueeze(-2), corners.unsqueeze(-3)
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    overlap = area((high - low).clamp(min=0))
    return (overlap / area(sizes).clamp(min=1e-6).unsqueeze(-1) + 1e-7).log()


class AdaptiveSampling(nn.Module):
    """Reads the levels at points that a query chooses in x, y and z.

    ``(x + dx * width, y + dy * height, z + dz)`` with offsets from the content; each level is read bilinearly and
    weighted by ``softmax(-(z - z_level)^2 / 2)`` over levels, z_level = log2 of its stride [P]. At the start offsets
    do not depend on the content: dx, dy are uniform in the box and dz = -1 [C].

    Args:
        width: C. num_groups: G, each reads its own c channels. num_points: P.
    """

    def __init__(self, width: int, num_groups: int, num_points: int):
        super().__init__()
        if width % num_groups:
            raise ConfigError(
                f"MODEL.DETR.HIDDEN_DIM is {width}, which MODEL.DETR.ADAMIXER.NUM_GROUPS = {num_groups} does not "
                "divide. Choose a width that is a multiple of the number of groups."
            )
        self.num_groups, self.num_points = num_groups, num_points
        self.sampling_offsets = nn.Linear(width, num_groups * num_points * 3)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published start."""
        nn.init.zeros_(self.sampling_offsets.weight)
        offsets = self.sampling_offsets.bias.view(-1, 3)
        nn.init.uniform_(offsets[:, :2], -0.5, 0.5)
        nn.init.constant_(offsets[:, 2], -1.0)

    def forward(self, content: Tensor, positions: Tensor, tokens: Tensor, memory: Memory) -> Tensor:
        """Samples ``tokens`` (B, S, C) for content (B, Q, C) at positions (B, Q, 4).

        Returns:
            (B, Q, G, P, c).
        """
        points = self.points(content, positions)
        images, queries, groups, count, _ = points.shape
        # One query a point: the operator of deformable attention adds up levels, and no points.
        locations, weights = (x.transpose(2, 3).flatten(1, 2).unsqueeze(4) for x in self.on_levels(points, memory))
        values = tokens.unflatten(-1, (groups, -1))
        sampled = multi_scale_deformable_attention(values, memory.shapes, locations, weights)
        return sampled.view(images, queries, count, groups, -1).transpose(2, 3)

    def points(self, content: Tensor, positions: Tensor) -> Tensor:
        """(B, Q, G, P, 3): x, y and z of each point, float32."""
        offsets = self.sampling_offsets(content).float().unflatten(-1, (self.num_groups, self.num_points, 3))
        scale = F.pad(position_sizes(positions), (0, 1), value=1.0)
        return positions[:, :, None, None, :3] + offsets * scale[:, :, None, None]

    @staticmethod
    def on_levels(points: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Points (..., 3) to locations in [0, 1] on each padded level (..., L, 2) and the levels' weights (..., L)."""
        assert memory.level_sizes is not None
        strides = level_strides(memory)
        locations = points[..., None, :2] / (memory.level_sizes * strides[:, None])
        distance = points[..., 2:] - strides.log2()
        return locations, (-distance.square() / LEVEL_SPREAD).softmax(-1)


class AdaptiveMixing(nn.Module):
    """Mixes what was sampled by matrices that the query makes: channels, then points.

    ``content + linear(relu(norm(N relu(norm(X M)))))`` for each group's samples X (P, c), with M (c, c) and N (O, P)
    linear in the content [P]; ``norm`` is over points and channels together and has no weights [C]. At the start M and
    N do not depend on the content [C].

    Args:
        width: C. num_groups: G. in_points: P. out_points: O.
    """

    def __init__(self, width: int, num_groups: int, in_points: int, out_points: int):
        super().__init__()
        channels = width // num_groups
        self.channel_shape, self.point_shape = (channels, channels), (out_points, in_points)
        self.num_groups = num_groups
        self.matrices = nn.Linear(width, num_groups * (channels**2 + out_points * in_points))
        self.output = nn.Linear(width * out_points, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The published start; the biases, of which the first M and N consist, are left as torch draws them."""
        nn.init.zeros_(self.matrices.weight)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(self, content: Tensor, samples: Tensor) -> Tensor:
        """What is to be added to the content (B, Q, C), from samples (B, Q, G, P, c); (B, Q, C)."""
        channel_matrix, point_matrix = self.mixing_matrices(content)
        mixed = _normalise(samples @ channel_matrix)
        mixed = _normalise(point_matrix @ mixed)
        return self.output(mixed.flatten(2))

    def mixing_matrices(self, content: Tensor) -> tuple[Tensor, Tensor]:
        """M (B, Q, G, c, c) and N (B, Q, G, O, P)."""
        values = self.matrices(content).unflatten(-1, (self.num_groups, -1))
        sizes = [rows * columns for rows, columns in (self.channel_shape, self.point_shape)]
        channel, point = values.split(sizes, dim=-1)
        return channel.unflatten(-1, self.channel_shape), point.unflatten(-1, self.point_shape)


def _normalise(values: Tensor) -> Tensor:
    return F.relu(F.layer_norm(values, values.shape[-2:]))
