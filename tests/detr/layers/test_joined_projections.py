"""Linear layers of the same values as one product, and frozen ones whose joined weights are kept."""

from __future__ import annotations

from detr_distill.detr.layers import feed_forward
from detr_distill.detr.layers.feed_forward import PerceptronHead, linear_relu, project_together

import torch
from torch import nn

VALUES = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def linears(frozen=False):
    torch.manual_seed(0)
    parts = [nn.Linear(8, 6), nn.Linear(8, 4), nn.Linear(8, 6)]
    return [part.requires_grad_(not frozen) for part in parts]


def test_they_give_what_each_gives_and_learn_alike():
    parts, others = linears(), linears()
    found, expected = project_together(VALUES, parts), [part(VALUES) for part in others]
    sum(x.square().sum() for x in found).backward()
    sum(x.square().sum() for x in expected).backward()
    for part, other, values, wanted in zip(parts, others, found, expected, strict=True):
        assert torch.allclose(values, wanted, atol=1e-6)
        assert torch.allclose(part.weight.grad, other.weight.grad, atol=1e-4)
        assert torch.allclose(part.bias.grad, other.bias.grad, atol=1e-4)


def test_frozen_weights_are_joined_once_and_anew_when_they_change(monkeypatch):
    parts, joins = linears(frozen=True), []
    real = torch.cat
    monkeypatch.setattr(feed_forward.torch, "cat", lambda values: joins.append(len(values)) or real(values))
    for _ in range(3):
        project_together(VALUES, parts)
    assert joins == [3, 3], "weights and biases, once"
    parts[1].weight.zero_()
    assert torch.equal(project_together(VALUES, parts)[1], parts[1](VALUES)) and len(joins) == 4
    parts[2].double()
    assert len(project_together(VALUES[:0], parts[:1])) == 1 and len(joins) == 6


def test_the_activation_is_part_of_the_product_where_nothing_is_differentiated():
    part, head = linears()[0], PerceptronHead(8, 6, 4, num_layers=3)
    expected, of_head = torch.relu(part(VALUES)), head(VALUES)
    with torch.no_grad():
        assert torch.allclose(linear_relu(VALUES, part), expected, atol=1e-6)
        assert torch.allclose(head(VALUES), of_head, atol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            assert linear_relu(VALUES, part).dtype == torch.bfloat16
