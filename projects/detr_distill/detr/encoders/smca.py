"""The encoder of multi-scale SMCA-DETR (2101.07448): most layers look at one level at a time."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from torch import Tensor

from ...config.keys import key
from ...config.ranges import NOT_NEGATIVE
from ...errors import ConfigError
from ...registry import ENCODER_REGISTRY
from ...structures import Memory
from ...structures.levels import split_levels
from .transformer import TransformerEncoder


@ENCODER_REGISTRY.register()
class SmcaEncoder(TransformerEncoder):
    """Intra-scale layers run on each level by itself, with the same parameters; multi-scale layers on all at once.

    The paper has five layers, of which the third is multi-scale [P].

    Attributes:
        multi_scale_layers: numbers of the layers that see all levels, from 0.
    """

    multi_scale_layers: tuple[int, ...] = key(
        (2,),
        "`SmcaEncoder`: numbers of the layers, from 0, that see all levels; the others see one level at a time",
        NOT_NEGATIVE,
        path="MODEL.DETR.SMCA.MULTI_SCALE_LAYERS",
    )

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        if any(layer >= self.num_layers for layer in self.multi_scale_layers):
            raise ConfigError(
                f"MODEL.DETR.SMCA.MULTI_SCALE_LAYERS is {list(self.multi_scale_layers)}, and "
                f"MODEL.DETR.ENCODER.NUM_LAYERS is {self.num_layers}. Name layers from 0 to {self.num_layers - 1}, or "
                "none."
            )

    def forward(self, memory: Memory) -> Tensor:
        """See the base class."""
        positions = split_levels(memory.position, memory.shapes)
        masks = split_levels(memory.key_mask, memory.shapes, dim=-1)
        tokens = memory.tokens
        for index, layer in enumerate(self.layers):
            if index in self.multi_scale_layers:
                tokens = layer(tokens, memory.position, memory.key_mask)
            else:
                levels = zip(split_levels(tokens, memory.shapes), positions, masks, strict=True)
                tokens = torch.cat([layer(*level) for level in levels], dim=1)
        return tokens
