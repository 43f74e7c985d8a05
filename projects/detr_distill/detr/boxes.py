"""Boxes in normalised (centre x, centre y, width, height)."""

from __future__ import annotations

import torch
from torch import Tensor

# How far from 0 and 1 a box stays before its logit is taken: in most code, and in that of DAB-DETR and of what was
# built on it, DN-DETR and DINO [C].
EPSILON = 1e-5
DAB_EPSILON = 1e-3


def to_corners(boxes: Tensor) -> Tensor:
    """(..., 4) from centre and size to (x1, y1, x2, y2)."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def to_centres(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) from (x1, y1, x2, y2) to centre and size."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def as_compared(boxes: Tensor, form: str) -> Tensor:
    """Boxes (..., 4) as their L1 distance sees them: ``centres`` (as they are) or ``corners``."""
    return to_corners(boxes) if form == "corners" else boxes


def inverse_sigmoid(values: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Logit of values in [0, 1], kept finite: log(max(v, epsilon) / max(1 - v, epsilon)) [C]."""
    nearest = values.clamp(min=epsilon, max=1 - epsilon)
    # Beyond the limits only one of the two is held: the other goes on, here to the first order.
    return torch.logit(nearest) + (values.clamp(0, 1) - nearest) / (1 - epsilon)


def area(sides: Tensor) -> Tensor:
    """(..., 2) to (...); the gradient of Tensor.prod reads the device to count zeros."""
    width, height = sides.unbind(-1)
    return width * height


def _overlap_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas that two corner boxes (..., 4) share and cover, (...) each."""
    overlap = area((torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0))
    return overlap, area(a[..., 2:] - a[..., :2]) + area(b[..., 2:] - b[..., :2]) - overlap


def intersection_over_union(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes whose shapes broadcast, (..., 4) each to (...) in [0, 1]; 0 for two boxes without area."""
    overlap, union = _overlap_and_union(to_corners(first), to_corners(second))
    return overlap / (union + torch.finfo(first.dtype).eps)


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU of boxes whose shapes broadcast.

    torchvision's functions have no leading axes (pairs) or read the device in a boolean index (loss). Degenerate boxes
    (no area) give finite values. Source: 1902.09630 [P].

    Args:
        first, second: (..., 4).

    Returns:
        (...) in [-1, 1].
    """
    a, b = to_corners(first), to_corners(second)
    overlap, union = _overlap_and_union(a, b)
    hull = area((torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0))
    epsilon = torch.finfo(first.dtype).eps
    return overlap / (union + epsilon) - (hull - union) / (hull + epsilon)


def pairwise_giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU of every pair: (..., N, 4) and (..., M, 4) to (..., N, M)."""
    return generalized_iou(first.unsqueeze(-2), second.unsqueeze(-3))


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of every pair: (..., N, 4) and (..., M, 4) to (..., N, M)."""
    return intersection_over_union(first.unsqueeze(-2), second.unsqueeze(-3))
