"""What turns a decoder's hidden states into class logits and boxes.

Letters: C width.
"""

from __future__ import annotations

import math

from torch import nn

from ..layers.feed_forward import PerceptronHead


class DetectionHeads(nn.Module):
    """Class logits and box head, shared by all decoder layers.

    Args:
        width: C. num_classes: without "no object". activation: "softmax" adds the "no object" column; "sigmoid" starts
            every class at probability 0.01 [C].
        zero_boxes: start the box head's last layer at zero, so that a box starts at its reference point [C].
    """

    def __init__(self, width: int, num_classes: int, activation: str, zero_boxes: bool):
        super().__init__()
        self.activation = activation
        self.class_head = nn.Linear(width, num_classes + (activation == "softmax"))
        self.box_head = PerceptronHead(width, width, 4, num_layers=3)
        if activation == "sigmoid":
            nn.init.constant_(self.class_head.bias, -math.log((1 - 0.01) / 0.01))
        if zero_boxes:
            nn.init.zeros_(self.box_head.layers[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.box_head.layers[-1].bias)  # type: ignore[arg-type]


class AdaMixerHeads(nn.Module):
    """A stage's class logits and its box's (dx, dy, dz, dr), each after one hidden layer with normalisation [C].

    Args:
        width: C. num_classes: without "no object". activation: "softmax" adds the "no object" column; "sigmoid" starts
            every class at probability 0.01 [C]. Boxes start where they are [C].
    """

    def __init__(self, width: int, num_classes: int, activation: str):
        super().__init__()
        self.class_head = _tower(width, num_classes + (activation == "softmax"))
        self.box_head = _tower(width, 4)
        if activation == "sigmoid":
            nn.init.constant_(self.class_head[-1].bias, -math.log((1 - 0.01) / 0.01))  # type: ignore[arg-type]
        nn.init.zeros_(self.box_head[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.box_head[-1].bias)  # type: ignore[arg-type]


def _tower(width: int, out_width: int) -> nn.Sequential:
    tower = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, out_width))
    for linear in (tower[0], tower[-1]):
        nn.init.xavier_uniform_(linear.weight)  # type: ignore[arg-type]
    return tower
