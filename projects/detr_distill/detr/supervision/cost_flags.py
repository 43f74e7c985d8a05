"""Matching costs that are not finite, flagged on the device and read when somebody asks.

Letters: L layers, B images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class CostFlags:
    """What one matching found.

    Attributes:
        name: of the matching. values: (L, B) float on the device, 1 where a cost is not finite.
    """

    name: str
    values: Tensor

    def describe(self) -> list[str]:
        """A sentence for each layer and image; reads the device."""
        return [describe_cost(self.name, layer, image) for layer, image in self.values.nonzero().tolist()]


def describe_cost(name: str, layer: int, image: int) -> str:
    """What is not finite, and what to do."""
    return (
        f"The matching cost '{name}' of decoder layer {layer} and image {image} of the batch is not finite. Lower "
        "SOLVER.BASE_LR or clip gradients; check the image and its boxes."
    )


_collectors: list[list[CostFlags]] = []


@contextlib.contextmanager
def collect_cost_flags() -> Iterator[list[CostFlags]]:
    """Gives a list that receives the flags of every matching that is solved on the device within the block.

    Who opens no block has the pairs' weights, and with them the losses, say NaN.
    """
    found: list[CostFlags] = []
    _collectors.append(found)
    try:
        yield found
    finally:
        _collectors.pop()


def report(flags: CostFlags) -> None:
    """Adds flags to the innermost block's."""
    if _collectors:
        _collectors[-1].append(flags)


def count_flags(found: list[CostFlags], device: torch.device) -> Tensor:
    """How many layers and images are flagged, a scalar on the device."""
    if not found:
        return torch.zeros((), device=device)
    return torch.cat([flags.values.flatten() for flags in found]).sum()
