"""Gradients of several processes without DistributedDataParallel, whose exchange is no part of a captured step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn


@torch.no_grad()
def share_start(model: nn.Module) -> None:
    """Gives every process the parameters and buffers of the first."""
    if comm.get_world_size() > 1:
        for values in (*model.parameters(), *model.buffers()):
            dist.broadcast(values, 0)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient, in place, by its mean over the processes: one exchange for each type of number."""
    if comm.get_world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
        own = [gradient for gradient in gradients if gradient.dtype == dtype]
        flat = torch.cat([gradient.flatten() for gradient in own])
        dist.all_reduce(flat)
        flat /= comm.get_world_size()
        parts = flat.split([gradient.numel() for gradient in own])
        torch._foreach_copy_(own, [part.view(g.shape) for part, g in zip(parts, own, strict=True)])
