"""The divergence between two attention maps from queries and keys of both sides, as Triton kernels; no map exists.

What a kernel reads of a side, and the ``shape`` that it is compiled for, come from attention_fused.py.

Letters: B images, H heads of a side, M rows (queries), N columns (keys), e width of a head, G groups of heads that are
compared: H of one head where both sides have as many heads, else one of all.

An entry of a map is ``exp(score - normaliser)``, so all that is kept of a map are its rows' normalisers, found by an
online softmax (:func:`normaliser_kernel`). Entries of both sides are made anew, tile by tile, where they are needed:

- :func:`divergence_kernel` adds up ``D(t, p)`` along rows; t and p are means over the heads of a group.
- :func:`query_gradient_kernel` needs ``dD/dscore = own (slope - sum own slope)``: ``own`` is the head's entry, slope is
  ``dD/dp``. Its first walk along the row gives the sum, its second one the gradient. (One walk would do with the sums
  of ``own slope key`` and ``own key``: two large numbers whose difference is wanted, where the sides nearly agree.)
- :func:`key_gradient_kernel` walks along columns. Its programs own their keys, so nothing is added up by atomic
  operations, and every run gives the same gradients.

Scores, entries and sums are in float32. Products of float32 factors are made of three in TF32, which together are as
exact as float32, since a score's error is an entry's relative error; those of half-precision factors of one, as TF32
holds these exactly, and the small numbers of their gradients, which float16 would lose.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _rows_of(start, strides, image, head, row, rows, width: tl.constexpr, block: tl.constexpr):
    """Addresses of rows of (image, head, row, width), ``block`` wide, and which of their entries there are."""
    place = tl.arange(0, block)[None, :]
    address = start + image * strides[0] + head * strides[1] + row.to(tl.int64)[:, None] * strides[2] + place
    return address, (row < rows)[:, None] & (place < width)


@triton.jit
def _scores(side, image, head, row, rows, column, columns, shape: tl.constexpr):
    """A tile of a head's scores, minus infinity where a query may not look."""
    address, exists = _rows_of(side[0], side[3], image, head, row, rows, shape[2], shape[3])
    query = tl.load(address, mask=exists, other=0.0).to(tl.float32)
    address, exists = _rows_of(side[1], side[4], image, head, column, columns, shape[2], shape[3])
    key = tl.load(address, mask=exists, other=0.0).to(tl.float32)
    scale = 1 / tl.sqrt(tl.full((), shape[2], tl.float32))
    scores = tl.dot(query, tl.trans(key), input_precision=shape[5]) * scale
    seen = (row < rows)[:, None] & (column < columns)[None, :]
    if shape[4] == 1:
        hidden = tl.load(side[2] + image * columns + column, mask=column < columns, other=1)
        seen = seen & (hidden == 0)[None, :]
    elif shape[4] == 2:
        address = side[2] + (image * rows + row)[:, None] * columns + column[None, :]
        seen = seen & (tl.load(address, mask=seen, other=1) == 0)
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def _entries(side, normalisers, image, head, row, rows, column, columns, shape: tl.constexpr):
    """A tile of a head's map."""
    scores = _scores(side, image, head, row, rows, column, columns, shape)
    normaliser = tl.load(normalisers + (image * shape[0] + head) * rows + row, mask=row < rows, other=0.0)
    return tl.exp(scores - normaliser[:, None])


@triton.jit
def _mean_entries(side, normalisers, image, group, row, rows, column, columns, shape: tl.constexpr):
    """A tile of the mean of the maps of a group."""
    heads: tl.constexpr = shape[1]
    total = _entries(side, normalisers, image, group * heads, row, rows, column, columns, shape)
    for further in range(1, heads):
        total += _entries(side, normalisers, image, group * heads + further, row, rows, column, columns, shape)
    return total / heads


@triton.jit
def _own_and_slope(
    student, teacher, normalisers, image, head, row, rows, column, columns, tiny,
    student_shape: tl.constexpr, teacher_shape: tl.constexpr, kind: tl.constexpr,
):  # fmt: skip
    """A tile of a student head's map, and of dD / dp, p being the mean of the maps of its group."""
    group = head // student_shape[1]
    own = _entries(student, normalisers[0], image, head, row, rows, column, columns, student_shape)
    mean = own
    if student_shape[1] > 1:
        mean = _mean_entries(student, normalisers[0], image, group, row, rows, column, columns, student_shape)
    goal = _mean_entries(teacher, normalisers[1], image, group, row, rows, column, columns, teacher_shape)
    if kind == "kl":
        return own, -(goal / (mean + tiny) + tiny)
    return own, 2 * (mean - goal)


@triton.jit(do_not_specialize=["rows", "columns"])
def normaliser_kernel(
    side, normalisers, rows, columns,
    shape: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """(B, H, M): the logarithm of the sum of the exponentials of a row's scores; 0 where it sees nothing."""
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * tile + tl.arange(0, tile)
    largest = tl.full((tile,), float("-inf"), tl.float32)
    total = tl.zeros((tile,), tl.float32)
    for first in range(0, columns, tile):
        column = first + tl.arange(0, tile)
        scores = _scores(side, image, head, row, rows, column, columns, shape)
        new = tl.maximum(largest, tl.max(scores, axis=1))
        shift = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(scores - shift[:, None]), axis=1)
        largest = new
    value = tl.where(total > 0, largest + tl.log(total), 0.0)
    tl.store(normalisers + (image * shape[0] + head) * rows + row, value, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "columns"])
