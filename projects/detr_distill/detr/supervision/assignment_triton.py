"""The exact assignment as a Triton kernel; imports torch and Triton alone, so it can be loaded by path.

Letters: N problems, Q queries, T targets (padded), M pairs (padded).

One program solves one problem by shortest augmenting paths (Jonker and Volgenant 1987). It takes the smaller side's
members, *rows*, one by one; the larger side's, *columns*, are its lanes, and all that it knows of them is in
registers: a price, the row that has them, and during a search their distance. Costs are read as they are and added up
in float64, in which differences of float32 numbers are exact but for the last digits of very unequal ones.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES_A_WARP = 256
SMALLEST_BLOCK = 64
LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32
INFINITY = tl.constexpr(float("inf"))
AUCTION_STEPS = tl.constexpr(8)  # a row, after which those that are still free are searched for


@triton.jit
def _read_row(costs, row, row_stride, lane, column_stride, live):
    """A row's costs, and which of them are no finite numbers: these are replaced by a very large one."""
    read = tl.load(costs + row * row_stride + lane * column_stride, mask=live, other=0.0)
    sound = tl.abs(read) <= LARGEST
    return tl.where(sound, read, LARGEST).to(tl.float64), ~sound


@triton.jit
def _nearest(values, candidates, free, lane, block: tl.constexpr):
    """The least value and its column; of several, one that no row has, since that ends a search."""
    least = tl.min(tl.where(candidates, values, INFINITY), axis=0)
    order = tl.where(candidates & (values == least), tl.where(free, lane, lane + block), 2 * block)
    return least, tl.min(order, axis=0) % block


@triton.jit
def _at(values, lane, column):
    """What one column has."""
    return tl.sum(tl.where(lane == column, values, 0), axis=0)


@triton.jit
def _auction(costs, rows, row_stride, lane, column_stride, live, price, holder, flawed, block: tl.constexpr):
    """Each row takes its cheapest column and makes it as dear as its second cheapest; who had it looks anew.

    Leaves every row that has a column with its cheapest, which is what the search needs, and few rows without one. A
    column that no row has still has price 0.
    """
    row = 0
    while row < rows:  # not range(): Triton's interpreter takes no tensor there
        seeker = row
        steps = AUCTION_STEPS
        while (seeker >= 0) & (steps > 0):
            cost, bad = _read_row(costs, seeker, row_stride, lane, column_stride, live)
            flawed = flawed | bad
            value = cost - price
            first, column = _nearest(value, live, holder < 0, lane, block)
            second = tl.min(tl.where(live & (lane != column), value, INFINITY), axis=0)
            before = _at(holder, lane, column)
            takes = (before < 0) | (first < second)
            taken = takes & (lane == column)
            rise = tl.where(second < INFINITY, second - first, 0.0)  # there may be one column alone
            price = tl.where(taken, price - rise, price)
            holder = tl.where(taken, seeker, holder)
            seeker = tl.where(takes, before, -1)
            steps -= 1
        row += 1
    return price, holder, flawed


@triton.jit
def _search(costs, row, row_stride, lane, column_stride, live, price, holder, own, flawed, block: tl.constexpr):
    """The shortest path from a row without a column to a column without a row; all along it change their column.

    Args:
        own: of each column, what it costs the row that has it.
    """
    distance = tl.full((block,), INFINITY, tl.float64)
    previous = tl.full((block,), -1, tl.int32)
    far = live
    seeker, came, end = row, -1, -1
    travelled = tl.full((), 0.0, tl.float64)
    start = travelled
    left = block
    while (end < 0) & (left > 0):  # a free column is met long before: no fault may hold a device for ever
        left -= 1
        cost, bad = _read_row(costs, seeker, row_stride, lane, column_stride, live)
        flawed = flawed | bad
        through = cost - price + start
        shorter = far & (through < distance)
        distance = tl.where(shorter, through, distance)
        previous = tl.where(shorter, came, previous)
        travelled, came = _nearest(distance, far, holder < 0, lane, block)
        far = far & (lane != came)
        seeker = _at(holder, lane, came)
        start = travelled - _at(own - price, lane, came)
        end = tl.where(seeker < 0, came, -1)
    price = tl.where(live & ~far, price + distance - travelled, price)
    while end >= 0:
        before = _at(previous, lane, end)
        mover = tl.where(before < 0, row, _at(holder, lane, before))
        holder = tl.where(lane == end, mover, holder)
        end = tl.where(before < 0, -1, before)
    return price, holder, flawed


