"""Deformable attention by a naive loop, its gradients, and how it starts."""

from __future__ import annotations

from detr_distill.detr.layers.deformable import DeformableAttention, multi_scale_deformable_attention
from detr_distill.structures import Memory

import torch
from torch import Tensor


def naive_attention(values: Tensor, shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Equation 3 of the paper cell by cell: a cell's weight is the overlap of two unit tents around the point."""
    images, queries, heads, levels, points, _ = locations.shape
    output = values.new_zeros(images, queries, heads, values.shape[-1])
    for b, q, h, level, p in torch.cartesian_prod(
        *map(torch.arange, (images, queries, heads, levels, points))
    ).tolist():
        height, width = shapes[level]
        start = sum(rows * columns for rows, columns in shapes[:level])
        x, y = locations[b, q, h, level, p] * values.new_tensor([width, height]) - 0.5
        for row in range(height):
            for column in range(width):
                share = (1 - (x - column).abs()).clamp(min=0) * (1 - (y - row).abs()).clamp(min=0)
                value = values[b, start + row * width + column, h]
                output[b, q, h] = output[b, q, h] + weights[b, q, h, level, p] * share * value
    return output.flatten(2)


def attention_case(shapes=((3, 4), (2, 1))):
    """Points inside, between the border cells and the border, and outside; float64."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, sum(h * w for h, w in shapes), 2, 3, generator=generator, dtype=torch.float64)
    locations = torch.rand(2, 3, 2, len(shapes), 2, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(2, 3, 2, len(shapes), 2, generator=generator, dtype=torch.float64)
    return values, list(shapes), locations, weights


def test_attention_equals_a_naive_loop_and_its_gradients_are_right():
    values, shapes, locations, weights = attention_case()
    found = multi_scale_deformable_attention(values, shapes, locations, weights)
    assert torch.allclose(found, naive_attention(values, shapes, locations, weights), atol=1e-12)
    leaves = [x.requires_grad_() for x in (values, locations, weights)]
    attention = lambda v, x, w: multi_scale_deformable_attention(v, shapes, x, w)  # noqa: E731
    assert torch.autograd.gradcheck(attention, leaves)
    loop = torch.autograd.grad(naive_attention(values, shapes, locations, weights).square().sum(), leaves)
    ours = torch.autograd.grad(attention(*leaves).square().sum(), leaves)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(loop, ours, strict=True))


def test_half_precision_values_are_sampled_in_float32():
    values, shapes, locations, weights = attention_case()
    found = multi_scale_deformable_attention(values.bfloat16(), shapes, locations.float(), weights.float())
    assert found.dtype == torch.bfloat16
    exact = multi_scale_deformable_attention(values.bfloat16().double(), shapes, locations, weights)
    assert torch.allclose(found.double(), exact, rtol=2**-8, atol=1e-6), "one rounding, that of the result"


def test_attention_starts_on_a_star_with_equal_weights():
    attention = DeformableAttention(width=16, num_heads=8, num_levels=2, num_points=3)
    offsets = attention.sampling_offsets.bias.view(8, 2, 3, 2)
    assert attention.sampling_offsets.weight.abs().max() == 0 == attention.attention_weights.weight.abs().max()
    for head, direction in enumerate([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]):
        for point in range(3):
            expected = torch.tensor(direction) * (point + 1.0)
            assert torch.allclose(offsets[head, :, point], expected.expand(2, -1), atol=1e-5)
    # On constant values that surround the reference, equal weights give the value itself.
    tokens = torch.ones(1, 2 * 9 * 9, 16)
    memory = Memory(tokens, tokens, None, [(9, 9)] * 2, level_sizes=torch.full((2, 2), 9.0))
    found = attention(torch.randn(1, 1, 16), torch.full((1, 1, 2, 2), 0.5), tokens, memory)
    assert torch.allclose(found, attention.output_projection(attention.value_projection(tokens[:, :1])), atol=1e-5)


def test_box_references_scale_the_offsets():
    """The last point of a head lies on the box's border: point P of P, half the size away."""
    attention = DeformableAttention(width=8, num_heads=4, num_levels=1, num_points=4)
    memory = Memory(torch.zeros(1, 1, 8), torch.zeros(1), None, [(10, 20)], level_sizes=torch.tensor([[20.0, 10.0]]))
    query = torch.zeros(1, 1, 8)
    box = torch.tensor([0.5, 0.5, 0.2, 0.4]).expand(1, 1, 1, 4)
    last = attention.choose_points(query, box, memory).locations[0, 0, :, 0, -1]
    assert torch.allclose(last, torch.tensor([[0.6, 0.5], [0.5, 0.7], [0.4, 0.5], [0.5, 0.3]]), atol=1e-6)
    first = attention.choose_points(query, box[..., :2], memory).locations[0, 0, :, 0, 0]
    assert torch.allclose(first, torch.tensor([[0.55, 0.5], [0.5, 0.6], [0.45, 0.5], [0.5, 0.4]]), atol=1e-6)
