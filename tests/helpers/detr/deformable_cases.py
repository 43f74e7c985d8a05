"""Cases of deformable attention, results of a form of it on them, and how near two forms must be."""

from __future__ import annotations

from detr_distill.detr.layers.deformable import multi_scale_deformable_attention

import torch
from helpers.builders import ROOT

TRITON_FILE = ROOT / "projects/detr_distill/detr/layers/deformable_triton.py"
HALF = {torch.bfloat16: 2**-7, torch.float16: 2**-10}  # a unit in the last place


def make_case(
    shapes, *, images=1, queries=3, heads=1, channels=4, points=2, dtype=torch.float32, locations=None, device="cpu"
):
    """Arguments and an upstream gradient; points lie inside, at the border, and outside."""
    generator = torch.Generator().manual_seed(queries)
    grid = (images, queries, heads, len(shapes), points)
    values = torch.randn(images, sum(h * w for h, w in shapes), heads, channels, generator=generator).to(dtype)
    if locations is None:
        locations = torch.rand(*grid, 2, generator=generator) * 1.8 - 0.4
    weights = torch.rand(grid, generator=generator)
    upstream = torch.randn(images, queries, heads * channels, generator=generator).to(dtype)
    values, locations, weights, upstream = (x.to(device) for x in (values, locations, weights, upstream))
    return values, list(shapes), locations, weights, upstream


def border_locations(side: int) -> torch.Tensor:
    """(1, Q, 1, 1, 1, 2): all pairs of corners, centres and borders of cells, and of as much beyond the level's border.

    Halves of cells are exact in float32 where the side is a power of two: both forms see the same side of a kink.
    """
    steps = torch.arange(-2, 2 * side + 3) / (2 * side)
    return torch.cartesian_prod(steps, steps).view(1, -1, 1, 1, 1, 2)


FAR = torch.tensor([1e4, -1e4, 1e30])
CASES = {
    "odd_sizes": make_case([(3, 7), (5, 2)], images=2, queries=5, heads=3, channels=5, points=3),
    "several_blocks": make_case([(2, 3)], images=2, queries=19, heads=2, channels=36, points=1),
    "borders": make_case([(4, 4)], queries=169, channels=3, points=1, locations=border_locations(4)),
    "far_outside": make_case([(1, 1), (2, 3)], locations=FAR.repeat(8).view(1, 3, 1, 2, 2, 2)),
    "bfloat16": make_case([(3, 4), (2, 1)], heads=2, dtype=torch.bfloat16),
    "float16": make_case([(3, 4), (2, 1)], heads=2, dtype=torch.float16),
    "no_queries": make_case([(3, 4), (2, 1)], images=2, queries=0),
}  # fmt: skip


def results_of(form, values, shapes, locations, weights, upstream):
    leaves = [x.detach().requires_grad_() for x in (values, locations, weights)]
    output = form(leaves[0], shapes, *leaves[1:])
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


def assert_close(found, expected, rtol=None):
    """Each of output, gradients of values, locations and weights, relative to its largest entry in float32."""
    for name, ours, theirs in zip(("output", "values", "locations", "weights"), found, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, name
        last_place = HALF.get(ours.dtype, 0.0)
        scale = theirs.float().abs().max().item() if theirs.numel() else 0.0
        assert torch.allclose(ours.float(), theirs.float(), rtol=last_place or 1e-5, atol=(rtol or 2e-6) * scale), name


class Sampler(torch.nn.Module):
    def forward(self, values, locations, weights):
        return multi_scale_deformable_attention(values, [(3, 7), (5, 2)], locations, weights)
