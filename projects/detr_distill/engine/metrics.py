"""The scalars of a training step, moved to the host in one copy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed
from detectron2.utils import comm
from torch import Tensor

from ..structures.transfer import copy_to


@dataclass
class StepMetrics:
    """Host values of one step, equal on every process.

    Attributes:
        mean: each scalar averaged over the processes; one NaN anywhere makes the mean NaN.
        data_seconds: the longest wait for data of any process.
    """

    mean: dict[str, float]
    data_seconds: float

    def non_finite(self) -> list[str]:
        return [key for key, value in self.mean.items() if not math.isfinite(value)]


def gather_metrics(scalars: dict[str, Tensor], data_seconds: float) -> StepMetrics:
    """Averages scalars over all processes: one collective and one device-to-host copy, however many scalars.

    Args:
        scalars: zero-dimensional tensors, the same keys on every process. data_seconds: this process's wait for data.
    """
    keys = sorted(scalars)
    device = scalars[keys[0]].device
    wait = copy_to(torch.tensor(data_seconds, dtype=torch.float32), device)
    row = torch.stack([*(scalars[key].detach().float().reshape(()).to(device) for key in keys), wait])
    rows = row.unsqueeze(0)
    if comm.get_world_size() > 1:
        parts = [torch.empty_like(row) for _ in range(comm.get_world_size())]
        torch.distributed.all_gather(parts, row)
        rows = torch.stack(parts)
    values = rows.double().cpu()
    mean = values.mean(0).tolist()
    return StepMetrics(dict(zip(keys, mean, strict=False)), float(values[:, -1].max()))
