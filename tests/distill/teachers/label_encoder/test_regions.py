"""The cells of a label's box or mask by hand: reading, writing, and writing through a convolution."""

from __future__ import annotations

from detr_distill.distill.teachers.label_encoder.regions import MaskRegions, write_through
from detr_distill.structures.regions import BoxRegions

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def test_regions_by_hand():
    boxes = torch.tensor([[[16.0, 8, 40, 24], [0, 0, 8, 8], [50, 30, 51, 31]]])
    regions = BoxRegions(boxes, torch.tensor([[True, True, True]]), (32, 64), (4, 8))
    # Cells of 8 pixels; a cell's index times 8 must lie between the edges, both included.
    cells = regions.rows[0].T[:, :, None] * regions.columns[0].T[:, None, :]
    expected = torch.zeros(3, 4, 8)
    expected[0, 1:4, 2:6] = 1
    expected[1, :2, :2] = 1
    assert torch.equal(cells, expected)
    values = torch.randn(1, 2, 4, 8)
    read = regions.read(values)
    assert torch.allclose(read[0, 0], values[0, :, 1:4, 2:6].mean((1, 2)), atol=1e-6)
    assert (read[0, 2] == 0).all(), "a box that covers no cell reads nothing"
    written = regions.write(torch.tensor([[[1.0, 0], [0, 2], [5, 5]]]))
    assert torch.equal(written[0, 0], expected[0]) and torch.equal(written[0, 1], 2 * expected[1])
    assert torch.equal(regions.covered()[0], (expected.sum(0) > 0).float())
    masks = MaskRegions(F.interpolate(cells[None], size=(32, 64)).bool(), (4, 8))
    assert torch.allclose(masks.read(values), read, atol=1e-6)
    assert torch.allclose(masks.write(read), regions.write(read), atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_writing_through_a_convolution_is_writing_and_convolving(kernel):
    torch.manual_seed(0)
    boxes = torch.tensor(
        [[[4.0, 8, 31, 60], [0, 0, 96, 64], [50, 3, 52, 5]], [[90.0, 50, 96, 64], [0, 0, 0, 0], [0, 0, 0, 0]]]
    )
    valid = torch.tensor([[True, True, True], [True, False, False]])
    regions = BoxRegions(boxes, valid, (64, 96), (8, 12))
    values = torch.randn(2, 3, 6, requires_grad=True)
    convolution = nn.Conv2d(6, 6, kernel, padding=kernel // 2)
    expected = convolution(regions.write(values))
    both = write_through(torch.stack([2 * values, values]), [regions, regions], convolution)
    found = both[1]
    assert torch.allclose(found, expected, atol=1e-5)
    weight = torch.randn_like(expected)
    wanted = [values, convolution.weight, convolution.bias]
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), wanted),
        torch.autograd.grad((expected * weight).sum(), wanted),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-4)
