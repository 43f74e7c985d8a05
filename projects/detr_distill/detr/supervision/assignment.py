"""The Hungarian assignment of a whole training step on the host, with one read of the device.

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

from ...errors import NonFiniteError
from ...structures import Pairs, no_pairs
from .cost_flags import describe_cost

SMALL = 100_000  # entries of a matching below which one thread solves it


LARGE = 10_000  # entries of a layer's costs from which the layers share what the first one's solution tells


MOST_THREADS = 8


@dataclass
class Cost:
    """Cost matrices of one matching.

    Attributes:
        name: for error messages. values: (L, B, Q, T) float32.
        counts: number of real targets of each image (host integers); columns beyond it are padding.
        device_counts: (B,) long, the same on the device, where it is there already.
    """

    name: str
    values: Tensor
    counts: list[int]
    device_counts: Tensor | None = None

    @property
    def is_full(self) -> bool:
        """Whether no column is padding, as far as the host knows."""
        return all(count >= self.values.shape[3] for count in self.counts)


def solve_assignments(costs: list[Cost]) -> list[Pairs]:
    """Solves every matching of a step; all costs come to the host in one copy, all indices go back in one.

    Args:
        costs: on one device.

    Returns:
        For each cost the pairs of least total cost, min(Q, count) an image, sorted by query.

    Raises:
        NonFiniteError: a cost is NaN or infinite; names the matching, the layer and the image's position in the batch.
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

    def solve(image: int) -> list[tuple[np.ndarray, np.ndarray]]:
        matrices = values[:, image, :, : cost.counts[image]]
        for layer, matrix in enumerate(matrices):
            if not np.isfinite(matrix).all():
                raise NonFiniteError(describe_cost(cost.name, layer, image))
        return _solve_layers(matrices)

    # scipy solves outside Python's lock, so threads share the images; small ones are not worth the hand-over.
    solved = _threads().map(solve, range(images)) if values.size > SMALL else map(solve, range(images))
    for image, found in enumerate(solved):
        for layer, (rows, columns) in enumerate(found):
            indices[:, layer, image, : len(rows)] = rows, columns, np.ones_like(rows)
    return indices


def _solve_layers(matrices: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of each of an image's layers, from costs (L, Q, T).

    A price that is taken off a whole column changes no best assignment where every column is assigned, T <= Q. The
    prices of the first layer's solution nearly solve the other layers, whose costs are alike: for 300 queries on both
    sides that takes a twelfth of the time.
    """
    first = linear_sum_assignment(matrices[0])
    queries, targets = matrices.shape[1:]
    if len(matrices) == 1 or targets > queries or queries * targets < LARGE:
        return [first, *map(linear_sum_assignment, matrices[1:])]
    prices = _prices(matrices[0].astype(np.float64), *first)
    return [first, *(linear_sum_assignment(matrix - prices) for matrix in matrices[1:])]


def _prices(costs: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Prices (T,) with which every row's own column is its cheapest, for a best assignment of costs (Q, T).

    The shortest paths from row to row, each leaving its column for another's.
    """
    detour = costs[rows] - costs[rows, columns, None]
    prices = np.zeros(costs.shape[1])
    for _ in range(len(rows)):
        shorter = np.minimum(prices, (detour + prices[columns, None]).min(0))
        if np.array_equal(shorter, prices):
            break
        prices = shorter
    return prices


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS))


def _to_pairs(indices: Tensor, cost: Cost) -> Pairs:
    if indices.shape[-1] == 0:
        return no_pairs(cost.values, *indices.shape[1:3])
    in_order = all(count >= cost.values.shape[2] for count in cost.counts)
    return Pairs(query=indices[0], target=indices[1], weight=indices[2].float(), query_in_order=in_order)