def divergence_kernel(
    student, teacher, normalisers, divergence, rows, columns, tiny,
    student_shape: tl.constexpr, teacher_shape: tl.constexpr, kind: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """(B, G, M): the sum of D(t, p) along each row."""
    group, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * tile + tl.arange(0, tile)
    total = tl.zeros((tile,), tl.float32)
    for first in range(0, columns, tile):
        column = first + tl.arange(0, tile)
        mean = _mean_entries(student, normalisers[0], image, group, row, rows, column, columns, student_shape)
        goal = _mean_entries(teacher, normalisers[1], image, group, row, rows, column, columns, teacher_shape)
        if kind == "kl":
            # As the function on maps has it: finite where either side is 0.
            total += tl.sum(goal * tl.log(goal / (mean + tiny) + tiny), axis=1)
        else:
            total += tl.sum((mean - goal) * (mean - goal), axis=1)
    tl.store(divergence + (image * tl.num_programs(1) + group) * rows + row, total, mask=row < rows)


@triton.jit
def _factor(upstream, image, head, row, rows, shape: tl.constexpr):
    """What a row's gradients are multiplied by: what arrives, the head's share of its group, the scale of scores."""
    groups = shape[0] // shape[1]
    value = tl.load(upstream + (image * groups + head // shape[1]) * rows + row, mask=row < rows, other=0.0)
    return value / (shape[1] * tl.sqrt(tl.full((), shape[2], tl.float32)))


@triton.jit(do_not_specialize=["rows", "columns"])
def query_gradient_kernel(
    student, teacher, normalisers, upstream, means, gradient, strides, rows, columns, tiny,
    student_shape: tl.constexpr, teacher_shape: tl.constexpr, kind: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """The gradient of the student's queries; and ``means`` (B, H, M), the sums that the keys' gradient needs too."""
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * tile + tl.arange(0, tile)
    mean = tl.zeros((tile,), tl.float32)
    for first in range(0, columns, tile):
        column = first + tl.arange(0, tile)
        own, slope = _own_and_slope(
            student, teacher, normalisers, image, head, row, rows, column, columns, tiny,
            student_shape, teacher_shape, kind,
        )  # fmt: skip
        mean += tl.sum(own * slope, axis=1)
    tl.store(means + (image * student_shape[0] + head) * rows + row, mean, mask=row < rows)
    width_block: tl.constexpr = student_shape[3]
    total = tl.zeros((tile, width_block), tl.float32)
    for first in range(0, columns, tile):
        column = first + tl.arange(0, tile)
        own, slope = _own_and_slope(
            student, teacher, normalisers, image, head, row, rows, column, columns, tiny,
            student_shape, teacher_shape, kind,
        )  # fmt: skip
        address, exists = _rows_of(
            student[1], student[4], image, head, column, columns, student_shape[2], student_shape[3]
        )
        key = tl.load(address, mask=exists, other=0.0).to(tl.float32)
        total += tl.dot(own * (slope - mean[:, None]), key, input_precision=student_shape[5])
    total = total * _factor(upstream, image, head, row, rows, student_shape)[:, None]
    address, exists = _rows_of(gradient, strides, image, head, row, rows, student_shape[2], student_shape[3])
    tl.store(address, total.to(gradient.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["rows", "columns"])
def key_gradient_kernel(
    student, teacher, normalisers, upstream, means, gradient, strides, rows, columns, tiny,
    student_shape: tl.constexpr, teacher_shape: tl.constexpr, kind: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """The gradient of the student's keys."""
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    column = tl.program_id(0) * tile + tl.arange(0, tile)
    width_block: tl.constexpr = student_shape[3]
    total = tl.zeros((tile, width_block), tl.float32)
    for first in range(0, rows, tile):
        row = first + tl.arange(0, tile)
        own, slope = _own_and_slope(
            student, teacher, normalisers, image, head, row, rows, column, columns, tiny,
            student_shape, teacher_shape, kind,
        )  # fmt: skip
        mean = tl.load(means + (image * student_shape[0] + head) * rows + row, mask=row < rows, other=0.0)
        address, exists = _rows_of(student[0], student[3], image, head, row, rows, student_shape[2], student_shape[3])
        query = tl.load(address, mask=exists, other=0.0).to(tl.float32)
        query = query * _factor(upstream, image, head, row, rows, student_shape)[:, None]
        change = own * (slope - mean[:, None])
        total += tl.dot(tl.trans(change), query, input_precision=student_shape[5])
    address, exists = _rows_of(gradient, strides, image, head, column, columns, student_shape[2], student_shape[3])
    tl.store(address, total.to(gradient.dtype.element_ty), mask=exists)
