"""The neck of Anchor DETR (2109.07107)."""

from __future__ import annotations

import dataclasses
from typing import Any

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ...registry import NECK_REGISTRY
from ...structures import ImageBatch, Memory
from .base import NORM_GROUPS, check_width
from .single_level import SingleLevelNeck


@NECK_REGISTRY.register()
class AnchorNeck(SingleLevelNeck):
    """One feature map through a 1x1 convolution and group normalisation [C]; arguments as in the base class."""

    @configurable
    def __init__(self, *, shapes: dict[str, ShapeSpec], **settings: Any):
        super().__init__(shapes=shapes, **settings)
        check_width(self.width, "AnchorNeck")
        nn.init.xavier_uniform_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)
        self.norm = nn.GroupNorm(NORM_GROUPS, self.width)

    def forward(self, features: dict[str, Tensor], images: ImageBatch) -> Memory:
        """See the base class."""
        memory = super().forward(features, images)
        tokens = self.norm(memory.tokens.transpose(1, 2)).transpose(1, 2)
        return dataclasses.replace(memory, tokens=tokens)
