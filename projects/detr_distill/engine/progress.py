"""The line that a training run prints every few iterations."""

from __future__ import annotations

import datetime
import logging
import re
import resource
import sys

import torch
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

logger = logging.getLogger(__name__)

WINDOW = 20  # iterations whose median is shown
KIBIBYTE, MEBIBYTE = 2**10, 2**20


class ProgressPrinter(EventWriter):
    """Logs iteration, remaining time, losses, learning rate, speed, memory, and the AP with its gain so far.

    A DETR has a loss for every decoder layer and query group; they are shown as one sum a kind, and stand one by one in
    ``metrics.json`` and TensorBoard.

    Args:
        max_iter: iterations of the run.
    """

    def __init__(self, max_iter: int):
        self._max_iter = max_iter
        self._last_written = -1

    def write(self) -> None:
        storage = get_event_storage()
        iteration = storage.iter
        # Written again after the last iteration, for writers that have more to say than this one.
        if iteration >= self._max_iter or iteration == self._last_written:
            return
        self._last_written = iteration
        values = {name: history.median(WINDOW) for name, history in storage.histories().items()}
        parts = [f"iteration {iteration + 1}/{self._max_iter}"]
        if "time" in values:
            parts.append(f"eta {_duration(storage, self._max_iter - iteration - 1)}")
        parts += [f"{name} {value:.4g}" for name, value in join_layers(values).items()]
        parts += [f"{name} {values[name]:.4g}" for name in ("grad_norm",) if name in values]
        if "lr" in values:
            parts.append(f"lr {storage.history('lr').latest():.3g}")
        parts += [f"{name} {values[name]:.3f} s" for name in ("time", "data_time") if name in values]
        parts.append(f"memory {_peak_memory():.0f} MiB")
        parts += gains(storage)
        logger.info("  ".join(parts))


def join_layers(values: dict[str, float]) -> dict[str, float]:
    """Sums losses that differ in their layer's number alone: ``loss_box`` and ``loss_box_0`` become ``loss_box``."""
    joined: dict[str, float] = {}
    for name, value in values.items():
        if "loss" in name:
            kind = re.sub(r"_\d+(?=_|$)", "", name)
            joined[kind] = joined.get(kind, 0.0) + value
    return joined


def gains(storage: EventStorage) -> list[str]:
    """The AP of each test set at its last evaluation, and what it has gained since the first of this process."""
    words = []
    for name, history in storage.histories().items():
        if name.endswith("bbox/AP"):
            values = history.values()
            gain = f" ({history.latest() - values[0][0]:+.2f} in {len(values)} evaluations)" if len(values) > 1 else ""
            words.append(f"{name} {history.latest():.2f}{gain}")
    return words


def _peak_memory() -> float:
    """Of the GPU or, without one, of this process, in MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MEBIBYTE
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MEBIBYTE if sys.platform == "darwin" else peak / KIBIBYTE


def _duration(storage: EventStorage, iterations: int) -> str:
    return str(datetime.timedelta(seconds=int(storage.history("time").median(1000) * iterations)))
