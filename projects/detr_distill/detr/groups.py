"""Several query groups in one decoder pass: packed on the query axis, kept apart in self-attention."""

from __future__ import annotations

import torch
from torch import nn

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
    """Who sees whom, by place. A name in ``sees`` that is not decoded in this pass has no effect."""
    places = {group.name: place for place, group in enumerate(groups)}
    return GroupLayout(
        sizes=tuple(group.content.shape[1] for group in groups),
        inner_masks=tuple(group.inner_mask for group in groups),
        seen=tuple(tuple(places[name] for name in group.sees if name in places) for group in groups),
    )
