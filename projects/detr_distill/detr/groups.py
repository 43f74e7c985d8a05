"""Several query groups in one decoder pass: packed on the query axis, kept apart by a block mask."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..structures import DecoderOutput, Memory, QueryGroup


def pack_groups(groups: list[QueryGroup]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Joins groups on the query axis.

    Returns:
        content (B, Q, C), position (B, Q, P), and the mask (Q, Q) bool, True where a query may not look at another;
        None when every query sees every other.
    """
    content = torch.cat([group.content for group in groups], dim=1)
    position = torch.cat([group.position for group in groups], dim=1)
    return content, position, _block_mask(groups)


def _block_mask(groups: list[QueryGroup]) -> Tensor | None:
    if len(groups) == 1:
        return groups[0].inner_mask
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


def unpack_output(output: DecoderOutput, groups: list[QueryGroup]) -> dict[str, DecoderOutput]:
    """Splits a decoder's output by group; a group's self-attention map keeps the group's own columns."""
    result, start = {}, 0
    for group in groups:
        rows = slice(start, start + group.content.shape[1])
        start = rows.stop
        self_attention, cross_attention = output.self_attention, output.cross_attention
        result[group.name] = replace(
            output,
            logits=output.logits[:, :, rows],
            boxes=output.boxes[:, :, rows],
            hidden=output.hidden[:, :, rows],
            self_attention=None if self_attention is None else self_attention[..., rows, rows],
            cross_attention=None if cross_attention is None else cross_attention[..., rows, :],
        )
    return result


def decode_groups(decoder, memory: Memory, groups: list[QueryGroup], capture: frozenset[str]):
    """One decoder pass over all groups.

    Returns:
        {group name: DecoderOutput}.
    """
    content, position, mask = pack_groups(groups)
    return unpack_output(decoder(memory, content, position, mask, capture), groups)
