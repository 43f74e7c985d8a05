"""Boxes in normalised (centre x, centre y, width, height)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..structures.constants import is_graph

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
    if is_graph():  # an exported graph keeps the formula: its optimiser joins limits of one value wrongly
        return values.clamp(min=epsilon).log() - (1 - values).clamp(min=epsilon).log()
    nearest = values.clamp(min=epsilon, max=1 - epsilon)
    # Beyond the limits only one of the two is held: the other goes on, here to the first order.
    return torch.add(torch.logit(nearest), values.clamp(0, 1) - nearest, alpha=1 / (1 - epsilon))


def area(sides: Tensor) -> Tensor:
    """(..., 2) to (...); the gradient of Tensor.prod reads the device to count zeros."""
    width, height = sides.unbind(-1)
    return width * height


def intersection_over_union(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes whose shapes broadcast, (..., 4) each to (...) in [0, 1], without gradient; 0 for no area."""
    parts = _compare(first.detach(), second.detach())
    return parts.overlap / (parts.union + torch.finfo(first.dtype).eps)


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU of boxes whose shapes broadcast.

    torchvision's functions have no leading axes (pairs) or read the device in a boolean index (loss). Degenerate boxes
    (no area) give finite values. Source: 1902.09630 [P].

    Args:
        first, second: (..., 4).

    Returns:
        (...) in [-1, 1].
    """
    return _GeneralizedIou.apply(first, second)


def pairwise_giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU of every pair: (..., N, 4) and (..., M, 4) to (..., N, M)."""
    return generalized_iou(first.unsqueeze(-2), second.unsqueeze(-3))


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of every pair, without gradient: (..., N, 4) and (..., M, 4) to (..., N, M)."""
    return intersection_over_union(first.unsqueeze(-2), second.unsqueeze(-3))


class _Sides(NamedTuple):
    """A box's corners and sides, (..., 2) each."""

    low: Tensor
    high: Tensor
    size: Tensor


class _Parts(NamedTuple):
    """Two boxes, the sides (..., 2) that they share and of their hull, and the areas (...)."""

    first: _Sides
    second: _Sides
    shared: _Sides
    overlap: Tensor
    union: Tensor


def _sides(boxes: Tensor) -> _Sides:
    centre, size = boxes[..., :2], boxes[..., 2:]
    low, high = torch.sub(centre, size, alpha=0.5), torch.add(centre, size, alpha=0.5)
    return _Sides(low, high, high - low)


def _compare(first: Tensor, second: Tensor) -> _Parts:
    a, b = _sides(first), _sides(second)
    low, high = torch.maximum(a.low, b.low), torch.minimum(a.high, b.high)
    shared = _Sides(low, high, (high - low).clamp_(min=0))
    overlap = area(shared.size)
    return _Parts(a, b, shared, overlap, area(a.size) + area(b.size) - overlap)


class _GeneralizedIou(torch.autograd.Function):
    """The gradient is written out: autograd's is three times as many operators, and waits for the device in ``prod``.

    Where two corners are equal each box has half of the gradient, as torch's ``minimum`` gives it.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        epsilon = torch.finfo(first.dtype).eps
        parts = _compare(first, second)
        hull_sides = torch.maximum(parts.first.high, parts.second.high) - torch.minimum(
            parts.first.low, parts.second.low
        )
        hull = area(hull_sides.clamp_(min=0))
        covered, around = parts.union + epsilon, hull + epsilon
        ctx.save_for_backward(
            *parts.first, *parts.second, parts.shared.size, hull_sides, parts.overlap, covered, around
        )
        ctx.shapes = first.shape, second.shape
        return parts.overlap / covered - (hull - parts.union) / around

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *corners, shared, hull, overlap, covered, around = ctx.saved_tensors
        first, second = _Sides(*corners[:3]), _Sides(*corners[3:])
        # The value is overlap / covered + covered / around - 1; areas of the boxes count in ``covered``.
        per_covered = around.reciprocal() - overlap / covered.square()
        slopes = torch.stack([covered.reciprocal() - per_covered, -covered / around.square(), per_covered])
        slopes = (slopes * gradient).unsqueeze(-1)
        # An area changes with one side by the other; sides that do not meet share nothing however they move.
        by_shared = slopes[0] * (shared.flip(-1) * (shared > 0))
        by_hull = slopes[1] * hull.flip(-1)
        return tuple(
            _to_boxes(own, other, by_shared, by_hull, slopes[2] * own.size.flip(-1)).sum_to_size(shape)
            if needed
            else None
            for own, other, needed, shape in zip(
                (first, second), (second, first), ctx.needs_input_grad, ctx.shapes, strict=True
            )
        )


def _to_boxes(own: _Sides, other: _Sides, by_shared: Tensor, by_hull: Tensor, by_size: Tensor) -> Tensor:
    """The gradient (..., 4) of one box from those of the sides (..., 2): shared, of the hull, and its own."""
    # 1 where the other box's corner is the farther one, -1 where it is the nearer one, 0 where they are equal.
    low, high = (other.low - own.low).sign_(), (other.high - own.high).sign_()
    either = (by_shared - by_hull) / 2
    both = by_size + (by_shared + by_hull) / 2
    return torch.cat([(low + high) * either, torch.addcmul(both, high - low, either, value=0.5)], dim=-1)