@triton.jit
def _write(partners, weights, weight, holder, lane, direct, rows, length, block: tl.constexpr):
    """Each member's partner and weight, zeros without one, for the columns, each lane's own, or for the rows.

    Args:
        direct: the columns are asked for. length: members of that side with their padding.
    """
    paired = holder >= 0
    place = tl.where(direct, lane, holder)
    partner = tl.where(direct, holder, lane)
    tl.store(partners + place, partner.to(tl.int64), mask=paired)
    tl.store(weights + place, weight + tl.zeros((block,), tl.float32), mask=paired)
    empty = tl.where(direct, ~paired, lane >= rows) & (lane < length)
    tl.store(partners + lane, tl.zeros((block,), tl.int64), mask=empty)
    tl.store(weights + lane, tl.zeros((block,), tl.float32), mask=empty)


@triton.jit(do_not_specialize=["images", "queries", "targets"])
def assignment_kernel(
    costs,
    counts,
    partners,
    weights,
    flags,
    images,
    queries,
    targets,
    has_counts: tl.constexpr,
    by_query: tl.constexpr,
    block: tl.constexpr,
):
    """Solves a problem and writes, for each query or for each target, its partner and 1, or 0 and 0 without one.

    The weight of a pair is NaN where a cost is not finite, and the problem's flag 1.
    """
    problem = tl.program_id(0)
    costs += problem.to(tl.int64) * queries * targets
    count = targets
    if has_counts:
        count = tl.minimum(tl.load(counts + problem % images), targets)
    lane = tl.arange(0, block)
    columns_are_queries = count < queries
    rows = tl.where(columns_are_queries, count, queries)
    live = lane < tl.where(columns_are_queries, queries, count)
    row_stride = tl.where(columns_are_queries, 1, targets)
    column_stride = tl.where(columns_are_queries, targets, 1)
    price = tl.zeros((block,), tl.float64)
    holder = tl.full((block,), -1, tl.int32)
    flawed = lane < 0
    price, holder, flawed = _auction(costs, rows, row_stride, lane, column_stride, live, price, holder, flawed, block)
    row = 0
    while row < rows:
        if tl.max(tl.where(holder == row, 1, 0), axis=0) == 0:
            place = costs + holder * row_stride + lane * column_stride
            own = tl.load(place, mask=holder >= 0, other=0.0)
            own = tl.where(tl.abs(own) <= LARGEST, own, LARGEST).to(tl.float64)
            price, holder, flawed = _search(
                costs, row, row_stride, lane, column_stride, live, price, holder, own, flawed, block
            )
        row += 1
    flaw = tl.max(tl.where(flawed, 1.0, 0.0), axis=0)
    tl.store(flags + problem, flaw)
    weight = tl.where(flaw > 0, float("nan"), 1.0)
    length = queries if by_query else targets
    start = problem.to(tl.int64) * length
    direct = columns_are_queries if by_query else ~columns_are_queries
    _write(partners + start, weights + start, weight, holder, lane, direct, rows, length, block)


def assign_with_triton(costs: Tensor, counts: Tensor | None, by_query: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The partners of least total cost, without a read of the device.

    Args:
        costs: (L, B, Q, T), read as float32. counts: (B,) integers, real targets of each image, on the same device;
            None: all T.
        by_query: whether the result has an entry for each query, M = Q, or for each target, M = T.

    Returns:
        Partners (L, B, M) long, and weights (L, B, M) float: 1 for a pair, 0 where there is none, and NaN where a cost
        of that layer and image is not finite, which the flags (L, B) say with 1 instead of 0.
    """
    layers, images, queries, targets = costs.shape
    costs = costs.detach().float().contiguous()
    length = queries if by_query else targets
    partners = torch.empty(layers, images, length, dtype=torch.long, device=costs.device)
    weights = torch.empty(layers, images, length, device=costs.device)
    flags = torch.empty(layers, images, device=costs.device)
    block = max(SMALLEST_BLOCK, triton.next_power_of_2(max(queries, targets)))
    kernel: Any = assignment_kernel
    if layers * images:
        with torch.cuda.device_of(costs):
            kernel[(layers * images,)](
                *(costs, flags if counts is None else counts, partners, weights, flags),
                *(images, queries, targets, counts is not None, by_query, block),
                num_warps=max(1, block // LANES_A_WARP),
            )
    return partners, weights, flags
