"""AdaMixer by hand: positions of boxes, where and on which levels points are sampled, and their mixing."""

from __future__ import annotations

import math

from detr_distill.detr.layers import adamixer
from detr_distill.detr.layers.adamixer import AdaptiveMixing, AdaptiveSampling

import pytest
import torch
import torch.nn.functional as F
from helpers.builders import randomise
from helpers.detr.adamixer_detectors import flat_memory


def test_positions_of_boxes_by_hand():
    """A box of 32 x 128 pixels: z = log2(64) = 6, r = log2(4) = 2."""
    boxes, extent = torch.tensor([[[0.5, 0.25, 0.25, 0.5]]]), torch.tensor([[[128.0, 256.0]]])
    positions = adamixer.boxes_to_positions(boxes, extent)
    assert torch.allclose(positions, torch.tensor([64.0, 64.0, 6.0, 2.0]))
    assert torch.allclose(adamixer.position_sizes(positions), torch.tensor([32.0, 128.0]))
    assert torch.allclose(adamixer.positions_to_boxes(positions, extent), boxes)


def test_move_by_hand():
    """The centre moves by multiples of 2^z = 8, whatever the shape; z and r by sums."""
    moved = adamixer.move(torch.tensor([[[10.0, 20.0, 3.0, 1.0]]]), torch.tensor([[[0.5, -1.0, 0.25, -2.0]]]))
    assert torch.allclose(moved, torch.tensor([14.0, 12.0, 3.25, -1.0]))


def test_position_embedding_by_hand():
    embedding = adamixer.embed_positions(torch.tensor([[[500.0, 0.0, 6.0, -1.0]]]), 16).view(4, 4)
    for row, value in zip(embedding.tolist(), (0.5, 0.0, 6.0, -1.0), strict=True):
        assert row == pytest.approx(
            [math.sin(value), math.cos(value), math.sin(value / 100), math.cos(value / 100)], abs=1e-5
        )


def test_points_without_offsets_lie_at_the_centre_and_offsets_scale_with_the_box():
    sampling = AdaptiveSampling(width=8, num_groups=2, num_points=3)
    positions = torch.tensor([[[40.0, 60.0, 4.0, 2.0], [10.0, 20.0, 2.0, 0.0]]])  # 8 x 32 and 4 x 4 pixels
    torch.nn.init.zeros_(sampling.sampling_offsets.bias)
    points = sampling.points(torch.randn(1, 2, 8), positions)
    assert torch.equal(points, positions[:, :, None, None, :3].expand(1, 2, 2, 3, 3))
    with torch.no_grad():
        sampling.sampling_offsets.bias.view(2, 3, 3)[1, 2] = torch.tensor([0.5, -0.25, -1.0])
    moved = sampling.points(torch.randn(1, 2, 8), positions)
    assert torch.allclose(moved[0, :, 1, 2], torch.tensor([[44.0, 52.0, 3.0], [12.0, 19.0, 1.0]]))
    moved[:, :, 1, 2] = points[:, :, 1, 2]
    assert torch.equal(moved, points), "an offset moves one point of one group"


def test_published_start_of_the_offsets():
    offsets = AdaptiveSampling(width=8, num_groups=2, num_points=200).sampling_offsets
    assert offsets.weight.abs().max() == 0
    dx, dy, dz = offsets.bias.view(-1, 3).unbind(-1)
    assert (dz == -1).all()
    for values in (dx, dy):
        assert values.abs().max() <= 0.5 and values.min() < -0.4 and values.max() > 0.4


