"""Several levels, as in Deformable DETR and DINO.

Letters: B images, C width, L levels.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ...config.keys import key
from ...config.ranges import FINITE
from ...registry import NECK_REGISTRY
from ...structures import ImageBatch, Memory
from ..keys import NUM_LEVELS, POSITION_TEMPERATURE
from ..layers.position import image_positions
from .base import NORM_GROUPS, Neck, check_features, check_width, join_levels, projection, resize_mask


@NECK_REGISTRY.register()
class MultiLevelNeck(Neck):
    """Several feature maps, each through a convolution and group normalisation, with a learned vector a level.

    A backbone feature has a 1x1 convolution; each extra level halves the one before with a 3x3 convolution of stride
    2, the first of them from the backbone's last feature. Positions are those of cell centres. Source: Deformable
    DETR (2010.04159) [P]; centres [C], which DINO's code does without.

    Args:
        shapes: of the backbone's outputs.

    Attributes:
        num_levels: L, at least as many as features. temperature: of the sine position embedding. offset: added to the
            cells' numbers, which count from 1: -0.5 is a cell's centre.
    """

    has_levels = True
    num_levels: int = NUM_LEVELS
    temperature: float = POSITION_TEMPERATURE
    offset: float = key(
        -0.5,
        "`MultiLevelNeck`: added to the cells' numbers, which count from 1, in the sine embedding; -0.5 is a cell's "
        "centre, DINO has 0",
        FINITE,
        path="MODEL.DETR.NECK.POSITION_OFFSET",
    )

    @configurable
    def __init__(self, *, shapes: dict[str, ShapeSpec], **settings: Any):
        super().__init__(**settings)
        check_features(self.in_features, shapes, self.num_levels, f"1 to MODEL.DETR.NUM_LEVELS = {self.num_levels}")
        check_width(self.width, "MultiLevelNeck")
        channels = [shapes[name].channels for name in self.in_features]
        self.projections = nn.ModuleList(_project(count, self.width, 1) for count in channels)
        for level in range(len(channels), self.num_levels):
            self.projections.append(_project(channels[-1] if level == len(channels) else self.width, self.width, 3))
        self.level_embedding = nn.Parameter(torch.randn(self.num_levels, self.width))

    def forward(self, features: dict[str, Tensor], images: ImageBatch) -> Memory:
        """See the base class."""
        maps = self._maps(features)
        sizes = [(x.shape[-2], x.shape[-1]) for x in maps]
        masks = [resize_mask(images.mask, size) for size in sizes]
        positions = [
            image_positions(size, mask, self.width, x.device, self.temperature, self.offset) + embedding
            for x, size, mask, embedding in zip(maps, sizes, masks, self.level_embedding, strict=True)
        ]
        return join_levels(maps, masks, torch.cat(positions, dim=1).to(maps[0].dtype))

    def _maps(self, features: dict[str, Tensor]) -> list[Tensor]:
        """L maps (B, C, height, width)."""
        inputs = [features[name] for name in self.in_features]
        maps = [project(x) for project, x in zip(self.projections, inputs, strict=False)]
        for level in range(len(inputs), self.num_levels):
            maps.append(self.projections[level](inputs[-1] if level == len(inputs) else maps[-1]))
        return maps


def _project(channels: int, width: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(projection(channels, width, kernel_size), nn.GroupNorm(NORM_GROUPS, width))
