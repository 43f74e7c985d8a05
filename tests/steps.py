"""Steps of a detector for the tests: its memory, a few of training, and how often one reads the device."""

from __future__ import annotations

from detr_distill.structures import Memory

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def encode(model, inputs) -> Memory:
    images = model.preprocess(inputs)
    return model.encode(model.backbone(images.tensor), images)


def train_steps(model, inputs, steps=3):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for step in range(steps):
        torch.manual_seed(step)
        losses = model(inputs)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({k: v.item() for k, v in losses.items() if "distill" not in k})
    return history, torch.get_rng_state()


class ReadCounter(TorchDispatchMode):
    """Counts operations whose result must be known on the host."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.reads = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        boolean_index = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.NAMES or boolean_index:
            self.reads.append(name)
        return func(*args, **(kwargs or {}))
