"""Sends a batch from a loader's worker as two objects instead of one a tensor.

torch opens a file descriptor for every tensor that a worker sends, which costs more than making a small image. Here
all tensors of a batch share one block of memory.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 16  # bytes; a tensor of any type may start here


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[tuple[int, Tensor]] = []
        self.size = 0

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is not Tensor or obj.device.type != "cpu" or obj.requires_grad:
            return None
        start = self.size
        flat = obj.contiguous().reshape(-1)
        # An empty tensor that comes from NumPy has stride 0, which a view as bytes refuses.
        flat = flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8)
        self.tensors.append((start, flat))
        self.size += -(-flat.numel() // _ALIGNMENT) * _ALIGNMENT
        return start, flat.numel(), obj.dtype, tuple(obj.shape)


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, block: Tensor) -> None:
        super().__init__(file)
        self.block = block

    def persistent_load(self, pid: Any) -> Tensor:
        start, length, dtype, shape = pid
        return self.block[start : start + length].view(dtype).reshape(shape)


def pack(batch: Any) -> tuple[bytes, Tensor]:
    """A batch as the pickle of everything but its tensors, and one (bytes,) uint8 tensor in shared memory."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(batch)
    block = torch.empty(packer.size, dtype=torch.uint8).share_memory_()
    for start, flat in packer.tensors:
        block[start : start + flat.numel()] = flat
    return file.getvalue(), block


def unpack(packed: tuple[bytes, Tensor]) -> Any:
    """The batch that was packed; its tensors are views of the block."""
    return _Unpacker(io.BytesIO(packed[0]), packed[1]).load()
