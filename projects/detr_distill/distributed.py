"""What several processes of a run agree on in a step."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def count_processes() -> int:
    """Of the run; asked of torch, since what only computes losses needs no detectron2."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of a loss's divisor over the processes, without gradient; the values themselves of one process.

    Gradients are averaged over processes. With a divisor that all share, their losses add up to those of one process
    that has all their images; with divisors of their own, an image would count by what else its process was given.
    Every process has to come here as often as the others.
    """
    processes = count_processes()
    if processes == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / processes


def shared_divisor(size: Tensor) -> Tensor:
    """A loss's divisor, at least 1: of several processes their share of the one that all images together have."""
    return mean_over_processes(size).clamp(min=1 / count_processes())


def root_of_mean(value: Tensor, epsilon: float) -> Tensor:
    """``sqrt(value + epsilon)`` of a mean over a process's images; of several processes, that of the mean over all.

    A mean of roots is no root of a mean: the value is that of all processes, and the gradient such that the processes'
    mean is the root's.
    """
    if count_processes() == 1:
        return (value + epsilon).sqrt()
    root = (mean_over_processes(value) + epsilon).sqrt()
    return root + (value - value.detach()) / (2 * root)


def mean_number_over_processes(value: float, device: torch.device) -> float:
    """The same of a number, which is read from the device."""
    if count_processes() == 1:
        return value
    return mean_over_processes(torch.tensor(float(value), device=device)).item()
