"""The encoder of multi-scale SMCA-DETR (2101.07448): most layers look at one level at a time."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor

from ...errors import ConfigError
from ...registry import ENCODER_REGISTRY
from ...structures import Memory
from .transformer import TransformerEncoder


@ENCODER_REGISTRY.register()
class SmcaEncoder(TransformerEncoder):
    """Intra-scale layers run on each level by itself, with the same parameters; multi-scale layers on all at once.

    The paper has five layers, of which the third is multi-scale [P].

    Args:
        multi_scale_layers: numbers of the layers that see all levels, from 0. Others as in :class:`TransformerEncoder`.
    """

    @configurable
    def __init__(self, *, multi_scale_layers: list[int], **arguments):
        super().__init__(**arguments)
        unknown = [layer for layer in multi_scale_layers if not 0 <= layer < len(self.layers)]
        if unknown:
            raise ConfigError(
                f"MODEL.DETR.SMCA.MULTI_SCALE_LAYERS is {list(multi_scale_layers)}, and MODEL.DETR.ENCODER.NUM_LAYERS "
                f"is {len(self.layers)}. Name layers from 0 to {len(self.layers) - 1}, or none."
            )
        self.multi_scale_layers = frozenset(multi_scale_layers)

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "multi_scale_layers": list(cfg.MODEL.DETR.SMCA.MULTI_SCALE_LAYERS)}

    def forward(self, memory: Memory) -> Tensor:
        """As :class:`TransformerEncoder`."""
        sizes = [height * width for height, width in memory.shapes]
        positions = memory.position.split(sizes, dim=1)
        masks = [None] * len(sizes) if memory.key_mask is None else memory.key_mask.split(sizes, dim=-1)
        tokens = memory.tokens
        for index, layer in enumerate(self.layers):
            if index in self.multi_scale_layers:
                tokens = layer(tokens, memory.position, memory.key_mask)
            else:
                levels = zip(tokens.split(sizes, dim=1), positions, masks, strict=True)
                tokens = torch.cat([layer(*level) for level in levels], dim=1)
        return tokens
