"""What CUDA has fused kernels for and torch has none on a CPU, as single operators there.

Dropout, attention with dropout or with its map, and the divergence of two maps: one operator forward and one backward
each, which keep what they need and no more.

Letters: B images, Q queries, S keys, H heads, e width of a head's queries and keys, v of its values.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# torch's lowest interface: its decorators for operators would load torch's compiler.
_OPERATORS = torch.library.Library("detr_distill", "DEF")


def drop(values: Tensor, probability: float) -> Tensor:
    """The values, some of them zero and the others scaled up."""
    return _Drop.apply(values, probability)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """Attention; arguments as in :func:`detr_distill.detr.layers.attention.attend`, all of one type.

    Returns:
        (B, Q, H * v), and the map (B, H, Q, S) in float32.
    """
    return _Attend.apply(query, key, value, mask, bias, dropout)


def kl_and_ratio(teacher: Tensor, student: Tensor, tiny: float) -> tuple[Tensor, Tensor]:
    """``sum t log r`` over the last axis and ``r = t / (p + tiny) + tiny``: the operator ``kl``, on any device."""
    ratio = student + tiny
    # The second one keeps the logarithm finite where the teacher is 0; a new tensor for it would cost more.
    torch.div(teacher, ratio, out=ratio).add_(tiny)
    return torch.linalg.vecdot(teacher, ratio.log()), ratio  # without a tensor of products


def kl_gradient(gradient: Tensor, ratio: Tensor) -> Tensor:
    """The student's, from that of the divergence: the operator ``kl_backward``, on any device."""
    return ratio * -gradient.unsqueeze(-1)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, probability: float) -> Tensor:
        dropped, kept = torch.ops.detr_distill.drop(values, probability)
        ctx.save_for_backward(kept)
        ctx.probability = probability
        return dropped

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.ops.detr_distill.drop_backward(gradient, *ctx.saved_tensors, ctx.probability), None


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None, dropout: float
    ) -> tuple[Tensor, Tensor]:
        output, attention, kept = torch.ops.detr_distill.attend(query, key, value, mask, bias, dropout)
        ctx.save_for_backward(query, key, value, attention, kept)
        ctx.dropout, ctx.bias_shape = dropout, None if bias is None else bias.shape
        ctx.set_materialize_grads(False)
        return output, attention

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_output: Tensor | None, of_map: Tensor | None) -> tuple[Tensor | None, ...]:
        operator = torch.ops.detr_distill.attend_backward
        *gradients, of_scores = operator(of_output, of_map, *ctx.saved_tensors, ctx.dropout)
        return (*gradients, None, of_scores.sum_to_size(ctx.bias_shape) if ctx.needs_input_grad[4] else None, None)


def _drop(values: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    kept = _draw(values, probability)
    return _scale(values, kept, probability), kept


def _draw(values: Tensor, probability: float) -> Tensor:
    """Which entries are kept (bool).

    torch draws one number an entry on one CPU thread, which takes longer than the attention itself. Sixteen random bits
    decide as well: the probability is met to 1 / 65,536.
    """
    if values.numel() % 4:
        return torch.empty(values.shape, dtype=torch.bool).bernoulli_(1 - probability)
    bits = torch.empty(values.numel() // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return bits.view(values.shape) >= round(probability * 2**16) - 2**15


def _scale(values: Tensor, kept: Tensor, probability: float) -> Tensor:
    return values * kept.to(values.dtype).mul_(1 / (1 - probability))


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast("cpu", enabled=False):
        # Scaled before the product, which float16 could overflow.
        scores = (query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1)).float()
        if bias is not None:
            scores = scores + bias
        if mask is not None:
            scores = scores.masked_fill(mask, -torch.inf)
        attention = scores.softmax(-1)
        kept = _draw(attention, dropout) if dropout else torch.empty(0, dtype=torch.bool)
        dropped = _scale(attention, kept, dropout) if dropout else attention
        output = dropped.to(value.dtype) @ value
    return output.transpose(1, 2).flatten(2), attention, kept


def _attend_backward(
    of_output: Tensor | None,
    of_map: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention: Tensor,
    kept: Tensor,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, and of the scores (B, H, Q, S)."""
    of_value, slopes = torch.zeros_like(value), torch.zeros_like(attention) if of_map is None else of_map
    if of_output is not None:
        of_output = of_output.unflatten(2, (value.shape[1], -1)).transpose(1, 2)
        dropped = _scale(attention, kept, dropout) if dropout else attention
        of_value = dropped.to(value.dtype).transpose(-2, -1) @ of_output
        of_dropped = (of_output @ value.transpose(-2, -1)).float()
        of_dropped = _scale(of_dropped, kept, dropout) if dropout else of_dropped
        slopes = of_dropped if of_map is None else of_dropped + of_map
    of_scores = torch._softmax_backward_data(slopes, attention, -1, torch.float32)
    product, scale = of_scores.to(query.dtype), math.sqrt(query.shape[-1])
    of_query, of_key = product @ key / scale, product.transpose(-2, -1) @ (query / scale)
    return _heads_last(of_query), _heads_last(of_key), _heads_last(of_value), of_scores


def _heads_last(values: Tensor) -> Tensor:
    """The same (B, H, N, e), stored as the (B, N, H * e) that the heads were split from."""
    return values.transpose(1, 2).contiguous().transpose(1, 2)


for _schema, _function in {
    "drop(Tensor values, float probability) -> (Tensor, Tensor)": _drop,
    "drop_backward(Tensor gradient, Tensor kept, float probability) -> Tensor": _scale,
    "attend(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? bias, float dropout) "
    "-> (Tensor, Tensor, Tensor)": _attend,
    "attend_backward(Tensor? of_output, Tensor? of_map, Tensor query, Tensor key, Tensor value, Tensor attention, "
    "Tensor kept, float dropout) -> (Tensor, Tensor, Tensor, Tensor)": _attend_backward,
    "kl(Tensor teacher, Tensor student, float tiny) -> (Tensor, Tensor)": kl_and_ratio,
    "kl_backward(Tensor gradient, Tensor ratio) -> Tensor": kl_gradient,
}.items():
    _OPERATORS.define(_schema)
    _OPERATORS.impl(_schema.partition("(")[0], _function, "CPU")
