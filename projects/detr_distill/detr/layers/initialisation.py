"""How the linear layers of a transformer start."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import MultiHeadAttention


def initialise_linear(module: nn.Module) -> None:
    """Xavier's rule on every linear layer but those of MultiHeadAttention, which set themselves. Source: DETR [C]."""
    for child in module.children():
        if isinstance(child, MultiHeadAttention):
            continue
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
        else:
            initialise_linear(child)


def deal_pairs(width: int, num_heads: int) -> Tensor:
    """(width, width): the permutation that deals the pairs of a sine embedding out to the heads in turn.

    So each head sees rows and columns, coarse and fine. As the start of both projections of positions it lets attention
    start where the positions agree [R].
    """
    pairs = torch.arange(width).view(-1, 2)
    dealt = torch.cat([pairs[head::num_heads].flatten() for head in range(num_heads)])
    return torch.eye(width)[dealt]
