"""Distances between sets of weighted points in the plane.

Letters: R points (Rs student's, Rt teacher's), K directions, G nodes along a side of a grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..divergence import TINY

# Added to the denominator of the energy coefficient, in sides of the image: points much nearer than this are one point.
NEAR = 0.01


def energy_coefficient(
    teacher_points: Tensor, teacher_weights: Tensor, student_points: Tensor, student_weights: Tensor, directions: int
) -> Tensor:
    """``(E|X - Y| - (E|X - X'| + E|Y - Y'|) / 2) / (E|X - Y| + NEAR)``, X the student's points and Y the teacher's.

    Between 0, for equal distributions, and 1; the same for a small object as for a large one, but for NEAR; with a
    gradient to points and weights however far apart the two are. Source: the energy distance over its largest
    possible value (Szekely and Rizzo) [P], used for attention here [R]. A distance in the plane is pi / 2 times the
    mean of its projections' lengths over all directions; with K of them, evenly spread, it is read from K sorted lines.

    Args:
        teacher_points: (..., Rt, 2), teacher_weights: (..., Rt), adding up to 1: the teacher's points.
        student_points: (..., Rs, 2), student_weights: (..., Rs): the student's.

    Returns:
        (...).
    """
    angles = torch.arange(directions, device=student_points.device) * (math.pi / directions)
    lines = torch.stack([angles.cos(), angles.sin()]).to(student_points.dtype)
    along = (torch.cat([teacher_points, student_points], dim=-2) @ lines).transpose(-2, -1)  # (..., K, Rt + Rs)
    along, order = along.sort(-1)
    gaps = along.diff(dim=-1)
    teacher_below, student_below = (
        mass.unsqueeze(-2).expand_as(along).gather(-1, order).cumsum(-1)[..., :-1]
        for mass in (
            torch.cat([teacher_weights, torch.zeros_like(student_weights)], dim=-1),
            torch.cat([torch.zeros_like(teacher_weights), student_weights], dim=-1),
        )
    )
    # With the distribution functions F and G, constant between neighbours, E|X - Y| is the integral of
    # F (1 - G) + G (1 - F), and the numerator that of (F - G)^2.
    difference = ((student_below - teacher_below).square() * gaps).sum(-1).mean(-1)
    between = ((student_below + teacher_below - 2 * student_below * teacher_below) * gaps).sum(-1).mean(-1)
    return difference / (between + NEAR * 2 / math.pi)


def grid_distance(
    teacher_points: Tensor, teacher_weights: Tensor, student_points: Tensor, student_weights: Tensor, size: int
) -> Tensor:
    """:func:`jensen_shannon` of both distributions on a grid; arguments as in :func:`energy_coefficient`."""
    return jensen_shannon(
        rasterise(teacher_points, teacher_weights, size), rasterise(student_points, student_weights, size)
    )


def rasterise(points: Tensor, weights: Tensor, size: int) -> Tensor:
    """Points as a distribution over G x G nodes, each point shared by the four around it, bilinearly.

    Args:
        points: (..., R, 2), (x, y). weights: (..., R), adding up to 1. size: G; the outer nodes lie on the border.

    Returns:
        (..., G * G + 1), row by row; the last entry is what lies outside of the image.
    """
    nodes = torch.arange(size, dtype=points.dtype, device=points.device) / (size - 1)
    shares = (1 - (points.unsqueeze(-1) - nodes).abs() * (size - 1)).clamp(min=0)  # (..., R, 2, G)
    columns, rows = shares.unbind(-2)
    inside = ((rows * weights.unsqueeze(-1)).transpose(-2, -1) @ columns).flatten(-2)
    outside = (weights.sum(-1) - inside.sum(-1)).clamp(min=0)
    return torch.cat([inside, outside.unsqueeze(-1)], dim=-1)


def jensen_shannon(teacher: Tensor, student: Tensor) -> Tensor:
    """``(KL(t || m) + KL(s || m)) / 2`` with m = (t + s) / 2, in nats: (..., N) and (..., N) to (...), at most log 2.

    KL has no bound where the student does not look at all, as points often do not.
    """
    middle = ((teacher + student) / 2 + TINY).log()
    of_teacher, of_student = (values * ((values + TINY).log() - middle) for values in (teacher, student))
    return (of_teacher + of_student).sum(-1) / 2
