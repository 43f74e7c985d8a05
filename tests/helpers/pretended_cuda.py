"""A step on CUDA tensors that are pretended, on any machine: which copies from the host it makes, and where."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import detr_distill

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGE = Path(detr_distill.__file__).parent


class _Copies(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if function is torch.ops.aten.copy_.default else args[0]
            if source.device != result.device:
                places = [frame for frame in traceback.extract_stack() if PACKAGE in Path(frame.filename).parents]
                self.found.append(Path(places[-1].filename).name)
        return result


@contextmanager
def pretended_cuda(*models: nn.Module) -> Iterator[list[str]]:
    """Gives a list that holds, after the block, the file of each copy between host and device; values are unknown.

    Args:
        models: whose parameters and buffers are on the device within, and afterwards.
    """
    found: list[str] = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in (module for model in models for module in model.modules()):
            for name, value in module.named_parameters(recurse=False):
                values = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                setattr(module, name, nn.Parameter(values, requires_grad=value.requires_grad))
            for name, value in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(value.shape, dtype=value.dtype, device="cuda"))
        with _Copies(found):
            yield found
