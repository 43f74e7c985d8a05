"""Sine position embeddings of image cells and of points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...structures.constants import made_once
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
    angles = values.float().unsqueeze(-1) / _wave_lengths(width, temperature, values.device)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)


@made_once
def _wave_lengths(width: int, temperature: float, device: torch.device) -> Tensor:
    """(width / 2,), over 2 pi."""
    exponent = torch.arange(width // 2, dtype=torch.float32, device=device) * 2 / width
    return temperature**exponent


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
    if mask is None:
        rows, columns = (_axis_positions(length, width // 2, device, temperature, offset) for length in size)
        halves = [rows.unsqueeze(1).expand(*size, -1), columns.expand(*size, -1)]
        return torch.cat(halves, dim=-1).flatten(0, 1).unsqueeze(0)
    visible = visible_cells(mask, size, device)
    rows, columns = visible.cumsum(1), visible.cumsum(2)
    angles = _angles(rows, rows[:, -1:, :], offset), _angles(columns, columns[:, :, -1:], offset)
    return sine_embedding(torch.stack(angles, dim=-1), width // 2, temperature).flatten(1, 2)


def _angles(numbers: Tensor, count: Tensor | int, offset: float) -> Tensor:
    """The numbers of cells, from 1 to ``count``, as angles."""
    return (numbers + offset) / (count + 1e-6) * (2 * math.pi)


@made_once
def _axis_positions(count: int, width: int, device: torch.device, temperature: float, offset: float) -> Tensor:
    """(count, width): the embedding of a whole image's rows, or of its columns."""
    numbers = torch.arange(1, count + 1, dtype=torch.float32, device=device)
    return sine_embedding(_angles(numbers, count, offset).unsqueeze(-1), width, temperature)


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
