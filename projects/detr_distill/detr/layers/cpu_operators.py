"""Dropout, and attention with dropout or with its map, as single operators on a CPU, where torch has no fused ones.

Each is the counterpart of a CUDA kernel: one operator forward and one backward, which keep what they need and no more.

Letters: B images, Q queries, S keys, H heads, e width of a head's queries and keys, v of its values.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("detr_distill::drop", mutates_args=(), device_types="cpu")
def drop(values: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """The values, some of them zero and the others scaled up, and which of them are kept (bool)."""
    kept = _draw(values, probability)
    return _scale(values, kept, probability), kept


@torch.library.custom_op("detr_distill::drop_backward", mutates_args=(), device_types="cpu")
def _drop_backward(gradient: Tensor, kept: Tensor, probability: float) -> Tensor:
    return _scale(gradient, kept, probability)


def _keep_dropped(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.probability = inputs[1]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


drop.register_autograd(
    lambda ctx, gradient, _: (_drop_backward(gradient, *ctx.saved_tensors, ctx.probability), None),
    setup_context=_keep_dropped,
)


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


@torch.library.custom_op("detr_distill::attend", mutates_args=(), device_types="cpu")
def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention; arguments as in :func:`detr_distill.detr.layers.attention.attend`, all of one type.

    Returns:
        (B, Q, H * v); the map (B, H, Q, S), float32; which of its entries dropout kept, bool, empty without dropout.
    """
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


@torch.library.custom_op("detr_distill::attend_backward", mutates_args=(), device_types="cpu")
def _attend_backward(
    of_output: Tensor,
    of_attention: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention: Tensor,
    kept: Tensor,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, and of the scores (B, H, Q, S)."""
    of_output = of_output.unflatten(2, (value.shape[1], -1)).transpose(1, 2)
    dropped = _scale(attention, kept, dropout) if dropout else attention
    of_value = dropped.to(value.dtype).transpose(-2, -1) @ of_output
    of_map = (of_output @ value.transpose(-2, -1)).float()
    of_map = _scale(of_map, kept, dropout) if dropout else of_map
    if of_attention is not None:
        of_map = of_map + of_attention
    of_scores = torch._softmax_backward_data(of_map, attention, -1, torch.float32)
    product, scale = of_scores.to(query.dtype), math.sqrt(query.shape[-1])
    of_query, of_key = product @ key / scale, product.transpose(-2, -1) @ (query / scale)
    return _heads_last(of_query), _heads_last(of_key), _heads_last(of_value), of_scores


def _heads_last(values: Tensor) -> Tensor:
    """The same (B, H, N, e), stored as the (B, N, H * e) that the heads were split from."""
    return values.transpose(1, 2).contiguous().transpose(1, 2)


def _keep_attention(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, value, _, bias, ctx.dropout = inputs
    ctx.save_for_backward(query, key, value, *output[1:])
    ctx.bias_shape = None if bias is None else bias.shape
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _differentiate_attention(ctx: Any, of_output: Tensor | None, of_attention: Tensor | None, _: None) -> tuple:
    query, key, value, attention, kept = ctx.saved_tensors
    if of_output is None:
        of_output = value.new_zeros(query.shape[0], query.shape[2], value.shape[1] * value.shape[3])
    *gradients, of_scores = _attend_backward(of_output, of_attention, query, key, value, attention, kept, ctx.dropout)
    of_bias = of_scores.sum_to_size(ctx.bias_shape) if ctx.needs_input_grad[4] else None
    return (*gradients, None, of_bias, None)


attend.register_autograd(_differentiate_attention, setup_context=_keep_attention)
