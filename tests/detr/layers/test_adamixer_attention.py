"""The bias of AdaMixer's self-attention: the boxes' intersection, and what it does to the attention."""

from __future__ import annotations

import math

from detr_distill.detr.layers import adamixer
from detr_distill.detr.layers.attention import attend

import pytest
import torch


def test_log_intersection_by_hand():
    """Boxes of 8 x 8 and 16 x 16 around one centre, and one of 8 x 8 far away."""
    positions = torch.tensor([[[20.0, 20.0, 3.0, 0.0], [20.0, 20.0, 4.0, 0.0], [90.0, 90.0, 3.0, 0.0]]])
    covered = torch.tensor([[1.0, 1.0, 0.0], [0.25, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert torch.allclose(adamixer.log_intersection(positions), (covered + 1e-7).log())
    shifted = torch.tensor([[[20.0, 20.0, 3.0, 0.0], [24.0, 22.0, 3.0, 0.0]]])
    assert adamixer.log_intersection(shifted)[0, 0, 1].item() == pytest.approx(math.log(0.5 * 0.75), abs=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_bias_by_hand(masked):
    query, key, value = (torch.randn(2, 2, 4, 3) for _ in range(3))
    bias, mask = torch.randn(2, 2, 4, 4), torch.eye(4, dtype=torch.bool) if masked else None
    scores = query @ key.transpose(-2, -1) / math.sqrt(3) + bias
    expected = (scores if mask is None else scores.masked_fill(mask, -torch.inf)).softmax(-1)
    output, attention = attend(query, key, value, mask=mask, bias=bias, capture=True)
    assert torch.allclose(attention, expected, atol=1e-6)
    assert torch.allclose(output, (expected @ value).transpose(1, 2).flatten(2), atol=1e-6)
    fused, _ = attend(query, key, value, mask=mask, bias=bias)
    assert torch.allclose(fused, output, atol=1e-6)


def test_bias_has_the_same_gradient_with_and_without_capture():
    query, key, value = (torch.randn(1, 2, 4, 3) for _ in range(3))
    weight = torch.rand(2, 1, 1, requires_grad=True)
    bias = torch.randn(1, 1, 4, 4)
    gradients = []
    for capture in (False, True):
        output, _ = attend(query, key, value, bias=weight * bias, capture=capture)
        gradients += torch.autograd.grad(output.square().sum(), weight)
    assert gradients[0].abs().min() > 0 and torch.allclose(*gradients, rtol=1e-3, atol=1e-5)
