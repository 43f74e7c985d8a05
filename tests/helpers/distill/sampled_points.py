"""Random points of sampled attention, and the loss that compares them."""

from __future__ import annotations

from functools import partial

from detr_distill.distill.classes import match_classes
from detr_distill.distill.losses.sampled_attention import SampledAttentionLoss
from detr_distill.distill.losses.sampled_points import energy_coefficient, grid_distance

import torch


def build_loss(**options):
    return SampledAttentionLoss(classes=match_classes(None, None, 2, 2), **options)


def measure_of(loss):
    """The distance between two sets of weighted points that a loss's settings say."""
    if loss.distance == "energy":
        return partial(energy_coefficient, directions=loss.directions)
    return partial(grid_distance, size=loss.grid_size)


def random_points(*shape, seed=0, dtype=torch.float64):
    """Places (*shape, 2) around the image and weights (*shape) that add up to 1 over the last axis."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(*shape, 2, generator=generator, dtype=dtype) * 1.2 - 0.1
    return places, torch.randn(*shape, generator=generator, dtype=dtype).softmax(-1)
