"""Sine position embeddings of image cells and of points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...structures.levels import visible_cells


def sine_embedding(values: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Interleaved sines and cosines of each coordinate, in float32.

    Args:
        values: (..., D) coordinates, in radians at the lowest temperature.
        width: entries for each coordinate, even.
        temperature: ratio between the longest and the shortest wave length.

    Returns:
        (..., D * width), coordinate by coordinate.
    """
    exponent = torch.arange(width // 2, dtype=torch.float32, device=values.device) * 2 / width
    angles = values.float().unsqueeze(-1) / temperature**exponent
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)


def image_positions(
    size: tuple[int, int],
    mask: Tensor | None,
    width: int,
    device: torch.device,
    temperature: float = 10000.0,
    offset: float = 0.0,
) -> Tensor:
    """Position embedding of every cell of a feature map, rows first.

    Coordinates run from 0 to 2 pi over the part of the image that is not padding. Source: DETR (2005.12872) [C].

    Args:
        size: (height, width) of the feature map in cells.
        mask: (B, height, width) bool, True on padding, or None.
        width: of the embedding, a multiple of 4.
        offset: added to the cells' numbers, which count from 1; -0.5 places a cell at its centre, as in Deformable
            DETR (2010.04159) [C].

    Returns:
        (B, height * width, width), or B = 1 without a mask.
    """
    visible = visible_cells(mask, size, device)
    rows, columns = visible.cumsum(1), visible.cumsum(2)
    epsilon = 1e-6
    rows = (rows + offset) / (rows[:, -1:, :] + epsilon) * (2 * math.pi)
    columns = (columns + offset) / (columns[:, :, -1:] + epsilon) * (2 * math.pi)
    return sine_embedding(torch.stack([rows, columns], dim=-1), width // 2, temperature).flatten(1, 2)


def point_positions(points: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Position embedding of points given as (x, y) in [0, 1], row coordinate first as in :func:`image_positions`.

    Source: Conditional DETR (2108.06152) [C].

    Args:
        points: (..., 2). width: of the embedding.

    Returns:
        (..., width).
    """
    return sine_embedding(points.flip(-1) * (2 * math.pi), width // 2, temperature)


def box_positions(boxes: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Position embedding of boxes in [0, 1]: (..., 4) to (..., 2 * width), the centre's row first, then width, height.

    Source: DAB-DETR (2201.12329) [C].
    """
    centre = point_positions(boxes[..., :2], width, temperature)
    size = point_positions(boxes[..., 2:].flip(-1), width, temperature)  # width first
    return torch.cat([centre, size], dim=-1)
