"""Small tensors that are the same in every step, made once for each device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value", Tensor, tuple[Tensor, ...])


def is_graph() -> bool:
    """Whether the code that runs is being traced, compiled or exported."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def keeps_values() -> bool:
    """Whether what is computed now may be kept for later steps: not of a graph, nor of a step that CUDA records."""
    return not is_graph() and not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())


def made_once(make: Callable[..., Value]) -> Callable[..., Value]:
    """Decorates a function of plain arguments, of which one is the device, whose tensors nobody changes.

    Every step would launch the same few kernels again. All values are kept, so they should be few and small. Graphs
    that are traced, compiled or exported make their own.
    """
    kept = functools.cache(make)

    @functools.wraps(make)
    def find(*arguments: object) -> Value:
        if not keeps_values():
            return make(*arguments)
        # A tensor made in inference mode could not be used in a step that learns.
        with torch.inference_mode(False), torch.no_grad():
            return kept(*arguments)

    return find


@made_once
def row_numbers(count: int, device: torch.device) -> Tensor:
    """(count,): 0, 1, ..."""
    return torch.arange(count, device=device)


@made_once
def cell_middles(count: int, device: torch.device) -> Tensor:
    """(count,): 0.5, 1.5, ... the middles of cells in a row."""
    return torch.arange(count, device=device) + 0.5
