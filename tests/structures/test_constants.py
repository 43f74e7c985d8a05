"""Constants are made once for a device, and can be used in steps that learn."""

from __future__ import annotations

from detr_distill.structures.constants import cell_middles, made_once

import torch


def test_they_are_made_once():
    made = []

    @made_once
    def ones(count: int, device: torch.device) -> torch.Tensor:
        made.append(count)
        return torch.ones(count, device=device)

    cpu = torch.device("cpu")
    with torch.inference_mode():
        first = ones(2, cpu)
    assert ones(2, cpu) is first and ones(3, cpu).shape == (3,) and made == [2, 3]
    weight = torch.ones(2, requires_grad=True)
    (first * weight).sum().backward()
    assert weight.grad.tolist() == [1, 1]
    torch.jit.trace(lambda x: x + ones(2, cpu), torch.zeros(2), check_trace=False)
    assert made == [2, 3, 2], "a graph makes its own"


def test_middles_of_cells():
    assert cell_middles(3, torch.device("cpu")).tolist() == [0.5, 1.5, 2.5]
