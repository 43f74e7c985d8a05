"""What the exporter would take for a constant."""

from __future__ import annotations

import sys
import types

from detr_distill.deployment.tracing import traceable

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class Pooling(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.convolution = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x):
        return self.convolution(self.pool(x))


def test_pooling_takes_sides_of_any_parity():
    network = Pooling().requires_grad_(False)
    sides = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=8), 3: torch.export.Dim("width", min=8)}
    with traceable(network):
        program = torch.export.export(network, (torch.rand(2, 3, 16, 24),), dynamic_shapes=(sides,)).module()
    for size in ((1, 3, 17, 24), (3, 3, 18, 19), (2, 3, 9, 30)):
        x = torch.rand(size)
        assert torch.equal(program(x), network(x))


@pytest.mark.parametrize(
    "arguments", [{"stride": 2, "padding": 1}, {"stride": (1, 2)}, {}, {"stride": 1}, {"stride": 2, "ceil_mode": True}]
)
def test_pooling_is_the_same(arguments):
    x = torch.randn(2, 3, 13, 18)
    expected = F.max_pool2d(x, 3, **arguments)
    with traceable(nn.Identity()):
        assert torch.equal(F.max_pool2d(x, 3, **arguments), expected)


def test_the_length_of_a_tensor_may_change(monkeypatch):
    """As the library's models ask for the number of images."""
    module = types.ModuleType("transformers.models.of_a_test")
    body = "class Counting(nn.Module):\n def forward(self, x): return x.new_ones(len(x)) * len([1])"
    text = f"from torch import nn\n{body}"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(text, vars(module))
    network = module.Counting()
    with traceable(network):
        program = torch.export.export(network, (torch.rand(3, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert program.module()(torch.rand(5, 2)).shape == (5,)
    assert "len" not in vars(module)


class Cells(nn.Module):
    def forward(self, x):
        cells = torch.as_tensor([(x.shape[1], 2)], dtype=torch.long)
        return torch.linspace(0.5, x.shape[1] - 0.5, x.shape[1], dtype=x.dtype) / cells[0, 0]


def test_the_number_of_cells_may_change():
    network = Cells()
    assert torch.equal(network(torch.rand(2, 3)), torch.tensor([0.5, 1.5, 2.5]) / 3)
    with traceable(network):
        program = torch.export.export(network, (torch.rand(2, 3),), dynamic_shapes=({1: torch.export.Dim("cells")},))
    assert torch.equal(program.module()(torch.rand(2, 5)), network(torch.rand(2, 5)))
