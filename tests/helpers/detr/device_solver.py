"""The step as on CUDA, on a CPU: matchings solved without a read, by SciPy behind torch's back."""

from __future__ import annotations

import sys
from types import SimpleNamespace

from detr_distill.detr.supervision import matchings
from detr_distill.detr.supervision.solver import solve_on_device

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment


def assign_on_host(costs, counts, by_query):
    """What ``assign_with_triton`` gives."""
    layers, images, queries, targets = costs.shape
    length = queries if by_query else targets
    partners, weights = torch.zeros(layers, images, length, dtype=torch.long), torch.zeros(layers, images, length)
    values, own, live = np.from_dlpack(costs.detach()), np.from_dlpack(partners), np.from_dlpack(weights)
    real = [targets] * images if counts is None else np.from_dlpack(counts)
    for layer, image in np.ndindex(layers, images):
        rows, columns = linear_sum_assignment(values[layer, image, :, : real[image]])
        first, second = (rows, columns) if by_query else (columns, rows)
        own[layer, image, first], live[layer, image, first] = second, 1.0
    return partners, weights, torch.zeros(layers, images)


def pretend_to_assign(costs, counts, by_query):
    """The same for costs without values."""
    layers, images, queries, targets = costs.shape
    shape = (layers, images, queries if by_query else targets)
    partners = torch.zeros(shape, dtype=torch.long, device=costs.device)
    return partners, partners.float(), costs.new_zeros(layers, images)


def solve_as_on_device(monkeypatch, assign=assign_on_host) -> None:
    """Lets every ledger solve as it does on CUDA, the kernel aside."""
    kernel = SimpleNamespace(assign_with_triton=assign)
    monkeypatch.setitem(sys.modules, "detr_distill.detr.supervision.assignment_triton", kernel)
    monkeypatch.setattr(matchings, "solve", lambda costs, solver: [solve_on_device(cost) for cost in costs])
