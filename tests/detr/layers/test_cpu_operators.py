"""A CPU's own operators give what torch's operators give one by one, and the same gradients."""

from __future__ import annotations

import math

from detr_distill.detr.layers import cpu_operators
from detr_distill.detr.layers.attention import attend
from detr_distill.distill.divergence import TINY, kl

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).requires_grad_()


def attend_in_steps(query, key, value, mask, bias, kept, dropout):
    scores = query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1)
    scores = scores if bias is None else scores + bias
    attention = (scores if mask is None else scores.masked_fill(mask, -torch.inf)).softmax(-1)
    dropped = attention * kept / (1 - dropout)
    return (dropped @ value).transpose(1, 2).flatten(2), attention


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("extras", [False, True])
def test_attention_and_its_gradients(dropout, extras):
    query, key, value = random(2, 3, 4, 6), random(2, 3, 8, 6, seed=1), random(2, 3, 8, 5, seed=2)
    bias = random(1, 3, 4, 8, seed=3) if extras else None
    mask = torch.arange(8).view(1, 1, 1, 8) >= torch.tensor([8, 5]).view(2, 1, 1, 1) if extras else None
    torch.manual_seed(4)
    kept = torch.ops.detr_distill.attend(query, key, value, mask, bias, dropout)[2] if dropout else torch.tensor(1.0)
    torch.manual_seed(4)
    output, attention = attend(query, key, value, mask=mask, bias=bias, dropout=dropout, capture=True)
    expected = attend_in_steps(query, key, value, mask, bias, kept, dropout)
    inputs = [query, key, value, *([bias] if extras else [])]
    for weight in ((1.0, 0.0), (1.0, 1.0), (0.0, 1.0)):

        def total(values, weight=weight):
            terms = zip(weight, values, strict=True)
            return sum(w * (v * torch.arange(v.numel()).view_as(v).cos()).sum() for w, v in terms if w)

        found = torch.autograd.grad(total((output, attention)), inputs, retain_graph=True, allow_unused=True)
        wanted = torch.autograd.grad(total(expected), inputs, retain_graph=True, allow_unused=True)
        for gradient, other in zip(found, wanted, strict=True):
            assert torch.allclose(gradient, torch.zeros_like(gradient) if other is None else other, atol=1e-5)
    assert torch.allclose(output, expected[0], atol=1e-6) and torch.allclose(attention, expected[1], atol=1e-6)


def test_gradients_lie_as_the_heads_were_split():
    tokens = random(2, 4, 6)
    heads = tokens.view(2, 4, 3, 2).transpose(1, 2)
    output, _ = cpu_operators.attend(heads, heads, heads, None, None, 0.5)
    heads.register_hook(lambda gradient: strides.append(gradient.transpose(1, 2).is_contiguous()))
    strides = []
    output.sum().backward()
    assert strides == [True], "the gradient of the split would have to be copied"


def test_the_divergence_of_maps_is_one_operator_each_way():
    teacher, student = (random(2, 3, 4, 8, seed=seed).detach().softmax(-1) for seed in (0, 1))
    student.requires_grad_()
    expected = (teacher * (teacher / (student + TINY) + TINY).log()).sum(-1)
    calls = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    with Calls():
        found = kl(teacher, student)
        (gradient,) = torch.autograd.grad(found, student, torch.ones(2, 3, 4))
    assert [name for name in calls if "kl" in name] == ["detr_distill::kl", "detr_distill::kl_backward"]
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(gradient, -teacher / student, rtol=1e-4)
