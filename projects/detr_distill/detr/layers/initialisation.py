"""How the linear layers of a transformer start."""

from __future__ import annotations

from torch import nn

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
