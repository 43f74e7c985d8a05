"""How often a piece of code waits for the device: every value that it asks for on the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.autograd.profiler import profile
from torch.overrides import TorchFunctionMode

# What the profiler calls the reads that torch makes for itself, also inside other functions: a number, a truth value or
# the length of a slice; the places of a mask or of an index of truth values; two tensors compared; different values.
READS = frozenset({"item", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"})
# Those that copy a whole tensor, which the profiler does not show where the device is the host.
COPIES = {torch.Tensor.cpu: "cpu", torch.Tensor.numpy: "numpy", torch.Tensor.tolist: "tolist"}


class _Copies(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found, self.on_the_host = found, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        # To read on what cpu() brought is free.
        free = function is not torch.Tensor.cpu and any(args[0] is values for values in self.on_the_host)
        if function in COPIES and not free:
            self.found.append(COPIES[function])
        if function is torch.Tensor.cpu:
            self.on_the_host.append(result)
        return result


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """Gives a list that holds, after the block, each read and copy to the host that was made within."""
    found: list[str] = []
    with profile(use_kineto=False) as events, _Copies(found):
        yield found
    for event in events.function_events:
        name = event.name.removeprefix("aten::")
        if name in READS:
            found.append(name)
