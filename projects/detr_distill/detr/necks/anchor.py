"""The neck of Anchor DETR (2109.07107)."""

from __future__ import annotations

import dataclasses

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ...errors import ConfigError
from ...registry import NECK_REGISTRY
from ...structures import ImageBatch, Memory
from .base import GROUPS
from .single_level import SingleLevelNeck


@NECK_REGISTRY.register()
class AnchorNeck(SingleLevelNeck):
    """One feature map through a 1x1 convolution and group normalisation [C]; arguments as in the base class."""

    @configurable
    def __init__(self, *, shapes: dict[str, ShapeSpec], in_features: list[str], width: int, temperature: float):
        if width % GROUPS:
            raise ConfigError(
                f"MODEL.DETR.HIDDEN_DIM is {width}; AnchorNeck normalises {GROUPS} groups of channels. "
                f"Choose a multiple of {GROUPS}, or SingleLevelNeck in MODEL.DETR.NECK.NAME."
            )
        super().__init__(shapes=shapes, in_features=in_features, width=width, temperature=temperature)
        nn.init.xavier_uniform_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)
        self.norm = nn.GroupNorm(GROUPS, width)

    def forward(self, features: dict[str, Tensor], images: ImageBatch) -> Memory:  # type: ignore[override]
        """As in the base class."""
        memory = super().forward(features, images)
        tokens = self.norm(memory.tokens.transpose(1, 2)).transpose(1, 2)
        return dataclasses.replace(memory, tokens=tokens)
