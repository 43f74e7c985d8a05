"""Time of a training step as a CUDA graph against the same step launched from Python, and the GPU's own part of both.

    python -m benchmarks.captured_step --method d3etr --json captured_step.json

A step is forward, backward and the update by the recipe's optimizer at learning rate 0, under autocast, of the plain
student and of the distilled one, on images that are padded to one size. Busy time is the sum of the kernels' times of a
step, by torch's profiler. Losses of both ways are compared at one seed. Keys of the JSON: of each model the seconds
(eager, captured), busy_seconds, kernels, ratio (captured / busy), peak_bytes, loss_difference (largest, relative), and
obstacle (why a step was not captured); and the setting.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from detr_distill.engine.capture import WARM_UP, CapturedSteps, GraphRecorder, Losses
from detr_distill.engine.capture_sizes import find_obstacle
from detr_distill.engine.solver import build_optimizer

import torch
from common import device_name, random_inputs, time_in_turn, write_result
from detectron2.config import CfgNode
from step_time import METHODS, build
from torch import nn


def backward_step(model: nn.Module, dtype: torch.dtype | None, batch: list[dict]) -> Losses:
    """Forward and backward pass under autocast; the losses."""
    device = next(model.parameters()).device.type
    with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        losses = model(batch)
    sum(losses.values()).backward()
    return {name: value.detach() for name, value in losses.items()}


def busy(step: Callable[[], object]) -> tuple[float, int]:
    """Seconds that the GPU's kernels of a step take, and how many they are."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    on_device = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [event for event in on_device if not event.is_user_annotation]
    return sum(event.self_device_time_total for event in kernels) / 1e6, len(kernels)


def measure_model(model: nn.Module, cfg: CfgNode, inputs: list[dict], amp: str, rounds: int) -> dict:
    """Everything of one model's entry."""
    dtype = None if amp == "none" else getattr(torch, amp)
    device = torch.device("cuda")
    size = tuple(max(entry["image"].shape[-2:][side] for entry in inputs) for side in (0, 1))
    run = partial(backward_step, model, dtype)
    steps = CapturedSteps(run, model, (size,), 100, device, GraphRecorder(device), find_obstacle(model, "cuda"))
    optimizer = build_optimizer(cfg, model)

    def eager() -> Losses:
        torch.manual_seed(0)
        optimizer.zero_grad(set_to_none=True)
        losses = run(inputs)
        optimizer.step()
        return losses

    def captured() -> Losses:
        torch.manual_seed(0)
        steps.zero_gradients()
        losses = steps(inputs)
        optimizer.step()
        return losses

    found: dict = {"peak_bytes": {}}
    eager()
    expected = {name: float(value) for name, value in eager().items()}
    found["peak_bytes"]["eager"] = _peak(eager)
    found["busy_eager_seconds"], found["kernels_eager"] = busy(eager)
    eager_seconds = time_in_turn({"eager": eager}, rounds, "cuda")["eager"]
    for _ in range(WARM_UP + 1):
        losses = captured()
    found["obstacle"] = steps.obstacle
    differences = {name: abs(float(losses[name]) - value) / max(abs(value), 1e-6) for name, value in expected.items()}
    found["loss_difference"] = max(differences.values())
    found["peak_bytes"]["captured"] = _peak(captured)
    found["busy_seconds"], found["kernels"] = busy(captured)
    captured_seconds = time_in_turn({"captured": captured}, rounds, "cuda")["captured"]
    found["seconds"] = {"eager": _median(eager_seconds), "captured": _median(captured_seconds)}
    found["ratio"] = found["seconds"]["captured"] / found["busy_seconds"]
    return found


def _peak(step: Callable[[], object]) -> int:
    """Most bytes that are allocated during a step, the weights and a graph's own among them."""
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def measure(method: str, sizes: list[tuple[int, int]], amp: str, rounds: int, models: tuple[str, ...]) -> dict:
    """The entries of the models."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        distilled, plain, _, cfg = build(METHODS[method].config, "cuda", Path(folder))
    cfg.SOLVER.BASE_LR = 0.0
    inputs = random_inputs(sizes, num_classes=80)
    chosen = {"plain": plain, "distilled": distilled}
    return {name: measure_model(chosen[name], cfg, inputs, amp, rounds) for name in models}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=sorted(METHODS), default="d3etr")
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1088)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--amp", choices=("none", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This benchmark needs CUDA, which this machine does not offer.")
    sizes = [(arguments.height, arguments.width)] * arguments.batch
    setting = {"method": arguments.method, "sizes": sizes, "amp": arguments.amp, "device": device_name("cuda")}
    result = measure(arguments.method, sizes, arguments.amp, arguments.rounds, ("plain", "distilled"))
    write_result(arguments.json, {**setting, **result})
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
