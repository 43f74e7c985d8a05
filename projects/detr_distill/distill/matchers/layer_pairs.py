"""Which teacher layer a student layer learns from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...moved import renamed

__getattr__ = renamed(__name__, {"layer_map": "pair_layers"})


def pair_layers(student_layers: int, teacher_layers: int, rule: str) -> tuple[int, ...]:
    """For each student layer, the index of its teacher layer.

    Args:
        rule: "aligned": layer k learns from layer k; with unequal counts each student layer learns from the end of its
            share of the teacher's layers (6 to 3: layers 1, 3, 5), so the last always learns from the last [R].
            "last": all learn from the teacher's last layer.
    """
    if rule == "last":
        return (teacher_layers - 1,) * student_layers
    return tuple(math.ceil((layer + 1) * teacher_layers / student_layers) - 1 for layer in range(student_layers))


def take_layers(values: Tensor, layers: tuple[int, ...]) -> Tensor:
    """(Lt, ...) to (Ls, ...), without a copy where the layers already agree."""
    if layers == tuple(range(values.shape[0])):
        return values
    # Views of the layers: to index with a list would copy that list to the device in every step.
    return torch.stack([values[layer] for layer in layers])
