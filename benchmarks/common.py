"""What the benchmarks share: result files, random inputs, timing in turn, and the peak memory of a step on any device.

Other libraries than torch are imported where they are used: ``deformable_attention.py`` runs without them.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from detr_distill.engine.precision import Precision

ROOT = Path(__file__).resolve().parent.parent
RESULTS = "benchmarks/results"


def current_commit(root: Path = ROOT) -> str:
    """The commit of a checkout, with ``-dirty`` where files beside its results differ; "unknown" without git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changes = git("status", "--porcelain", "--", ".", f":(exclude){RESULTS}")
        return git("rev-parse", "HEAD") + ("-dirty" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# Read once, at the start: the checkout may change while a long benchmark runs.
COMMIT = current_commit()


def write_result(path: Path, result: dict) -> None:
    """Writes a result as JSON, with the commit that it was measured at under ``commit``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"commit": COMMIT, **result}, indent=1) + "\n")


def random_inputs(sizes: list[tuple[int, int]], num_classes: int, objects: int = 7) -> list[dict]:
    """detectron2 dicts of images of the given (height, width) with random boxes; 7 objects is COCO's mean."""
    from detectron2.structures import Boxes, Instances

    generator = torch.Generator().manual_seed(0)
    inputs = []
    for index, (height, width) in enumerate(sizes):
        corner = torch.rand(objects, 2, generator=generator) * 0.6
        extent = torch.rand(objects, 2, generator=generator) * 0.35 + 0.05
        instances = Instances(
            (height, width),
            gt_boxes=Boxes(torch.cat([corner, corner + extent], dim=1) * torch.tensor([width, height, width, height])),
            gt_classes=torch.randint(0, num_classes, (objects,), generator=generator),
        )
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        inputs.append({"image": image, "instances": instances, "height": height, "width": width, "image_id": index})
    return inputs


def training_step(
    model: torch.nn.Module,
    inputs: list[dict],
    optimizer: torch.optim.Optimizer | None = None,
    precision: Precision | None = None,
    wrap: Callable[[str, Callable], Callable] = lambda phase, function: function,
) -> None:
    """Losses, their gradients and the optimizer's update, if one is given.

    Args:
        precision: mixed, with loss scaling for float16; None: float32.
        wrap: the functions of ``forward``, ``backward`` and ``optimizer`` become what this makes of them.
    """

    def forward() -> torch.Tensor:
        with contextlib.nullcontext() if precision is None else precision.autocast():
            return torch.stack([value.float() for value in model(inputs).values()]).sum()

    def update() -> None:
        if optimizer is not None and precision is not None:
            precision.scaler.step(optimizer)
            precision.scaler.update()
        elif optimizer is not None:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    total = wrap("forward", forward)()
    wrap("backward", (total if precision is None else precision.scaler.scale(total)).backward)()
    wrap("optimizer", update)()


def time_in_turn(
    steps: Mapping[str, Callable[[], object]],
    rounds: int,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each step in each round, after one round to warm up.

    The steps take turns within a round, so that other work on the machine meets all alike.

    Args:
        clock: ``time.process_time`` counts the processor's seconds alone, whatever else runs.
    """
    from rich.progress import track

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in track(range(rounds + 1), description="timing", disable=not sys.stderr.isatty()):
        for name, step in steps.items():
            elapsed = _timed(step, device, clock)
            if round_number:
                seconds[name].append(elapsed)
    return seconds


def _timed(function: Callable[[], object], device: str, clock: Callable[[], float]) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def read_size(text: str) -> tuple[int, int]:
    """Height and width in pixels, of the text 480x640 or, of a square, 640."""
    height, _, width = text.partition("x")
    return int(height), int(width or height)


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Convolutions and products in whole float32: TensorFloat-32, which torch allows convolutions, keeps 10 bits."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    try:
        convolutions.allow_tf32 = products.allow_tf32 = False
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def device_name(device: str) -> str:
    """The GPU's name, or "cpu"."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def peak_bytes(step: Callable[[], object], device: str) -> int:
    """Most bytes that a step holds at once beyond what was there before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    # Allocations and releases of the CPU allocator in time order; their running sum's peak is what the step needed.
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
