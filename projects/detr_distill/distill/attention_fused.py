"""The divergence between two attention maps from queries and keys of both sides, as a function with gradients.

Its memory grows with queries plus keys, where that of maps grows with their product. See attention_triton.py for what
is computed; letters as there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..structures.attention import AttentionFactors
from .attention_triton import divergence_kernel, key_gradient_kernel, normaliser_kernel, query_gradient_kernel

# Rows and columns of a tile: a program holds all of it in registers, several run on a multiprocessor, and 300 queries
# of a few images make enough of them.
TILE = 32
OPTIONS = {"num_warps": 4, "num_stages": 2}
PRECISIONS = {torch.float32: "tf32x3", torch.bfloat16: "tf32", torch.float16: "tf32"}
Tensors = tuple[Tensor, Tensor, Tensor | None]  # queries, keys, mask


def attention_divergence(student: AttentionFactors, teacher: AttentionFactors, *, kind: str, tiny: float) -> Tensor:
    """``sum D(t, p)`` over the columns of two attention maps; gradients reach the student's queries and keys.

    Args:
        student, teacher: of as many images, rows and columns, in float32, bfloat16 or float16; heads, widths and types
            may differ.
        kind: "kl", ``D = t log(t / (p + tiny) + tiny)``, or "mse", ``D = (t - p)^2``; what functions of
            divergence.py compute on maps.

    Returns:
        (B, H, M) in float32; where the sides have other numbers of heads, (B, 1, M) of the heads' means.

    Raises:
        ValueError: shapes that do not belong together, with which a kernel would read outside its tensors.
    """
    (images, _, rows, _), columns = student.query.shape, student.key.shape[2]
    for side in (student, teacher):
        heads, width = side.query.shape[1], side.query.shape[3]
        fits = side.query.shape == (images, heads, rows, width) and side.key.shape == (images, heads, columns, width)
        if not fits or not _fits(side.mask, (images, 1, rows, columns)):
            found = [x if x is None else tuple(x.shape) for x in (*vars(student).values(), *vars(teacher).values())]
            raise ValueError(f"Queries, keys and masks of two sides do not fit each other: {found}.")
    return _AttentionDivergence.apply(*_in_pieces(student), *_in_pieces(teacher), kind, tiny)


def _fits(mask: Tensor | None, shape: tuple[int, ...]) -> bool:
    return mask is None or all(side in (1, whole) for side, whole in zip(mask.shape, shape, strict=True))


def _in_pieces(side: AttentionFactors) -> Tensors:
    """Queries, keys and mask as kernels read them: a head's entries in one piece, (B, 1, M or 1, N) bytes in one."""
    query, key = (x if x.stride(-1) == 1 else x.contiguous() for x in (side.query, side.key))
    if side.mask is None:
        return query, key, None
    return query, key, side.mask.expand(len(query), -1, -1, key.shape[2]).contiguous().view(torch.uint8)


class _AttentionDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        student, teacher, (kind, tiny) = arguments[:3], arguments[3:6], arguments[6:]
        query, key, _ = student
        (images, heads, rows, _), columns = query.shape, key.shape[2]
        groups = heads if heads == teacher[0].shape[1] else 1
        sides = tuple(_with_strides(side) for side in (student, teacher))
        shapes = tuple(_shape(side, groups) for side in (student, teacher))
        normalisers = tuple(query.new_empty(images, shape[0], rows, dtype=torch.float32) for shape in shapes)
        blocks = _blocks(rows)
        for side, values, shape in zip(sides, normalisers, shapes, strict=True):
            _launch(normaliser_kernel, (blocks, shape[0], images), query, side, values, rows, columns, shape, TILE)
        divergence = query.new_empty(images, groups, rows, dtype=torch.float32)
        rest = (normalisers, divergence, rows, columns, tiny, *shapes, kind, TILE)
        _launch(divergence_kernel, (blocks, groups, images), query, *sides, *rest)
        ctx.save_for_backward(*student, *teacher, *normalisers)
        ctx.rest = (rows, columns, tiny, *shapes, kind, TILE)
        return divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        student, teacher, normalisers = saved[:3], saved[3:6], saved[6:]
        query, key, _ = student
        (images, heads, rows, _), columns = query.shape, key.shape[2]
        grad_query, grad_key, means = torch.empty_like(query), torch.empty_like(key), torch.empty_like(normalisers[0])
        first = (_with_strides(student), _with_strides(teacher), normalisers, upstream.contiguous(), means)
        grid = (_blocks(rows), heads, images)
        _launch(query_gradient_kernel, grid, query, *first, grad_query, grad_query.stride()[:3], *ctx.rest)
        grid = (_blocks(columns), heads, images)
        _launch(key_gradient_kernel, grid, query, *first, grad_key, grad_key.stride()[:3], *ctx.rest)
        return grad_query, grad_key, None, None, None, None, None, None


def _blocks(count: int) -> int:
    return -(-count // TILE)


def _with_strides(side: Tensors) -> tuple[Any, ...]:
    """What a kernel reads of a side: the three tensors, and the strides of queries and of keys."""
    query, key, mask = side
    return query, key, mask, query.stride()[:3], key.stride()[:3]


def _shape(side: Tensors, groups: int) -> tuple[Any, ...]:
    """What kernels are compiled for.

    Heads, heads of a group, width, width of a tile; 0 without a mask, 1 with one of keys, 2 with one of queries and
    keys; and the precision of products.
    """
    query, _, mask = side
    _, heads, _, width = query.shape
    masked = 0 if mask is None else 1 if mask.shape[2] == 1 else 2
    tile = max(16, 1 << (width - 1).bit_length())
    return heads, heads // groups, width, tile, masked, PRECISIONS[query.dtype]


def _launch(kernel: Any, grid: tuple[int, int, int], place: Tensor, *arguments: Any) -> None:
    """One program for each block, head or group, and image, on the device of ``place``."""
    if all(grid):
        with torch.cuda.device_of(place):
            kernel[grid](*arguments, **OPTIONS)
