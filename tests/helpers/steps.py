"""Steps of a detector for the tests: its memory, a few of training, and how often one reads the device."""

from __future__ import annotations

import dataclasses

from detr_distill.structures import DecoderOutput, Memory

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def encode(model, inputs) -> Memory:
    images = model.preprocess(inputs)
    return model.encode(model.backbone(images.tensor), images)


def outputs_over_padding(model, inputs) -> list[DecoderOutput]:
    """The own group's outputs with one content of the memory's padding, and with another."""
    images = model.preprocess(inputs)
    memory = model.input_projection(model.backbone(images.tensor), images)
    assert memory.mask.any()
    outputs = []
    for filling in (0.0, 9.0):
        filled = dataclasses.replace(memory, tokens=memory.tokens.masked_fill(memory.mask.unsqueeze(-1), filling))
        filled.tokens = model.encoder(filled)
        outputs.append(model.decode(filled, [model.queries(filled)])["own"])
    return outputs


def check_images_alone(model, inputs) -> None:
    """Each image's detections are those that it has in the batch."""
    with torch.no_grad():
        for entry, expected in zip(inputs, model(inputs), strict=True):
            (alone,) = model([entry])
            assert torch.allclose(alone["instances"].scores, expected["instances"].scores, atol=1e-5)
            boxes = (x["instances"].pred_boxes.tensor for x in (alone, expected))
            assert torch.allclose(*boxes, atol=1e-2)


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


def count_reads(monkeypatch) -> tuple[ReadCounter, list[int]]:
    """A counter of reads to run a step in, and a list that gets an entry for each ``Tensor.cpu``."""
    copies: list[int] = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self, *a, **k: copies.append(1) or original(self, *a, **k))
    return ReadCounter(), copies


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
