"""Dropout from few random bits: the right share, the right scale, the same draw for the same seed."""

from __future__ import annotations

from detr_distill.detr.attention import drop

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
