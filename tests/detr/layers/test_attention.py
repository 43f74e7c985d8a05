"""Attention of packed groups against one masked product; dropout from few random bits."""

from __future__ import annotations

from detr_distill.detr.groups import group_layout
from detr_distill.detr.layers.attention import attend, attend_within_groups
from detr_distill.detr.layers.feed_forward import Dropout, drop
from detr_distill.structures import QueryGroup

import pytest
import torch


@pytest.mark.parametrize("probability", [0.1, 0.5])
@pytest.mark.parametrize("shape", [(4, 50, 100), (3, 7, 11)])
def test_dropout_keeps_the_mean_and_drops_the_share(probability, shape):
    torch.manual_seed(0)
    values = torch.ones(100, *shape).requires_grad_()
    dropped = drop(values, probability)
    kept = dropped[dropped != 0]
    assert torch.allclose(kept, torch.tensor(1 / (1 - probability)))
    assert (dropped == 0).float().mean().item() == pytest.approx(probability, abs=0.01)
    # Neighbours are drawn independently: the share of dropped pairs is the square.
    gone = dropped.detach().flatten() == 0
    assert (gone[1:] & gone[:-1]).float().mean().item() == pytest.approx(probability**2, abs=0.01)
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped.detach()), "the gradient passes where the value did"
    torch.manual_seed(0)
    assert torch.equal(drop(values, probability), dropped)
    assert drop(values.detach().bfloat16(), probability).dtype == torch.bfloat16


def test_dropout_is_the_same_with_and_without_a_map():
    query, key, value = torch.randn(3, 2, 2, 8, 4, generator=torch.Generator().manual_seed(0)).unbind()
    torch.manual_seed(1)
    captured, attention = attend(query, key, value, dropout=0.5, capture=True)
    torch.manual_seed(1)
    output, nothing = attend(query, key, value, dropout=0.5)
    assert torch.equal(output, captured) and nothing is None
    whole, _ = attend(query, key, value)
    assert not torch.allclose(output, whole, atol=0.1), "nothing was dropped"
    assert torch.allclose(attention.sum(-1), torch.ones(2, 2, 8))


def test_dropout_rests_in_evaluation():
    values, dropout = torch.ones(40, 10), Dropout(0.5)
    assert (dropout(values) == 0).any()
    assert dropout.eval()(values) is values


@pytest.mark.parametrize("with_bias", [False, True])
def test_groups_attend_as_one_product_under_their_block_mask(with_bias):
    sizes, sees = {"own": 4, "denoising": 3, "other": 2}, {"own": (), "denoising": ("own", "absent"), "other": ()}
    inner = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 0, 0]], dtype=torch.bool)
    groups = [
        QueryGroup(
            name, torch.zeros(2, size, 6), torch.zeros(2, size, 6), sees[name], inner if name == "denoising" else None
        )
        for name, size in sizes.items()
    ]
    query, key, value = torch.randn(3, 2, 2, 9, 3, generator=torch.Generator().manual_seed(0)).unbind()
    bias = torch.randn(2, 2, 9, 9, generator=torch.Generator().manual_seed(1)) if with_bias else None
    hidden = torch.ones(9, 9, dtype=torch.bool)
    hidden[:4, :4] = hidden[4:7, :4] = hidden[7:, 7:] = False
    hidden[4:7, 4:7] = inner
    expected, whole = attend(query, key, value, mask=hidden, bias=bias, capture=True)
    for capture in (False, True):
        found, maps = attend_within_groups(
            query, key, value, group_layout(groups), bias=bias, dropout=0.0, capture=capture
        )
        assert torch.allclose(found, expected, atol=1e-6)
    for group, rows in enumerate((slice(0, 4), slice(4, 7), slice(7, 9))):
        assert torch.allclose(maps[group], whole[..., rows, rows], atol=1e-6)
