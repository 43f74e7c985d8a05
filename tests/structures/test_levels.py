"""Levels of a memory: their parts, tokens as maps and back, and where their cells lie."""

from __future__ import annotations

from detr_distill.structures import Memory
from detr_distill.structures.levels import (
    axis_positions,
    cell_centres,
    from_maps,
    image_extents,
    resize_tokens,
    split_levels,
    to_maps,
    visible_levels,
)
from detr_distill.structures.rows import take_rows

import pytest
import torch
from torch.nn import functional as F

SHAPES = [(4, 6), (2, 3)]
# Of two images, the second of which fills 2 rows and 4 columns of the first level, 1 row and 2 columns of the next.
VISIBLE = [((4, 6), (2, 4)), ((2, 3), (1, 2))]


def make_memory(padded: bool = True) -> Memory:
    tokens = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(0))
    masks = []
    for shape, images in zip(SHAPES, VISIBLE, strict=True):
        mask = torch.ones(2, *shape, dtype=torch.bool)
        for image, (rows, columns) in enumerate(images):
            mask[image, :rows, :columns] = False
        masks.append(mask.flatten(1))
    sizes = torch.tensor([[6.0, 4.0], [3.0, 2.0]])
    filled = [[(columns, rows) for rows, columns in level] for level in zip(*VISIBLE, strict=True)]
    ratios = torch.tensor(filled) / sizes if padded else torch.ones(1, 2, 2)
    return Memory(tokens, tokens, torch.cat(masks, dim=1) if padded else None, SHAPES, sizes, ratios)


def test_tokens_and_maps_are_each_others_inverse():
    memory = make_memory()
    maps = to_maps(memory)
    assert {name: tuple(x.shape) for name, x in maps.items()} == {"level0": (2, 5, 4, 6), "level1": (2, 5, 2, 3)}
    assert torch.equal(maps["level1"][1, :, 1, 2], memory.tokens[1, 24 + 5])
    assert torch.equal(from_maps(maps), memory.tokens)
    alone = from_maps({"level0": maps["level0"]})
    assert alone.data_ptr() == memory.tokens.data_ptr(), "one level is not copied"


def test_parts_of_levels_along_any_axis():
    memory = make_memory()
    assert [part.shape[1] for part in split_levels(memory.tokens, SHAPES)] == [24, 6]
    assert [part.shape for part in split_levels(memory.key_mask, SHAPES, dim=-1)] == [(2, 1, 1, 24), (2, 1, 1, 6)]
    assert split_levels(None, SHAPES) == (None, None)


@pytest.mark.parametrize("padded", [True, False])
def test_positions_and_centres_agree(padded):
    """Two ways to the same cells: along the axes of a level, and token by token."""
    memory = make_memory(padded)
    centres = split_levels(cell_centres(memory), SHAPES)
    for level, (x, y) in enumerate(axis_positions(memory)):
        grid = centres[level].unflatten(1, SHAPES[level])
        images = VISIBLE[level] if padded else [SHAPES[level]]
        for image, (rows, columns) in enumerate(images):
            assert torch.allclose(grid[image, 0, :columns, 0], x[image, :columns])
            assert torch.allclose(grid[image, :rows, 0, 1], y[image, :rows])
            assert torch.allclose(x[image, :columns], (torch.arange(columns) + 0.5) / columns)
            assert torch.equal(image_extents(memory)[image, level], torch.tensor([columns, rows]).float())
            assert visible_levels(memory)[level][image].sum() == rows * columns
        assert padded == bool((grid > 1).any()), "beyond 1 in the padding"


def test_tokens_come_from_the_grid_nearest_in_size():
    tokens = make_memory().tokens
    fine, coarse = to_maps(make_memory()).values()
    same = resize_tokens(tokens, SHAPES, SHAPES)
    assert torch.allclose(same, tokens, atol=1e-6)
    found = resize_tokens(tokens, SHAPES, [(8, 12), (1, 3)])
    for part, values, shape in zip(
        split_levels(found, [(8, 12), (1, 3)]), (fine, coarse), [(8, 12), (1, 3)], strict=True
    ):
        expected = F.interpolate(values, shape, mode="bilinear", antialias=True)
        assert torch.equal(part, expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3), (2, 4, 3, 5), (3, 2, 4, 5)])
def test_rows_are_those_of_a_loop(shape):
    """Of scores, of vectors, of whole maps, and of layers and images."""
    layers = shape[:-3] if shape[0] == 3 else ()
    values = torch.randn(shape, requires_grad=True)
    rows = torch.tensor([[3, 0, 3], [1, 1, 2]]).expand(*layers, -1, -1)
    found = take_rows(values, rows)
    chosen = values if layers else values.unsqueeze(0)
    numbers = rows if layers else rows.unsqueeze(0)
    expected = torch.stack([torch.stack([chosen[i, j][numbers[i, j]] for j in range(2)]) for i in range(len(chosen))])
    assert torch.equal(found, expected if layers else expected[0])
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert gradient.sum() == found.numel() and gradient.max() == 2, "a row that is taken twice"
