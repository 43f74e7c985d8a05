"""Time and memory of deformable attention: Triton's kernels against PyTorch's operators, on CUDA.

    python benchmarks/deformable_attention.py --json deformable_attention.json

The values are the four levels of an 800x1333 image (strides 8 to 64, 22,223 cells), 8 heads of 32 channels, 4 points a
level; the queries are a decoder's (300 anywhere) or an encoder's (every cell, its points around itself). The two forms
take turns, round after round, in one process; medians of a call within a row of calls are reported. Memory is the most
that a call allocates beyond its arguments. Errors are ||found - exact|| / ||exact|| of the output and the three
gradients; exact is PyTorch's form in float64. (The locations' gradient jumps at the centres of cells, so the few points
that rounding puts on the other side make up most of its error, in either form.) Needs torch and Triton, not detectron2.
Keys of the JSON: commit, device, torch, triton, batch, and a list of cases.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import statistics
import sys
import time
import traceback
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from common import ROOT, write_result
from torch import Tensor

PACKAGE = ROOT / "projects" / "detr_distill"
SHAPES = [(100, 167), (50, 84), (25, 42), (13, 21)]
HEADS, CHANNELS, POINTS = 8, 32, 4
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAMES = ("output", "values", "locations", "weights")
Form = Callable[[Tensor, list[tuple[int, int]], Tensor, Tensor], Tensor]


def load_forms() -> dict[str, Form]:
    """Both forms out of the package, without running its ``__init__`` files, which import detectron2."""
    for folder in ("", "detr", "detr/layers"):
        name = ".".join(["detr_distill", *filter(None, folder.split("/"))])
        package = types.ModuleType(name)
        package.__path__ = [str(PACKAGE / folder)]
        sys.modules[name] = package
    pytorch = importlib.import_module("detr_distill.detr.layers.deformable").attend_with_pytorch
    try:
        triton = importlib.import_module("detr_distill.detr.layers.deformable_triton").attend_with_triton
    except ImportError as error:
        raise SystemExit(f"This benchmark needs Triton, which cannot be imported here ({error}).") from error
    return {"pytorch": pytorch, "triton": triton}


def make_arguments(kind: str, batch: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Values (B, S, H, c), locations (B, Q, H, L, P, 2) and weights (B, Q, H, L, P) that want gradients."""
    generator = torch.Generator(device).manual_seed(0)
    random: dict[str, Any] = {"generator": generator, "device": device}
    sizes = torch.tensor([(width, height) for height, width in SHAPES], device=device, dtype=torch.float32)
    if kind == "encoder":
        cells = [torch.cartesian_prod(torch.arange(h) + 0.5, torch.arange(w) + 0.5).flip(1) for h, w in SHAPES]
        places = [cell.to(device) / size for cell, size in zip(cells, sizes, strict=True)]
        reference = torch.cat(places).expand(batch, -1, -1)
    else:
        reference = torch.rand(batch, 300, 2, **random)
    grid = (batch, reference.shape[1], HEADS, len(SHAPES), POINTS)
    offsets = torch.randn(*grid, 2, **random) * 3  # cells of the level
    locations = reference[:, :, None, None, None] + offsets / sizes[:, None]
    weights = torch.randn(*grid, **random).flatten(-2).softmax(-1).view(grid)
    values = torch.randn(batch, sum(h * w for h, w in SHAPES), HEADS, CHANNELS, **random).to(dtype)
    return values.requires_grad_(), locations.requires_grad_(), weights.requires_grad_()


def forward(form: Form, arguments: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor, ...]:
    values, locations, weights = arguments
    with torch.no_grad():
        return (form(values, SHAPES, locations, weights),)


def forward_backward(form: Form, arguments: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor, ...]:
    values, locations, weights = arguments
    output = form(values, SHAPES, locations, weights)
    return output.detach(), *torch.autograd.grad(output, arguments, upstream)


