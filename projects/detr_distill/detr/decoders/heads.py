"""What turns a decoder's hidden states into class logits and boxes.

Letters: L decoder layers, B images, Q queries, C width.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from ..layers.feed_forward import PerceptronHead

START_LOGIT = -math.log((1 - 0.01) / 0.01)  # with a sigmoid every class starts at probability 0.01 [C]


class DetectionHeads(nn.Module):
    """Class logits and box head, shared by all decoder layers or of one of them.

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
            nn.init.constant_(self.class_head.bias, START_LOGIT)
        if zero_boxes:
            self.box_head.clear_last()

    def start_size(self, logit: float) -> None:
        """The width and height that a box starts with, as a logit."""
        nn.init.constant_(self.box_head.layers[-1].bias[2:], logit)

    def forward(self, hidden: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Class logits (L, B, Q, K) and boxes (L, B, Q, 4), float32, from hidden states (L, B, Q, C).

        Args:
            start: logits (..., 4) that boxes are counted from, float32; None: boxes are absolute.
        """
        boxes = self.box_head(hidden).float()
        if start is not None:
            boxes = boxes + start
        return self.class_head(hidden), boxes.sigmoid()


class AdaMixerHeads(nn.Module):
    """A stage's class logits and its box's (dx, dy, dz, dr), each after one hidden layer with normalisation [C].

    Boxes start where they are [C].

    Args:
        width, num_classes, activation: as in :class:`DetectionHeads`.
    """

    def __init__(self, width: int, num_classes: int, activation: str):
        super().__init__()
        self.class_head, class_output = _tower(width, num_classes + (activation == "softmax"))
        self.box_head, box_output = _tower(width, 4)
        if activation == "sigmoid":
            nn.init.constant_(class_output.bias, START_LOGIT)
        nn.init.zeros_(box_output.weight)
        nn.init.zeros_(box_output.bias)


def _tower(width: int, out_width: int) -> tuple[nn.Sequential, nn.Linear]:
    """Two linear layers, and the second of them."""
    hidden, output = nn.Linear(width, width), nn.Linear(width, out_width)
    for linear in (hidden, output):
        nn.init.xavier_uniform_(linear.weight)
    return nn.Sequential(hidden, nn.LayerNorm(width), nn.ReLU(), output), output
