"""The assignment by Triton's kernel against SciPy's: total costs of many problems, and on CUDA the time of a step's.

    python -m benchmarks.assignment --json benchmarks/results/assignment.json

Without CUDA the kernel runs in Triton's interpreter, on problems of up to 16 x 16 and untimed. Timed are the matchings
of one D3ETR step at batch 4, six layers each: own queries and the teacher's with 20 objects an image (300 x 20), and
student with teacher (300 x 300), whose boxes are alike or have nothing to do with each other; SciPy's time is with the
copies to the host and back. Medians of calls. Keys of the JSON: device, problems, kinds (of each: how many, and the
largest difference of the total costs, relative to the best), milliseconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from common import device_name, write_result
from scipy.optimize import linear_sum_assignment
from torch import Tensor

KINDS = ("random", "tied", "equal", "products", "rounded_boxes", "huge_and_tiny", "padded")
PROBLEMS_A_CASE = 4  # images that are solved together
LAYERS, BATCH, QUERIES, OBJECTS = 6, 4, 300, 20
Case = tuple[str, Tensor, list[int]]


def make_cases(problems: int, most: int | None) -> Iterator[Case]:
    """Kind, costs (1, 4, Q, T) and real targets of each image, so many problems in all, always the same.

    Args:
        most: queries and targets; None: up to 900 x 300 and 300 x 900.
    """
    generator = torch.Generator().manual_seed(0)
    for index in range(-(-problems // PROBLEMS_A_CASE)):
        kind = KINDS[index % len(KINDS)]
        sides = (most, most) if most else (300, 60) if index % 10 > 1 else (900, 300) if index % 10 else (300, 900)
        queries, targets = (int(torch.randint(1, side + 1, (), generator=generator)) for side in sides)
        if index % 5 == 0:
            targets = queries = min(queries, targets)
        costs = _costs(kind, queries, targets, generator)
        counts = [targets] * PROBLEMS_A_CASE
        if kind == "padded":
            counts = torch.randint(0, targets + 1, (PROBLEMS_A_CASE,), generator=generator).tolist()
            for image, count in enumerate(counts):
                costs[0, image, :, count:] = float("nan")
        yield kind, costs, counts


def _costs(kind: str, queries: int, targets: int, generator: torch.Generator) -> Tensor:
    shape = (1, PROBLEMS_A_CASE, queries, targets)
    values = torch.randn(shape, generator=generator)
    if kind == "tied":
        return (values * 2).round()
    if kind == "equal":
        return torch.full(shape, 0.3) + (values > 1.5) * 0.1
    if kind == "products":  # the classical hard case: the best assignment of a product sorts one side against the other
        first, second = values[..., :1], values[..., :1, :]
        return first * second
    if kind == "rounded_boxes":
        centres = torch.rand(1, PROBLEMS_A_CASE, queries + targets, 4, generator=generator)
        return torch.cdist(centres[:, :, :queries], centres[:, :, queries:], p=1).mul(8).round().div(8)
    if kind == "huge_and_tiny":
        return values * 10.0 ** torch.randint(-6, 6, shape, generator=generator)
    return values


def total_difference(costs: Tensor, counts: list[int], partners: Tensor, weights: Tensor, by_query: bool) -> float:
    """Largest difference of the totals from SciPy's, relative to the sum of its costs' sizes, at least 1.

    Raises:
        AssertionError: what was found is no assignment.
    """
    worst = 0.0
    for image, count in enumerate(counts):
        real = costs[0, image, :, :count].double()
        rows, columns = linear_sum_assignment(real.numpy())
        best = real[rows, columns]
        own = weights[0, image].nonzero()[:, 0]
        other = partners[0, image][own]
        query, target = (own, other) if by_query else (other, own)
        assert len(own) == len(rows) == len(query.unique()) == len(target.unique())
        difference = (real[query, target].sum() - best.sum()).abs() / best.abs().sum().clamp(min=1)
        worst = max(worst, float(difference))
    return worst


def check(problems: int, device: str) -> dict[str, dict]:
    """Of each kind how many problems were solved, and the largest difference."""
    from detr_distill.detr.supervision.assignment_triton import assign_with_triton

    found = {kind: {"problems": 0, "difference": 0.0} for kind in KINDS}
    for index, (kind, costs, counts) in enumerate(make_cases(problems, None if device == "cuda" else 16)):
        by_query = costs.shape[2] < costs.shape[3] or index % 2 == 0
        arguments = costs.to(device), torch.tensor(counts, device=device), by_query
        partners, weights, flags = (values.cpu() for values in assign_with_triton(*arguments))
        assert not flags.any(), f"{kind}: a cost was called not finite"
        found[kind]["problems"] += len(counts)
        difference = total_difference(costs, counts, partners, weights, by_query)
        found[kind]["difference"] = max(found[kind]["difference"], difference)
    return found


def time_step(device: str, rounds: int) -> dict[str, float]:
    """Milliseconds of a step's matchings on the device and by SciPy, for alike and unlike sides."""
    from detr_distill.detr.supervision.assignment import Cost
    from detr_distill.detr.supervision.matcher import box_cost
    from detr_distill.detr.supervision.solver import solve

    generator = torch.Generator().manual_seed(0)
    shape = (LAYERS, BATCH, QUERIES, 4)
    boxes = (torch.rand(shape, generator=generator) * 0.8 + 0.1).to(device)
    objects = (torch.rand(LAYERS, BATCH, OBJECTS, 4, generator=generator) * 0.8 + 0.1).to(device)
    noise = torch.randn(shape, generator=generator).to(device)
    sides = {
        "alike": boxes[:, :, torch.randperm(QUERIES, generator=generator)] + 0.02 * noise,
        "unlike": (torch.rand(shape, generator=generator) * 0.8 + 0.1).to(device),
    }
    found = {}
    for name, others in sides.items():
        with_objects = Cost("objects", box_cost(boxes, objects, 5.0, 2.0), [OBJECTS] * BATCH)
        with_teacher = Cost("teacher", box_cost(boxes, others.clamp(0.01, 1), 5.0, 2.0), [QUERIES] * BATCH)
        costs = [with_objects, with_objects, with_teacher]
        for solver in ("device", "scipy"):
            found[f"{solver}_{name}"] = _milliseconds(partial(solve, costs, solver), rounds)
    return found


def _milliseconds(call: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--problems", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=9, help="timed calls, after one to warm up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    kinds = check(arguments.problems, arguments.device)
    name = device_name(arguments.device) if arguments.device == "cuda" else "Triton's interpreter"
    result = {"device": name, "problems": sum(found["problems"] for found in kinds.values()), "kinds": kinds}
    if arguments.device == "cuda":
        result["milliseconds"] = time_step(arguments.device, arguments.rounds)
    write_result(arguments.json, result)
    print(
        f"{result['problems']} problems, largest difference {max(found['difference'] for found in kinds.values()):.1e}"
    )
    print(result.get("milliseconds", ""))


if __name__ == "__main__":
    main()
