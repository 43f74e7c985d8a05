"""The levels of a memory: their cells, and their tokens as maps.

Letters: B images, C width, S memory tokens, L levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .tensors import Memory


def to_maps(memory: Memory) -> dict[str, Tensor]:
    """The levels of a memory as maps ``level0``, ``level1``, ... (B, C, height, width), which share its storage."""
    levels = memory.tokens.split([height * width for height, width in memory.shapes], dim=1)
    return {
        f"level{index}": tokens.transpose(1, 2).unflatten(-1, shape)
        for index, (tokens, shape) in enumerate(zip(levels, memory.shapes, strict=True))
    }


def from_maps(maps: dict[str, Tensor]) -> Tensor:
    """The maps of all levels, in order, as the tokens (B, S, C) of a memory."""
    tokens = [values.flatten(2).transpose(1, 2) for values in maps.values()]
    return tokens[0] if len(tokens) == 1 else torch.cat(tokens, dim=1)


def memory_maps(memory: Memory | None) -> dict[str, Tensor]:
    """The levels of an encoder's output as maps ``memory0``, ``memory1``, ...; none without one."""
    return {} if memory is None else {name.replace("level", "memory"): x for name, x in to_maps(memory).items()}


def cell_centres(memory: Memory) -> Tensor:
    """(B, S, 2): the centre (x, y) of every cell in [0, 1] over its image without padding; beyond 1 in the padding."""
    assert memory.valid_ratios is not None and memory.level_sizes is not None
    centres = []
    for level, (height, width) in enumerate(memory.shapes):
        rows = torch.arange(height, device=memory.valid_ratios.device) + 0.5
        columns = torch.arange(width, device=memory.valid_ratios.device) + 0.5
        grid = torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width)], dim=-1).flatten(0, 1)
        extent = memory.valid_ratios[:, level] * memory.level_sizes[level]
        centres.append(grid / extent.unsqueeze(1))
    return torch.cat(centres, dim=1)
