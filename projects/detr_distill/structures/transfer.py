"""From the host to a device without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

_KEPT: dict[tuple, Tensor] = {}


def copy_to(values: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on a device; the copy waits its turn there, and the host goes on.

    CUDA copies so from pinned memory alone: from any other it first waits for all the work that it has been given. A
    trace with pretended devices has no such memory.
    """
    device = torch.device(device)
    if device.type != "cuda" or values.device.type != "cpu" or not torch.cuda.is_initialized():
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def constant(values: tuple, device: torch.device) -> Tensor:
    """Numbers that the host knows, as float32 on a device; those of CUDA are kept, since most come again and again.

    Args:
        values: numbers, or tuples of numbers.
    """
    if device.type != "cuda":
        return torch.tensor(values, dtype=torch.float32, device=device)
    found = _KEPT.get((values, device))
    if found is None:
        with torch.inference_mode(False):
            found = copy_to(torch.tensor(values, dtype=torch.float32), device)
        if type(found) is Tensor:  # not one of a trace
            _KEPT[values, device] = found
    return found
