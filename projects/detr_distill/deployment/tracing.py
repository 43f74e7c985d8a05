"""What torch's exporter takes for a constant, written so that it does not, while a graph is traced."""

from __future__ import annotations

import builtins
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

LIBRARY = "transformers.models."


@contextlib.contextmanager
def traceable(graph: nn.Module) -> Iterator[None]:
    """Within, a graph can be traced for images of any size and number."""
    modules = {type(module).__module__ for module in graph.modules()}
    with _Rewritten(), contextlib.ExitStack() as stack:
        for name in sorted(modules):
            if name.startswith(LIBRARY):
                stack.enter_context(_own_length(sys.modules[name]))
        yield


class _Rewritten(TorchFunctionMode):
    """Functions of torch that ask for the value of a length, in another form.

    Max pooling with a stride is pooling without one, of which every second value is taken: the exporter (torch 2.11)
    asks for the parity of an image's sides otherwise, and then takes no other. ``linspace`` with a step of 1 is
    ``arange``, and numbers become a tensor one by one.
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.max_pool2d, torch.max_pool2d):
            return _pool(*args, **kwargs)
        if func is torch.linspace:
            return _linspace(*args, **kwargs)
        if func is torch.as_tensor and isinstance(args[0], list | tuple):
            return _stack(args[0], **kwargs)
        return func(*args, **kwargs)


def _pool(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    **_: Any,
) -> Tensor:
    steps = _both(stride or kernel_size)
    if ceil_mode or steps == (1, 1):
        return torch.max_pool2d(x, kernel_size, steps, padding, dilation, ceil_mode)
    return torch.max_pool2d(x, kernel_size, 1, padding, dilation)[..., :: steps[0], :: steps[1]]


def _linspace(start: Any, end: Any, steps: Any, **kwargs: Any) -> Tensor:
    # In the sizes that are traced; what is written is compared at others.
    is_unit = _traced(end) - _traced(start) == _traced(steps) - 1
    if is_unit and not isinstance(steps, int):
        return torch.arange(steps, **kwargs) + start
    return torch.linspace(start, end, steps, **kwargs)


def _stack(numbers: Any, **kwargs: Any) -> Tensor:
    """Numbers, or lists of them, as a tensor."""
    if isinstance(numbers, list | tuple):
        return torch.stack([_stack(number, **kwargs) for number in numbers])
    return torch.scalar_tensor(numbers, **kwargs)


def _traced(value: Any) -> Any:
    return value.node.hint if isinstance(value, torch.SymInt | torch.SymFloat) else value


def _both(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


@contextlib.contextmanager
def _own_length(module: Any) -> Iterator[None]:
    """Within, ``len`` of a tensor is its first length, which may change, in a module that has no ``len`` of its own."""
    module.len = lambda value: value.shape[0] if isinstance(value, Tensor) else builtins.len(value)
    try:
        yield
    finally:
        del module.len
