"""The levels of a memory: which tokens are whose, tokens as maps and back, and where the cells lie.

Letters: B images, C width, S memory tokens, L levels; X columns and Y rows of cells of a level.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

from .constants import cell_middles
from .tensors import Memory

Shapes = list[tuple[int, int]]  # (height, width) of each level


@overload
def split_levels(values: Tensor, shapes: Shapes, dim: int = 1) -> tuple[Tensor, ...]: ...
@overload
def split_levels(values: Tensor | None, shapes: Shapes, dim: int = 1) -> tuple[Tensor | None, ...]: ...
def split_levels(values: Tensor | None, shapes: Shapes, dim: int = 1) -> tuple[Tensor | None, ...]:
    """Each level's part of tokens (B, S, ...), or of what else has S entries along ``dim``; None for None."""
    return (None,) * len(shapes) if values is None else values.split(level_lengths(shapes), dim=dim)


def level_lengths(shapes: Shapes) -> list[int]:
    """Cells of each level."""
    return [height * width for height, width in shapes]


def to_map(tokens: Tensor, shape: tuple[int, int]) -> Tensor:
    """The tokens of one level (B, Y * X, C) as a map (B, C, Y, X), which shares their storage."""
    return tokens.transpose(1, 2).unflatten(-1, shape)


def to_tokens(values: Tensor) -> Tensor:
    """The inverse of :func:`to_map`."""
    return values.flatten(2).transpose(1, 2)


def to_maps(memory: Memory) -> dict[str, Tensor]:
    """The levels of a memory as maps ``level0``, ``level1``, ... (B, C, Y, X), which share its storage."""
    levels = zip(split_levels(memory.tokens, memory.shapes), memory.shapes, strict=True)
    return {f"level{index}": to_map(*level) for index, level in enumerate(levels)}


def from_maps(maps: Mapping[str, Tensor]) -> Tensor:
    """The maps of all levels, in order, as the tokens (B, S, C) of a memory."""
    return join_maps(maps.values())


def join_maps(maps: Iterable[Tensor]) -> Tensor:
    """Maps (B, C, Y, X) of all levels as tokens (B, S, C), which share the storage of a single one."""
    tokens = [to_tokens(values) for values in maps]
    return tokens[0] if len(tokens) == 1 else torch.cat(tokens, dim=1)


def memory_maps(memory: Memory | None) -> dict[str, Tensor]:
    """The levels of an encoder's output as maps ``memory0``, ``memory1``, ...; none without one."""
    return {} if memory is None else {name.replace("level", "memory"): x for name, x in to_maps(memory).items()}


def resize_tokens(values: Tensor, old: Shapes, new: Shapes) -> Tensor:
    """Tokens (B, S, C) over some grids as tokens over others, bilinearly, each from the old grid nearest in size."""
    maps = [to_map(*level) for level in zip(split_levels(values, old), old, strict=True)]
    return join_maps(F.interpolate(maps[_nearest(shape, old)], shape, mode="bilinear", antialias=True) for shape in new)


def _nearest(shape: tuple[int, int], shapes: Shapes) -> int:
    return min(range(len(shapes)), key=lambda index: abs(math.log(math.prod(shapes[index]) / math.prod(shape))))


def visible_cells(
    mask: Tensor | None, shape: tuple[int, int], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(B, Y, X): 1 or True on the cells of a level that are image, from the padding mask; B = 1 without padding."""
    return torch.ones(1, *shape, device=device, dtype=dtype) if mask is None else (~mask).to(dtype)


def visible_levels(memory: Memory, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """:func:`visible_cells` of each level."""
    masks = zip(split_levels(memory.mask, memory.shapes), memory.shapes, strict=True)
    grids = ((None if mask is None else mask.unflatten(1, shape), shape) for mask, shape in masks)
    return [visible_cells(mask, shape, memory.tokens.device, dtype) for mask, shape in grids]


def visible_axes(visible: Tensor) -> tuple[Tensor, Tensor]:
    """The columns (B, X) and the rows (B, Y) of a level that are image: padding is at the right and below."""
    return visible[:, 0], visible[:, :, 0]


def axis_positions(memory: Memory) -> list[tuple[Tensor, Tensor]]:
    """For each level the centres of its cells in [0, 1] over the image without padding [C].

    Returns:
        x of the columns (B, X) and y of the rows (B, Y); B = 1 without padding. Those of the padding are the last
        visible cell's.
    """
    counted = ([axis.cumsum(1) for axis in visible_axes(visible)] for visible in visible_levels(memory))
    return [((x - 0.5) / x[:, -1:], (y - 0.5) / y[:, -1:]) for x, y in counted]


def image_extents(memory: Memory) -> Tensor:
    """(B, L, 2): width and height of the image without padding in cells of each level; B = 1 without padding."""
    assert memory.valid_ratios is not None and memory.level_sizes is not None
    return memory.valid_ratios * memory.level_sizes


def cell_centres(memory: Memory) -> Tensor:
    """(B, S, 2): the centre (x, y) of every cell in [0, 1] over its image without padding; beyond 1 in the padding."""
    extents = image_extents(memory)
    centres = []
    for level, (height, width) in enumerate(memory.shapes):
        rows, columns = cell_middles(height, extents.device), cell_middles(width, extents.device)
        grid = torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width)], dim=-1).flatten(0, 1)
        centres.append(grid / extents[:, level].unsqueeze(1))
    return torch.cat(centres, dim=1)
