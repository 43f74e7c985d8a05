"""Where the time of a training step goes: its phases, and what the GPU does meanwhile."""

from __future__ import annotations

import collections
import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from unittest import mock

from detr_distill.detr.supervision.matchings import Matchings
from detr_distill.distill import DistillDetector

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# In the order of a step; "other" is the rest of the forward pass, such as the detection losses.
PHASES = ("start", "teacher", "decode", "matching", "distillation losses", "other", "backward", "optimizer")


class Clock:
    """Seconds of named parts; on CUDA each part waits for the device at both ends."""

    def __init__(self, device: str):
        self.device = device
        self.seconds: collections.defaultdict[str, float] = collections.defaultdict(float)

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, phase: str, function: Callable) -> Callable:
        """The function, whose time is added to a phase."""

        @functools.wraps(function)
        def call(*arguments: object, **keywords: object) -> object:
            start = self.now()
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds[phase] += self.now() - start

        return call


@contextlib.contextmanager
def _watch(model: DistillDetector, clock: Clock) -> Iterator[None]:
    """Times the parts of a distilling model's forward pass."""
    runner, parts = model._runner, contextlib.ExitStack()
    with parts:
        for owner, name, phase in (
            (runner, "start", "start"),
            (model.teacher, "forward", "teacher"),
            (runner, "finish", "decode"),
            (Matchings, "solve", "matching"),
            (model, "_distill", "distillation losses"),
        ):
            parts.enter_context(mock.patch.object(owner, name, clock.timed(phase, getattr(owner, name))))
        yield


def time_phases(step: Callable[..., object], model: DistillDetector, rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each of ``PHASES`` in a distilled step, after one round to warm up.

    Args:
        step: runs one, given functions that wrap its forward pass, backward pass and update.
    """
    found: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for number in range(rounds + 1):
        clock = Clock(device)
        with _watch(model, clock):
            step(wrap=clock.timed)
        inner = ("start", "teacher", "decode", "matching", "distillation losses")
        clock.seconds["other"] = clock.seconds.pop("forward") - sum(clock.seconds[phase] for phase in inner)
        if number:
            for phase, values in found.items():
                values.append(clock.seconds[phase])
    return {phase: statistics.median(values) for phase, values in found.items()}


def gpu_work(step: Callable[[], object]) -> dict[str, float]:
    """``kernels`` and ``copies`` (with fills) of a step on CUDA, and ``gpu_busy_seconds``, when any of them ran."""
    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        step()
        torch.cuda.synchronize()
    assert record.profiler is not None
    events = [event for event in record.profiler.kineto_results.events() if event.device_type() == DeviceType.CUDA]
    copies = sum(event.name().startswith(("Memcpy", "Memset")) for event in events)
    spans = sorted((event.start_ns(), event.start_ns() + event.duration_ns()) for event in events)
    return {"kernels": len(events) - copies, "copies": copies, "gpu_busy_seconds": _covered(spans) / 1e9}


def _covered(spans: list[tuple[int, int]]) -> int:
    """The length that sorted spans cover together."""
    total = reached = 0
    for start, end in spans:
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total
