"""The Hungarian assignment of a whole training step, with one read of the device.

Letters: L layers, B images, Q queries, T targets (padded to the largest image), M pairs (padded).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..errors import NonFiniteError
from ..pairs import Pairs, no_pairs

SMALL = 100_000  # entries of a matching below which one thread solves it
MOST_THREADS = 8


@dataclass
class Cost:
    """Cost matrices of one matching.

    Attributes:
        name: for error messages. values: (L, B, Q, T) float32.
        counts: number of real targets of each image (host integers); columns beyond it are padding.
    """

    name: str
    values: Tensor
    counts: list[int]


def solve_assignments(costs: list[Cost]) -> list[Pairs]:
    """Solves every matching of a step; all costs come to the host in one copy, all indices go back in one.

    Args:
        costs: on one device.

    Returns:
        For each cost the pairs of least total cost, min(Q, count) an image, sorted by query.

    Raises:
        NonFiniteError: a cost is NaN or infinite; names the matching, the layer and the image's place in the batch.
    """
    if not costs:
        return []
    device = costs[0].values.device
    host = torch.cat([cost.values.detach().flatten() for cost in costs]).cpu().numpy()
    solved, start = [], 0
    for cost in costs:
        size = cost.values.numel()
        solved.append(_solve(cost, host[start : start + size].reshape(cost.values.shape)))
        start += size
    flat = torch.from_numpy(np.concatenate([indices.reshape(-1) for indices in solved])).to(device, non_blocking=True)
    pieces = flat.split([indices.size for indices in solved])
    return [_to_pairs(p.view(i.shape), c) for p, i, c in zip(pieces, solved, costs, strict=True)]


def _solve(cost: Cost, values: np.ndarray) -> np.ndarray:
    """Indices (3, L, B, M): query, target and 1 for a pair, zero where padded."""
    layers, images, queries, _ = values.shape
    most = max((min(queries, count) for count in cost.counts), default=0)
    indices = np.zeros((3, layers, images, most), dtype=np.int64)
    problems = [(layer, image) for layer in range(layers) for image in range(images)]

    def solve(problem: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        layer, image = problem
        matrix = values[layer, image, :, : cost.counts[image]]
        if not np.isfinite(matrix).all():
            raise NonFiniteError(
                f"The matching cost '{cost.name}' of decoder layer {layer} and image {image} of the batch is not "
                "finite. Lower SOLVER.BASE_LR or clip gradients; check the image and its boxes."
            )
        return linear_sum_assignment(matrix)

    # scipy solves outside Python's lock, so threads share the problems; small ones are not worth the hand-over.
    solved = _threads().map(solve, problems) if values.size > SMALL else map(solve, problems)
    for (layer, image), (rows, columns) in zip(problems, solved, strict=True):
        indices[:, layer, image, : len(rows)] = rows, columns, np.ones_like(rows)
    return indices


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS))


def _to_pairs(indices: Tensor, cost: Cost) -> Pairs:
    if indices.shape[-1] == 0:
        return no_pairs(cost.values, *indices.shape[1:3])
    in_order = all(count >= cost.values.shape[2] for count in cost.counts)
    return Pairs(query=indices[0], target=indices[1], weight=indices[2].float(), query_in_order=in_order)
