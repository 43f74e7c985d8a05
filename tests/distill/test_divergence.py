"""Divergences against closed forms and the gradient of their formula."""

from __future__ import annotations

import math

from detr_distill.distill import divergence

import torch
from helpers.distill.one_image import random_maps


def test_divergences_closed_forms():
    t, p = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])
    assert math.isclose(divergence.kl(t, p).item(), math.log(2), rel_tol=1e-6)
    assert divergence.kl(t, t).abs() < 1e-7
    assert math.isclose(divergence.mse(t, p).item(), 2 * 0.0625 + 0.25, rel_tol=1e-6)
    assert divergence.kl(t, torch.tensor([1.0, 0.0, 0.0])).isfinite()
    logits = torch.tensor([0.3, -0.7])
    expected = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(logits=logits * 2), torch.distributions.Bernoulli(logits=logits)
    ).sum()
    assert torch.allclose(divergence.binary_kl(logits * 2, logits, 1.0), expected, atol=1e-6)
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, -1.0])
    expected = 4 * torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=a / 2), torch.distributions.Categorical(logits=b / 2)
    )
    assert torch.allclose(divergence.softmax_kl(a, b, 2.0), expected, atol=1e-6)


def test_kl_has_the_gradient_of_its_formula():
    target, prediction = random_maps(2, 3, 5), random_maps(2, 3, 5, seed=1).requires_grad_()
    weight = torch.rand(2, 3, generator=torch.Generator().manual_seed(2))
    (found,) = torch.autograd.grad((divergence.kl(target, prediction) * weight).sum(), prediction)
    formula = (target * (target.log() - prediction.log())).sum(-1)
    (expected,) = torch.autograd.grad((formula * weight).sum(), prediction)
    assert torch.allclose(found, expected, atol=1e-5)
