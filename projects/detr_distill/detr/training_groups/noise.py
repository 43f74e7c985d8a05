"""Noise of denoising queries: on classes and on boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..boxes import to_centres, to_corners


def draw_labels(labels: Tensor, probability: float, num_classes: int) -> Tensor:
    """Labels of which some are drawn anew among all classes, the right one included [C]."""
    chosen = torch.rand(labels.shape, device=labels.device) < probability
    return torch.where(chosen, torch.randint_like(labels, num_classes), labels)


def shift_boxes(boxes: Tensor, draws: Tensor, scale: float) -> Tensor:
    """Boxes whose centre and size change independently of each other [P].

    Args:
        boxes: (..., 4). draws: (..., 4) in [0, 1); 0.5 leaves a value as it is. scale: a centre moves by at most this
            part of half the size, a size changes by at most this part of itself.

    Returns:
        (..., 4), every value in [0, 1].
    """
    reach = torch.cat([boxes[..., 2:] / 2, boxes[..., 2:]], dim=-1)
    return (boxes + (2 * draws - 1) * reach * scale).clamp(0, 1)


def move_corners(boxes: Tensor, distances: Tensor, scale: float) -> Tensor:
    """Boxes whose sides move independently of each other, and stay within the image [P].

    Args:
        boxes: (..., 4). distances: (..., 4) of x1, y1, x2, y2 in half widths and half heights, signed.
        scale: factor of all distances.

    Returns:
        (..., 4); a size below zero, of sides that have passed each other, is zero.
    """
    reach = torch.cat([boxes[..., 2:], boxes[..., 2:]], dim=-1) / 2
    moved = to_centres((to_corners(boxes) + distances * reach * scale).clamp(0, 1))
    return torch.cat([moved[..., :2], moved[..., 2:].clamp(min=0)], dim=-1)
