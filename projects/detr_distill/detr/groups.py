"""Several query groups in one decoder pass: packed on the query axis, kept apart by a block mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..structures import DecoderOutput, Memory, QueryGroup
from .attention import GroupLayout


def decode_groups(
    decoder: nn.Module, memory: Memory, groups: list[QueryGroup], capture: frozenset[str]
) -> dict[str, DecoderOutput]:
    """One decoder pass over all groups.

    Args:
        decoder: see decoder_*.py. groups: with different names. capture: attention maps to keep.

    Returns:
        {group name: output}.
    """
    content = torch.cat([group.content for group in groups], dim=1)
    position = torch.cat([group.position for group in groups], dim=1)
    outputs = decoder(memory, content, position, group_layout(groups), capture)
    return {group.name: output for group, output in zip(groups, outputs, strict=True)}


def group_layout(groups: list[QueryGroup]) -> GroupLayout:
    """Who sees whom; the whole mask is made only where some group sees another."""
    sizes = tuple(group.content.shape[1] for group in groups)
    inner_masks = tuple(group.inner_mask for group in groups)
    names = {group.name for group in groups}
    isolated = not any(names.intersection(group.sees) for group in groups)
    return GroupLayout(sizes, inner_masks, None if isolated else _block_mask(groups))


def _block_mask(groups: list[QueryGroup]) -> Tensor:
    """(Q, Q) bool over the packed axis, True where a query may not look at another."""
    rows = []
    for group in groups:
        blocks = []
        for other in groups:
            shape = (group.content.shape[1], other.content.shape[1])
            hidden = other is not group and other.name not in group.sees
            block = torch.full(shape, hidden, dtype=torch.bool, device=group.content.device)
            blocks.append(block if other is not group or group.inner_mask is None else group.inner_mask)
        rows.append(torch.cat(blocks, dim=1))
    return torch.cat(rows, dim=0)
