"""Maps on disk: cut to their images, and placed where augmentation has put these, against a loop."""

from __future__ import annotations

import math

from detr_distill.data.predictions.maps import StoredMap, cut_maps, place_maps

import pytest
import torch

CPU = torch.device("cpu")


def test_each_image_has_the_cells_that_it_touches():
    values = torch.randn(2, 3, 7, 9)  # of images of 50 x 68 pixels at most, stride 8
    first, second = cut_maps(values, [(50, 41), (17, 68)])
    assert first.span == (50 / 8, 41 / 8) and torch.equal(first.values, values[0, :, :7, :6])
    assert second.span == (17 / 8, 68 / 8) and torch.equal(second.values, values[1, :, :3, :9])


def test_a_stride_of_no_power_of_two_is_what_divides_the_image():
    (found,) = cut_maps(torch.randn(1, 3, 10, 8), [(140, 112)])
    assert found.span == (10.0, 8.0) and found.values.shape == (3, 10, 8)


def test_an_unmoved_image_keeps_its_cells():
    maps = cut_maps(torch.randn(2, 3, 5, 8), [(40, 64), (33, 50)])
    placed = place_maps(maps, [(0, 0, 64, 40), (0, 0, 50, 33)], (40, 64), CPU)
    assert placed.shape == (2, 3, 5, 8)
    assert torch.allclose(placed[0], maps[0].values, atol=1e-5)
    assert torch.allclose(placed[1, :, :4, :6], maps[1].values[:, :4, :6], atol=1e-5)
    assert not placed[1, :, 5:].any() and not placed[1, :, :, 7:].any()


def bilinear(values, row, column):
    """Of (C, rows, columns) at a place in cells, whose centres are at 0.5, 1.5, ...; the border goes on outside."""
    row = min(max(row, 0.5), values.shape[1] - 0.5) - 0.5
    column = min(max(column, 0.5), values.shape[2] - 0.5) - 0.5
    total = torch.zeros(len(values))
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            weight = (1 - abs(row - r)) * (1 - abs(column - c))
            if weight > 0:
                total = total + weight * values[:, r, c]
    return total


@pytest.mark.parametrize("flip", [False, True])
def test_moved_scaled_flipped_and_cut(flip):
    generator = torch.Generator().manual_seed(0)
    places = [(-10.0, 4.0, 86.0, 64.0), (3.0, -6.0, 103.0, 54.0)]
    if flip:
        places = [(right, top, left, bottom) for left, top, right, bottom in places]
    maps = []
    for height, width in ((40, 64), (30, 50)):
        values = torch.randn(2, math.ceil(height / 8), math.ceil(width / 8), generator=generator)
        maps.append(StoredMap(values, (height / 8, width / 8)))
    placed = place_maps(maps, places, (56, 80), CPU)
    cell = [min(abs(p[3 - a] - p[1 - a]) / m.span[a] for p, m in zip(places, maps, strict=True)) for a in (0, 1)]
    assert placed.shape == (2, 2, math.ceil(56 / cell[0]), math.ceil(80 / cell[1]))
    for image, (each, (x1, y1, x2, y2)) in enumerate(zip(maps, places, strict=True)):
        for i in range(placed.shape[2]):
            for j in range(placed.shape[3]):
                u, v = ((i + 0.5) * cell[0] - y1) / (y2 - y1), ((j + 0.5) * cell[1] - x1) / (x2 - x1)
                inside = 0 <= u <= 1 and 0 <= v <= 1
                expected = bilinear(each.values, u * each.span[0], v * each.span[1]) if inside else torch.zeros(2)
                assert torch.allclose(placed[image, :, i, j], expected, atol=1e-4)
