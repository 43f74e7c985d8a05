"""What all transformer decoders share: heads, class prior, stacking of the layers' outputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..structures import CROSS_ATTENTION, SELF_ATTENTION, DecoderOutput, Memory
from .attention import FeedForward, PerceptronHead


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward with residual sums and post-norm.

    A subclass sets ``self.self_attention`` and ``self.cross_attention`` and gives the two attention steps.
    """

    def __init__(self, width: int, ffn_width: int, dropout: float):
        super().__init__()
        self.self_attention_norm = nn.LayerNorm(width)
        self.cross_attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, ffn_width, dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def finish(self, content: Tensor, attended: Tensor) -> Tensor:
        """Joins the cross-attention's output and runs the feed-forward step."""
        content = self.cross_attention_norm(content + self.dropout(attended))
        return self.feed_forward_norm(content + self.dropout(self.feed_forward(content)))


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


class DecoderRecord:
    """Collects what each layer gives, and stacks it."""

    def __init__(self, capture: frozenset[str]):
        self.capture = capture
        self.hidden: list[Tensor] = []
        self.maps: dict[str, list[Tensor | None]] = {SELF_ATTENTION: [], CROSS_ATTENTION: []}

    def add(self, hidden: Tensor, self_attention: Tensor | None, cross_attention: Tensor | None) -> None:
        self.hidden.append(hidden)
        self.maps[SELF_ATTENTION].append(self_attention)
        self.maps[CROSS_ATTENTION].append(cross_attention)

    def output(self, hidden: Tensor, logits: Tensor, boxes: Tensor, activation: str) -> DecoderOutput:
        stacked = {name: torch.stack(self.maps[name]) if name in self.capture else None for name in self.maps}  # type: ignore[arg-type]
        return DecoderOutput(
            logits,
            boxes,
            hidden,
            activation,
            self_attention=stacked[SELF_ATTENTION],
            cross_attention=stacked[CROSS_ATTENTION],
        )


def key_mask(memory: Memory) -> Tensor | None:
    """(B, 1, 1, S): the padding mask in the shape that attention takes."""
    return None if memory.mask is None else memory.mask[:, None, None, :]


def decoder_arguments(cfg) -> dict:
    """Constructor arguments that every decoder takes from the configuration."""
    node = cfg.MODEL.DETR
    return {
        "num_layers": node.DECODER.NUM_LAYERS,
        "width": node.HIDDEN_DIM,
        "num_heads": node.NUM_HEADS,
        "ffn_width": node.FFN_DIM,
        "dropout": node.DROPOUT,
        "num_classes": node.NUM_CLASSES,
        "activation": "softmax" if node.LOSS.CLASSIFICATION == "softmax" else "sigmoid",
    }