def test_places_and_weights_on_levels_by_hand():
    """Strides 4, 8, 16 are z = 2, 3, 4; at z = 3 the outer levels have exp(-1 / 2) of the middle one's weight."""
    memory = flat_memory([(8, 16), (4, 8), (2, 4)])
    places, weights = AdaptiveSampling.on_levels(torch.tensor([16.0, 8.0, 3.0]), memory)
    assert torch.allclose(places, torch.tensor([0.25, 0.25]).expand(3, 2))
    outer = math.exp(-0.5)
    expected = torch.tensor([outer, 1.0, outer]) / (1 + 2 * outer)
    assert torch.allclose(weights, expected)
    # A level that was rounded up to whole cells is wider in pixels than the finest.
    rounded, _ = AdaptiveSampling.on_levels(torch.tensor([16.0, 8.0, 3.0]), flat_memory([(7, 15), (4, 8)]))
    assert torch.allclose(rounded, torch.tensor([[16 / 60, 8 / 28], [16 / 64, 8 / 32]]))


def test_samples_are_weighted_levels_of_the_groups_own_channels():
    memory = flat_memory([(8, 8), (4, 4)])
    sampling = AdaptiveSampling(width=8, num_groups=2, num_points=3)
    torch.nn.init.zeros_(sampling.sampling_offsets.bias)
    tokens = memory.tokens + torch.tensor([0.0, 10, 20, 30, 40, 50, 60, 70])
    positions = torch.tensor([[[16.0, 16.0, 2.5, 0.0], [16.0, 16.0, 30.0, 0.0]]])
    found = sampling(torch.randn(1, 2, 8), positions, tokens, memory)
    channels = torch.arange(0.0, 80, 10).view(2, 1, 4).expand(2, 3, 4)
    assert torch.allclose(found[0, 0], channels + 0.5, atol=1e-5), "halfway between two levels"
    assert torch.allclose(found[0, 1], channels + 1, atol=1e-5), "far above, the coarsest level alone"


def test_samples_equal_grid_sample_point_by_point():
    """Every group, point and query on random levels, the bilinear reading of torch."""
    generator = torch.Generator().manual_seed(0)
    memory = flat_memory([(8, 12), (4, 6)])
    memory.tokens = torch.randn(2, 120, 8, generator=generator)
    sampling = randomise(AdaptiveSampling(width=8, num_groups=2, num_points=3))
    content = torch.randn(2, 4, 8, generator=generator)
    positions = torch.rand(2, 4, 4, generator=generator) * torch.tensor([48.0, 32.0, 3.0, 1.0])
    found = sampling(content, positions, memory.tokens, memory)
    points = sampling.points(content, positions)
    _, weights = sampling.on_levels(points, memory)
    levels = memory.tokens.split([96, 24], dim=1)
    for b, q, g, p in torch.cartesian_prod(*map(torch.arange, (2, 4, 2, 3))).tolist():
        grid = (points[b, q, g, p, :2] / torch.tensor([48.0, 32.0]) * 2 - 1).view(1, 1, 1, 2)
        expected = torch.zeros(4)
        for level, shape in enumerate(memory.shapes):
            cells = levels[level][b, :, 4 * g : 4 * g + 4].T.unflatten(1, shape)[None]
            expected += weights[b, q, g, p, level] * F.grid_sample(cells, grid, align_corners=False).view(4)
        assert torch.allclose(found[b, q, g, p], expected, atol=1e-5)


def test_mixing_equals_matrix_products_of_each_query():
    mixing = randomise(AdaptiveMixing(width=8, num_groups=2, in_points=3, out_points=5))
    content, samples = torch.randn(2, 3, 8), torch.randn(2, 3, 2, 3, 4)
    found = mixing(content, samples)
    for b, q in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        values = mixing.matrices(content[b, q]).view(2, 16 + 15)
        rows = []
        for group in range(2):
            channel, point = values[group, :16].view(4, 4), values[group, 16:].view(5, 3)
            mixed = samples[b, q, group] @ channel
            mixed = ((mixed - mixed.mean()) / (mixed.var(correction=0) + 1e-5).sqrt()).relu()
            mixed = point @ mixed
            rows.append(((mixed - mixed.mean()) / (mixed.var(correction=0) + 1e-5).sqrt()).relu())
        assert torch.allclose(found[b, q], mixing.output(torch.cat(rows).flatten()), atol=1e-4)
