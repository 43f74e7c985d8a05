"""How the attentions of Conditional DETR, DAB-DETR and DN-DETR start."""

from __future__ import annotations

from detr_distill.detr.layers.conditional import ConditionalCrossAttention, ConditionalSelfAttention

import pytest
import torch
from torch import nn

LINEAR = {
    "self": ("query_content", "query_position", "key_content", "key_position", "value", "output"),
    "first": ("query_content", "query_position", "query_sine", "key_content", "key_position", "value", "output"),
    "later": ("query_content", "query_sine", "key_content", "key_position", "value", "output"),
}


def build(kind: str) -> nn.Module:
    if kind == "self":
        return ConditionalSelfAttention(8, 2, dropout=0.0)
    return ConditionalCrossAttention(8, 2, dropout=0.0, is_first=kind == "first")


@pytest.mark.parametrize("kind", LINEAR)
def test_the_output_adds_nothing_at_the_start_and_all_else_is_as_torch_draws_it(kind):
    torch.manual_seed(0)
    attention = build(kind)
    torch.manual_seed(0)
    for name in LINEAR[kind]:
        drawn, found = nn.Linear(8, 8), attention.get_submodule(name)
        assert torch.equal(found.weight, drawn.weight)
        assert torch.equal(found.bias, torch.zeros(8) if name == "output" else drawn.bias), name
    assert len(list(attention.parameters())) == 2 * len(LINEAR[kind])