def measure(steps: Mapping[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of a call of each step, after one round to warm up; the steps take turns in every round."""
    milliseconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(rounds + 1):
        for name, step in steps.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            for _ in range(repeats):
                step()
            end.record()
            torch.cuda.synchronize()
            if round_number:
                milliseconds[name].append(start.elapsed_time(end) / repeats)
    return {name: statistics.median(values) for name, values in milliseconds.items()}


def peak_mebibytes(step: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def relative_errors(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> dict[str, float]:
    pairs = zip(NAMES, found, exact, strict=True)
    return {name: ((ours.double() - goal).norm() / goal.norm()).item() for name, ours, goal in pairs}


def run_case(forms: dict[str, Form], kind: str, dtype: torch.dtype, options: argparse.Namespace) -> dict:
    """Errors first, and with them the compilation; then time and memory, forward alone and with the gradients."""
    arguments = make_arguments(kind, options.batch, dtype, options.device)
    upstream = torch.randn_like(forms["pytorch"](arguments[0], SHAPES, *arguments[1:]))
    double = tuple(x.detach().double().requires_grad_() for x in arguments)
    exact = forward_backward(forms["pytorch"], double, upstream.double())
    result: dict = {"queries": kind, "dtype": str(dtype).removeprefix("torch."), "errors": {}, "first_call_seconds": {}}
    for name, form in forms.items():
        start = time.perf_counter()
        found = forward_backward(form, arguments, upstream)
        torch.cuda.synchronize()
        result["first_call_seconds"][name] = time.perf_counter() - start
        result["errors"][name] = relative_errors(found, exact)
    del double, exact, found
    for work in (forward, forward_backward):
        steps = {name: functools.partial(work, form, arguments, upstream) for name, form in forms.items()}
        medians = measure(steps, options.rounds, options.repeats)
        peaks = {name: peak_mebibytes(step) for name, step in steps.items()}
        result[work.__name__] = {
            "milliseconds": medians,
            "peak_mebibytes": peaks,
            "times_faster": medians["pytorch"] / medians["triton"],
            "memory_ratio": peaks["triton"] / peaks["pytorch"],
        }
    return result


def describe(case: dict) -> str:
    if "failure" in case:
        return f"{case['queries']:8} {case['dtype']:9} failed: {case['failure'].strip().splitlines()[-1]}"
    parts = [f"{case['queries']:8} {case['dtype']:9}"]
    for work in ("forward", "forward_backward"):
        row = case[work]
        parts.append(
            f"{work} {row['milliseconds']['pytorch']:.3f} -> {row['milliseconds']['triton']:.3f} ms "
            f"({row['times_faster']:.1f} times faster, memory x{row['memory_ratio']:.2f})"
        )
    parts.append(f"largest error {max(case['errors']['triton'].values()):.1e}")
    return "; ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result, written after each case")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds, after one to warm up")
    parser.add_argument("--repeats", type=int, default=10, help="calls in a row within a round")
    options = parser.parse_args()
    forms = load_forms()
    if torch.device(options.device).type != "cuda" or not torch.cuda.is_available():
        raise SystemExit(
            "This benchmark needs CUDA: Triton's kernels run on a GPU alone. torch.cuda.is_available() is "
            f"{torch.cuda.is_available()} here, and --device is {options.device}."
        )
    torch.cuda.set_device(torch.device(options.device).index or 0)
    import triton

    result: dict = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "batch": options.batch,
        "cases": [],
    }
    for kind in ("decoder", "encoder"):
        for dtype in DTYPES:
            try:
                case = run_case(forms, kind, dtype, options)
            except Exception:  # the other cases are worth having
                case = {"queries": kind, "dtype": str(dtype).removeprefix("torch."), "failure": traceback.format_exc()}
            result["cases"].append(case)
            write_result(options.json, result)
            print(describe(case), flush=True)
    if any("failure" in case for case in result["cases"]):
        raise SystemExit(f"Some cases failed; {options.json} says why.")


if __name__ == "__main__":
    main()
