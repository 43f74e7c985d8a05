"""Several query groups in one decoder pass: packed on the query axis, kept apart in self-attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ..structures import DecoderOutput, Memory, QueryGroup
from .decoders.base import Decoder
from .layers.attention import GroupLayout


def decode_groups(
    decoder: Decoder, memory: Memory, groups: list[QueryGroup], capture: frozenset[str]
) -> dict[str, DecoderOutput]:
    """One decoder pass over all groups.

    Args:
        groups: with different names. capture: attention maps to keep.

    Returns:
        {group name: output}.
    """
    content = torch.cat([group.content for group in groups], dim=1)
    position = torch.cat([group.position for group in groups], dim=1)
    outputs = decoder(memory, content, position, group_layout(groups), capture)
    return {group.name: output for group, output in zip(groups, outputs, strict=True)}


def group_layout(groups: list[QueryGroup]) -> GroupLayout:
    """Who sees whom, by number. A name in ``sees`` that is not decoded in this pass has no effect."""
    numbers = {group.name: number for number, group in enumerate(groups)}
    return GroupLayout(
        sizes=tuple(group.content.shape[1] for group in groups),
        inner_masks=tuple(_inner_mask(group) for group in groups),
        seen=tuple(tuple(numbers[name] for name in group.sees if name in numbers) for group in groups),
    )


def _inner_mask(group: QueryGroup) -> Tensor | None:
    """What a group's queries may not look at among themselves: its mask, and the padding but for a query itself."""
    if group.padding is None:
        return group.inner_mask
    # A row in which nothing is visible would have no softmax.
    itself = torch.eye(group.padding.shape[1], dtype=torch.bool, device=group.padding.device)
    hidden = group.padding[:, None, None, :] & ~itself
    return hidden if group.inner_mask is None else hidden | group.inner_mask
