"""Multi-scale deformable attention as two Triton kernels; imports torch and Triton alone, so it can be loaded by path.

Letters: B images, Q queries, S memory tokens, H heads, c channels of a head, L levels, P points a head and level.

A program takes a block of queries of one head, whose rows of c channels it reads and writes in one piece. The gradients
of locations and weights are sums within a program; that of the values is added up by atomic operations, whose order
changes from run to run, so its last digits do too.

How many queries a program takes, and whether it reads a level's points one after the other or at once, depends on how
many queries there are (:func:`_plan`):

- Of an encoder there are ten thousands. Neighbours sample neighbouring cells, so that a block of them finds most of its
  values in the cache; one point after the other keeps what a program holds small, and there are enough programs to hide
  how long a read takes.
- Of a decoder there are hundreds, anywhere. Blocks of them make fewer programs than the GPU can hold, each of which
  waits for its reads one after the other: place, then value, 16 times. So a program takes few queries and all points of
  a level at once, a thread four channels of one of them; its levels' reads do not depend on each other either. The
  points are added up once, at the end.

At a decoder's size a kernel takes less time than Python to start one, most of which Triton spends on finding out which
compiled form fits the arguments. :func:`_launch` remembers it by what it depends on.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# Programs of a decoder and of an encoder: how many numbers of a head's output (or of each of its points) one holds,
# and warps. 512 numbers on four warps are four, or 16 bytes of float32, a thread.
FEW, MANY = (512, 4), (512, 4)
MANY_QUERIES = 50_000  # of all images and heads together: between DINO's 900 of four images, and an encoder's cells


@triton.jit
def _own_rows(queries, tokens, heads: tl.constexpr, query_block: tl.constexpr):
    """A program's rows of (image, query, head), which of them there are, and its first row of (image, token, head).

    (query_block, 1, 1) each: a program's numbers are (query, point, channel). int64, since a batch may hold more than
    2^31 numbers.
    """
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    query = tl.program_id(0) * query_block + tl.arange(0, query_block)[:, None, None]
    return (image * queries + query) * heads + head, query < queries, image * tokens * heads + head


@triton.jit
def _read_point(locations, weights, entry, live, height, width):
    """The cell above and left of a point, the fractions of a cell beyond that cell's centre, and the weight.

    A point that touches no cell, or is not a number, is put where none of its corners is inside.
    """
    x = tl.load(locations + entry * 2, mask=live, other=-1.0) * width - 0.5
    y = tl.load(locations + entry * 2 + 1, mask=live, other=-1.0) * height - 0.5
    weight = tl.load(weights + entry, mask=live, other=0.0)
    touches = (x >= -1) & (x < width) & (y >= -1) & (y < height)
    x = tl.where(touches, x, -2.0)
    y = tl.where(touches, y, -2.0)
    left, top = tl.floor(x), tl.floor(y)
    return left.to(tl.int32), top.to(tl.int32), x - left, y - top, weight


@triton.jit
def _corner(left, top, part_x, part_y, height, width, corner: tl.constexpr):
    """One of the four cells around a point: its number in the level, whether it exists, its shares along x and y.

    Corners 1 and 3 are on the right, 2 and 3 below.
    """
    column, row = left + corner % 2, top + corner // 2
    rows, columns = tl.cast(height, tl.int32), tl.cast(width, tl.int32)
    exists = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    share_x = part_x if corner % 2 else 1 - part_x
    share_y = part_y if corner // 2 else 1 - part_y
    return row * columns + column, exists, share_x, share_y


@triton.jit(do_not_specialize=["queries", "tokens"])
def forward_kernel(
    values, locations, weights, output, sizes, queries, tokens,
    heads: tl.constexpr, channels: tl.constexpr, levels: tl.constexpr, points: tl.constexpr,
    query_block: tl.constexpr, point_block: tl.constexpr, channel_block: tl.constexpr,
):  # fmt: skip
    """Sums, for its queries of a head, the values that their points read, by bilinear interpolation."""
    channel = tl.arange(0, channel_block)[None, None, :]
    filled = channel < channels
    row, live, first = _own_rows(queries, tokens, heads, query_block)
    first = first * channels + channel
    total = tl.zeros((query_block, point_block, channel_block), tl.float32)
    start = tl.full((), 0, tl.int64)
    for level in tl.static_range(levels):
        height, width = sizes[2 * level], sizes[2 * level + 1]
        for first_point in range(0, points, point_block):
            point = first_point + tl.arange(0, point_block)[None, :, None]
            entry, there = (row * levels + level) * points + point, live & (point < points)
            left, top, part_x, part_y, weight = _read_point(locations, weights, entry, there, height, width)
            for corner in tl.static_range(4):
                cell, exists, share_x, share_y = _corner(left, top, part_x, part_y, height, width, corner)
                address = first + (start + cell) * (heads * channels)
                value = tl.load(values + address, mask=exists & filled, other=0.0).to(tl.float32)
                total += weight * share_x * share_y * value
        start += tl.cast(height, tl.int64) * tl.cast(width, tl.int64)
    result = tl.sum(total, axis=1, keep_dims=True).to(output.dtype.element_ty)
    tl.store(output + row * channels + channel, result, mask=live & filled)


@triton.jit(do_not_specialize=["queries", "tokens"])
def backward_kernel(
    values, locations, weights, grad_output, grad_values, grad_locations, grad_weights, sizes, queries, tokens,
    heads: tl.constexpr, channels: tl.constexpr, levels: tl.constexpr, points: tl.constexpr,
    query_block: tl.constexpr, point_block: tl.constexpr, channel_block: tl.constexpr,
):  # fmt: skip
    """Adds up the gradients of the values, and writes those of the points and their weights."""
    channel = tl.arange(0, channel_block)[None, None, :]
    filled = channel < channels
    row, live, first = _own_rows(queries, tokens, heads, query_block)
    first = first * channels + channel
    upstream = tl.load(grad_output + row * channels + channel, mask=live & filled, other=0.0).to(tl.float32)
    start = tl.full((), 0, tl.int64)
    for level in tl.static_range(levels):
        height, width = sizes[2 * level], sizes[2 * level + 1]
        for first_point in range(0, points, point_block):
            point = first_point + tl.arange(0, point_block)[None, :, None]
            entry, there = (row * levels + level) * points + point, live & (point < points)
            left, top, part_x, part_y, weight = _read_point(locations, weights, entry, there, height, width)
            grad_weight = tl.zeros((query_block, point_block, 1), tl.float32)
            grad_x = tl.zeros((query_block, point_block, 1), tl.float32)
            grad_y = tl.zeros((query_block, point_block, 1), tl.float32)
            for corner in tl.static_range(4):
                cell, exists, share_x, share_y = _corner(left, top, part_x, part_y, height, width, corner)
                address = first + (start + cell) * (heads * channels)
                value = tl.load(values + address, mask=exists & filled, other=0.0).to(tl.float32)
                product = tl.sum(value * upstream, axis=2, keep_dims=True)
                grad_weight += share_x * share_y * product
                # A share grows towards its corner: with x on the right and with y below.
                grad_x += share_y * product if corner % 2 else -share_y * product
                grad_y += share_x * product if corner // 2 else -share_x * product
                change = weight * share_x * share_y * upstream
                tl.atomic_add(grad_values + address, change, mask=exists & filled, sem="relaxed")
            tl.store(grad_weights + entry, grad_weight, mask=there)
            tl.store(grad_locations + entry * 2, grad_x * weight * width, mask=there)
            tl.store(grad_locations + entry * 2 + 1, grad_y * weight * height, mask=there)
        start += tl.cast(height, tl.int64) * tl.cast(width, tl.int64)


def _plan(rows: int, points: int, channel_block: int) -> tuple[int, int, int]:
    """How many queries and points a program takes at once, and its warps, for ``rows`` queries of all heads and images.

    See the module's text for why.
    """
    few = rows < MANY_QUERIES
    (numbers, warps), point_block = (FEW, triton.next_power_of_2(points)) if few else (MANY, 1)
    return min(64, max(1, numbers // (channel_block * point_block))), point_block, warps


# Compiled kernels by what their form depends on: kernel, type and device of values, constants, warps, and whether all
# tensors begin where 16 bytes can be read at once.
_compiled: dict[tuple[Any, ...], Any] = {}


def _launch(
    kernel: Any, tensors: tuple[Tensor, ...], sizes: tuple[float, ...], values: Tensor, locations: Tensor
) -> None:
    """One program for each block of queries, head and image, on the device of the values."""
    images, tokens, heads, channels = values.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    if not locations.numel():
        return
    channel_block = triton.next_power_of_2(channels)
    query_block, point_block, warps = _plan(images * queries * heads, points, channel_block)
    grid = (triton.cdiv(queries, query_block), heads, images)
    constants = (heads, channels, levels, points, query_block, point_block, channel_block)
    arguments = (*tensors, sizes, queries, tokens, *constants)
    aligned = not any(tensor.data_ptr() % 16 for tensor in tensors)
    form = (kernel, values.dtype, values.device, constants, warps, aligned)
    with torch.cuda.device_of(values):
        compiled = _compiled.get(form)
        if compiled is None:  # and always in Triton's interpreter
            _compiled[form] = kernel[grid](*arguments, num_warps=warps)
        else:
            compiled[grid](*arguments)


class _DeformableAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, sizes: tuple[float, ...], locations: Tensor, weights: Tensor) -> Tensor:
        output = values.new_empty(values.shape[0], locations.shape[1], values.shape[2] * values.shape[3])
        _launch(forward_kernel, (values, locations, weights, output), sizes, values, locations)
        ctx.save_for_backward(values, locations, weights)
        ctx.sizes = sizes
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        values, locations, weights = ctx.saved_tensors
        grad_values = torch.zeros_like(values, dtype=torch.float32)
        grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
        inputs = (values, locations, weights, grad_output.contiguous())
        gradients = (grad_values, grad_locations, grad_weights)
        _launch(backward_kernel, (*inputs, *gradients), ctx.sizes, values, locations)
        return grad_values.to(values.dtype), None, grad_locations, grad_weights


def attend_with_triton(
    values: Tensor, shapes: list[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """What ``deformable.py:multi_scale_deformable_attention`` computes, on CUDA.

    Values are read in their own type, locations and weights in float32 whatever they come in, and all sums are in
    float32; autocast changes nothing.

    Args:
        values: (B, S, H, c), float32, bfloat16 or float16. shapes: (height, width) of each level.
        sampling_locations: (B, Q, H, L, P, 2). attention_weights: (B, Q, H, L, P).

    Returns:
        (B, Q, H * c), in the type of ``values``.

    Raises:
        ValueError: shapes that do not belong together, with which a kernel would read outside its tensors.
    """
    images, tokens, heads, _ = values.shape
    grid = attention_weights.shape
    fits = (images, heads, len(shapes)) == (grid[0], *grid[2:4]) and sampling_locations.shape == (*grid, 2)
    if not fits or tokens != sum(height * width for height, width in shapes):
        raise ValueError(
            f"Values {tuple(values.shape)}, levels {shapes}, locations {tuple(sampling_locations.shape)} and weights "
            f"{tuple(grid)} do not fit: (B, S, H, c), L pairs of S cells in all, (B, Q, H, L, P, 2), (B, Q, H, L, P)."
        )
    # As floats: Triton would compile anew for an integer that is 1 or a multiple of 16, so for many sizes of image.
    sizes = tuple(float(side) for shape in shapes for side in shape)
    return _DeformableAttention.apply(
        values.contiguous(), sizes, sampling_locations.float().contiguous(), attention_weights.float().contiguous()
    )
