"""Distances between sets of weighted points in the plane.

Letters: R points (Rs student's, Rt teacher's), K directions, G nodes along a side of a grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..divergence import TINY

# Added to the denominator of the energy coefficient, in sides of the image: places much nearer than this are one place.
NEAR = 0.01


def energy_coefficient(
    goal_places: Tensor, goal_weights: Tensor, places: Tensor, weights: Tensor, directions: int
) -> Tensor:
    """``(E|X - Y| - (E|X - X'| + E|Y - Y'|) / 2) / (E|X - Y| + NEAR)``, X the student's points and Y the teacher's.

    Between 0, for equal distributions, and 1; the same for a small object as for a large one, but for NEAR; with a
    gradient to places and weights however far apart the two are. Source: the energy distance over its largest possible
    value (Szekely and Rizzo) [P], used for attention here [R]. A distance in the plane is pi / 2 times the mean of its
    projections' lengths over all directions; with K of them, evenly spread, it is read from K sorted lines.

    Args:
        goal_places: (..., Rt, 2), goal_weights: (..., Rt), adding up to 1: the teacher's points.
        places: (..., Rs, 2), weights: (..., Rs): the student's.

    Returns:
        (...).
    """
    angles = torch.arange(directions, device=places.device) * (math.pi / directions)
    lines = torch.stack([angles.cos(), angles.sin()]).to(places.dtype)
    along = (torch.cat([goal_places, places], dim=-2) @ lines).transpose(-2, -1)  # (..., K, Rt + Rs)
    along, order = along.sort(-1)
    gaps = along.diff(dim=-1)
    goal_below, below = (
        mass.unsqueeze(-2).expand_as(along).gather(-1, order).cumsum(-1)[..., :-1]
        for mass in (
            torch.cat([goal_weights, torch.zeros_like(weights)], dim=-1),
            torch.cat([torch.zeros_like(goal_weights), weights], dim=-1),
        )
    )
    # With the distribution functions F and G, constant between neighbours, E|X - Y| is the integral of
    # F (1 - G) + G (1 - F), and the numerator that of (F - G)^2.
    difference = ((below - goal_below).square() * gaps).sum(-1).mean(-1)
    between = ((below + goal_below - 2 * below * goal_below) * gaps).sum(-1).mean(-1)
    return difference / (between + NEAR * 2 / math.pi)


def grid_distance(goal_places: Tensor, goal_weights: Tensor, places: Tensor, weights: Tensor, size: int) -> Tensor:
    """:func:`jensen_shannon` of both distributions on a grid; arguments as in :func:`energy_coefficient`."""
    return jensen_shannon(rasterise(goal_places, goal_weights, size), rasterise(places, weights, size))


def rasterise(places: Tensor, weights: Tensor, size: int) -> Tensor:
    """Points as a distribution over G x G nodes, each point shared by the four around it, bilinearly.

    Args:
        places: (..., R, 2), (x, y). weights: (..., R), adding up to 1. size: G; the outer nodes lie on the border.

    Returns:
        (..., G * G + 1), row by row; the last entry is what lies outside of the image.
    """
    nodes = torch.arange(size, dtype=places.dtype, device=places.device) / (size - 1)
    shares = (1 - (places.unsqueeze(-1) - nodes).abs() * (size - 1)).clamp(min=0)  # (..., R, 2, G)
    columns, rows = shares.unbind(-2)
    inside = ((rows * weights.unsqueeze(-1)).transpose(-2, -1) @ columns).flatten(-2)
    outside = (weights.sum(-1) - inside.sum(-1)).clamp(min=0)
    return torch.cat([inside, outside.unsqueeze(-1)], dim=-1)


def jensen_shannon(target: Tensor, prediction: Tensor) -> Tensor:
    """``(KL(t || m) + KL(p || m)) / 2`` with m = (t + p) / 2, in nats: (..., N) and (..., N) to (...), at most log 2.

    KL has no bound where the student does not look at all, as points often do not.
    """
    middle = ((target + prediction) / 2 + TINY).log()
    parts = (values * ((values + TINY).log() - middle) for values in (target, prediction))
    return sum(parts).sum(-1) / 2  # type: ignore[union-attr]
