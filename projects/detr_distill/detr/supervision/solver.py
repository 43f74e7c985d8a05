"""Where the assignments of a step are solved: on the device, by Triton's kernel, or on the host, by SciPy."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util

import torch
from torch import Tensor

from ...errors import ConfigError
from ...structures import Pairs, no_pairs
from ...structures.transfer import copy_to
from ..layers.kernel_trial import tried
from .assignment import Cost, solve_assignments
from .cost_flags import CostFlags, collect_cost_flags, report

# Of `MODEL.DETR.MATCHER.SOLVER`.
SOLVERS = ("auto", "device", "scipy")
KEY = "MODEL.DETR.MATCHER.SOLVER"


def check_solver(solver: str, device: str) -> None:
    """Raises ConfigError where matchings cannot be solved on the device of a run, and are to be."""
    if solver != "device":
        return
    lacking = ""
    if torch.device(device).type != "cuda":
        lacking = f"a CUDA device, and MODEL.DEVICE is {device!r}"
    elif not torch.cuda.is_available():
        lacking = "a CUDA device, and this machine offers none"
    elif importlib.util.find_spec("triton") is None:
        lacking = "triton, which cannot be imported here (PyTorch brings it along on Linux)"
    if lacking:
        raise ConfigError(f'{KEY} is "device", which needs {lacking}. Set it to "auto" or "scipy".')


def solve(costs: list[Cost], solver: str) -> list[Pairs]:
    """Solves every matching of a step.

    Args:
        costs: on one device.
        solver: of ``SOLVERS``; "auto": the device where that is CUDA and Triton works, else SciPy.

    Returns:
        For each cost the pairs of least total cost, min(Q, count) an image and padding.

    Raises:
        NonFiniteError: SciPy met a cost that is NaN or infinite. On the device its pairs weigh NaN, and it is reported
            to :func:`cost_flags.collect_cost_flags`.
        ConfigError: "device" for costs that are not on CUDA.
    """
    if not costs or solver == "scipy":
        return solve_assignments(costs)
    device = costs[0].values.device
    if solver == "device":
        check_solver(solver, str(device))
    elif device.type != "cuda" or not triton_works(device):
        return solve_assignments(costs)
    return [solve_on_device(cost) for cost in costs]


def solve_on_device(cost: Cost) -> Pairs:
    """One matching by Triton's kernel, without a read of the device.

    Pairs stand in the order of the queries where every query is in one or targets are the more, else of the targets.
    """
    from .assignment_triton import assign_with_triton

    layers, images, queries, targets = cost.values.shape
    if not queries * targets:
        return no_pairs(cost.values, layers, images)
    full = cost.device_counts is None and cost.is_full
    counts = None if full else cost.device_counts
    if counts is None and not full:
        counts = copy_to(torch.tensor(cost.counts), cost.values.device)
    by_query = targets > queries or (full and targets == queries)
    partners, weights, flags = assign_with_triton(cost.values, counts, by_query)
    report(CostFlags(cost.name, flags))
    own = torch.arange(partners.shape[-1], device=partners.device).expand_as(partners)
    if by_query:
        return Pairs(own, partners, weights, query_in_order=full)
    return Pairs(partners, own, weights, target_in_order=True)


@functools.cache
@tried("Matchings are solved on the host, for which the device waits")
def triton_works(device: torch.device) -> None:
    """Compares with SciPy, once."""
    generator = torch.Generator().manual_seed(0)
    costs = [
        Cost("wide", torch.randn(2, 3, 9, 5, generator=generator), [5, 0, 3]),
        Cost("high", torch.randn(1, 2, 4, 7, generator=generator), [7, 2]),
        Cost("tied", torch.randn(1, 2, 8, 8, generator=generator).round(), [8, 8]),
    ]
    with collect_cost_flags():  # these costs are no step's
        found = [solve_on_device(dataclasses.replace(cost, values=cost.values.to(device))) for cost in costs]
    for cost, pairs, expected in zip(costs, found, solve_assignments(costs), strict=True):
        if not torch.allclose(_totals(cost.values, pairs), _totals(cost.values, expected), atol=1e-5):
            raise RuntimeError(f"the pairs of the costs '{cost.name}' are not the best")


def _totals(costs: Tensor, pairs: Pairs) -> Tensor:
    """(L, B): what the pairs of costs (L, B, Q, T) cost, on the host."""
    query, target, weight = pairs.query.cpu(), pairs.target.cpu(), pairs.weight.cpu()
    rows = costs.gather(2, query.unsqueeze(-1).expand(-1, -1, -1, costs.shape[3]))
    return (rows.gather(3, target.unsqueeze(-1)).squeeze(-1) * weight).sum(-1)
