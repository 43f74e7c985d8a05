"""Time and memory of attention distillation: Triton's kernels on queries and keys against maps, on CUDA.

    python benchmarks/attention_divergence.py --json attention_divergence.json

Each case is what D3ETR adds for one decoder layer: the divergence of two sides' attention and its gradients, with the
student's own attention and its gradients. From maps, both sides' maps are made and kept; without, torch's fused
attention runs and Triton's kernels compare queries and keys. The forms take turns; medians of a call are reported.
Memory is the most that a call allocates beyond its arguments. Errors are ||found - exact|| / ||exact|| of the
divergence and of its gradients with respect to the student's queries and keys; exact is the form on maps in float64.
Needs torch and Triton, not detectron2. Keys of the JSON: commit, device, torch, triton, and a list of cases.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import ROOT, write_result
from deformable_attention import measure, peak_mebibytes
from torch import Tensor

PACKAGE = ROOT / "projects" / "detr_distill"
# Queries, keys, width of a head: self- and cross-attention of Conditional DETR at 800x1088, and at larger sizes.
SHAPES = ((300, 300, 32), (300, 850, 64), (600, 1700, 64))
BATCH, HEADS = 4, 8
DTYPES = (torch.bfloat16, torch.float32)
TINY = 1e-8
Sides = tuple[Any, Any, Tensor, Tensor]  # student's and teacher's factors, the student's values, upstream


def load_parts() -> tuple[Any, Any]:
    """The package's fused form and its factors, without running its ``__init__`` files, which import detectron2."""
    for folder in ("", "distill", "structures"):
        name = ".".join(["detr_distill", *filter(None, [folder])])
        package = types.ModuleType(name)
        package.__path__ = [str(PACKAGE / folder)]
        sys.modules[name] = package
    try:
        fused = importlib.import_module("detr_distill.distill.attention_fused")
    except ImportError as error:
        raise SystemExit(f"This benchmark needs Triton, which cannot be imported here ({error}).") from error
    return fused, importlib.import_module("detr_distill.structures.attention").AttentionFactors


def make_sides(
    factors: Any,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: str,
    *,
    heads: tuple[int, int] = (HEADS, HEADS),
    padded: bool = True,
    images: int = BATCH,
) -> Sides:
    """Factors of student and teacher, the student's values, and an upstream gradient; an image's last keys hidden."""
    generator = torch.Generator(device).manual_seed(0)
    queries, keys, width = shape

    def draw(count: int, of: int) -> Tensor:
        values = torch.randn(images, count, of, width, generator=generator, device=device)
        return values.to(dtype).transpose(1, 2)

    mask = None
    if padded:
        mask = torch.zeros(images, 1, 1, keys, dtype=torch.bool, device=device)
        mask[0, ..., keys - keys // 8 :] = True
    student = factors(*(draw(count, heads[0]).requires_grad_() for count in (queries, keys)), mask)
    teacher = factors(*(draw(count, heads[1]) for count in (queries, keys)), mask)
    groups = heads[0] if heads[0] == heads[1] else 1
    upstream = torch.rand(images, groups, queries, generator=generator, device=device)
    return student, teacher, draw(keys, heads[0]).requires_grad_(), upstream


def compare_maps(student: Any, teacher: Any) -> Tensor:
    """The divergence from maps."""
    return compare(student.map(), teacher.map())


def compare(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    if student_map.shape[1] != teacher_map.shape[1]:
        student_map, teacher_map = student_map.mean(1, keepdim=True), teacher_map.mean(1, keepdim=True)
    return (teacher_map * (teacher_map / (student_map + TINY) + TINY).log()).sum(-1)


def step_with_maps(sides: Sides) -> tuple[Tensor, ...]:
    """One layer as it runs where maps are kept."""
    student, teacher, values, upstream = sides
    with torch.no_grad():
        teacher_map = teacher.map()
    student_map = student.map()
    output = student_map.to(values.dtype) @ values
    total = (compare(student_map, teacher_map) * upstream).sum() + output.float().sum()
    return torch.autograd.grad(total, (student.query, student.key, values))


def step_without_maps(fused: Any, sides: Sides) -> tuple[Tensor, ...]:
    """One layer as it runs on queries and keys."""
    student, teacher, values, upstream = sides
    allowed = None if student.mask is None else ~student.mask
    output = F.scaled_dot_product_attention(student.query, student.key, values, attn_mask=allowed)
    found = fused.attention_divergence(student, teacher, kind="kl", tiny=TINY)
    total = (found * upstream).sum() + output.float().sum()
    return torch.autograd.grad(total, (student.query, student.key, values))


def errors(fused: Any, factors: Any, sides: Sides) -> dict[str, float]:
    """Of the fused form alone, against maps in float64."""
    student, teacher, _, upstream = sides
    found = fused.attention_divergence(student, teacher, kind="kl", tiny=TINY)
    ours = (found, *torch.autograd.grad(found, (student.query, student.key), upstream))
    leaves = [x.detach().double().requires_grad_() for x in (student.query, student.key)]
    goal = compare_maps(
        factors(*leaves, student.mask), factors(teacher.query.double(), teacher.key.double(), teacher.mask)
    )
    exact = (goal, *torch.autograd.grad(goal, leaves, upstream.to(goal.dtype)))
    pairs = zip(("divergence", "queries", "keys"), ours, exact, strict=True)
    return {name: ((a.double() - b).norm() / b.norm()).item() for name, a, b in pairs}


def run_case(
    fused: Any, factors: Any, shape: tuple[int, int, int], dtype: torch.dtype, options: argparse.Namespace
) -> dict[str, Any]:
    """Errors first, and with them the compilation; then time and memory."""
    sides = make_sides(factors, shape, dtype, options.device)
    result: dict[str, Any] = {
        "queries": shape[0],
        "keys": shape[1],
        "width": shape[2],
        "dtype": str(dtype).removeprefix("torch."),
        "errors": errors(fused, factors, sides),
    }
    steps: dict[str, Callable[[], object]] = {
        "maps": functools.partial(step_with_maps, sides),
        "triton": functools.partial(step_without_maps, fused, sides),
    }
    result["milliseconds"] = measure(steps, options.rounds, options.repeats)
    result["peak_mebibytes"] = {name: peak_mebibytes(step) for name, step in steps.items()}
    return result


def describe(case: dict[str, Any]) -> str:
    times, peaks = case["milliseconds"], case["peak_mebibytes"]
    return (
        f"{case['queries']}x{case['keys']}x{case['width']} {case['dtype']:9} {times['maps']:.3f} -> "
        f"{times['triton']:.3f} ms, {peaks['maps']:.0f} -> {peaks['triton']:.0f} MiB, largest error "
        f"{max(case['errors'].values()):.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result, written after each case")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds, after one to warm up")
    parser.add_argument("--repeats", type=int, default=10, help="calls in a row within a round")
    options = parser.parse_args()
    if torch.device(options.device).type != "cuda" or not torch.cuda.is_available():
        raise SystemExit(
            "This benchmark needs CUDA: Triton's kernels run on a GPU alone. torch.cuda.is_available() is "
            f"{torch.cuda.is_available()} here, and --device is {options.device}."
        )
    fused, factors = load_parts()
    import triton

    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "batch": BATCH,
        "heads": HEADS,
        "cases": [],
    }
    for shape in SHAPES:
        for dtype in DTYPES:
            case = run_case(fused, factors, shape, dtype, options)
            result["cases"].append(case)
            write_result(options.json, result)
            print(describe(case), flush=True)


if __name__ == "__main__":
    main()
