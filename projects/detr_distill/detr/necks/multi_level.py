"""Several levels, as in Deformable DETR and DINO.

Letters: B images, C width, L levels.
"""

from __future__ import annotations

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ...registry import NECK_REGISTRY
from ...structures import ImageBatch, Memory
from ..layers.position import image_positions
from .base import GROUPS, _check_features, _check_width, _convolution, _join_levels, neck_arguments, resize_mask


@NECK_REGISTRY.register()
class MultiLevelNeck(nn.Module):
    """Several feature maps, each through a convolution and group normalisation, with a learned vector a level.

    A backbone feature has a 1x1 convolution; each further level halves the one before with a 3x3 convolution of stride
    2, the first of them from the backbone's last feature. Positions are those of cell centres. Source: Deformable
    DETR (2010.04159) [P]; centres [C], which DINO's code does without.

    Args:
        shapes: channels of the backbone's outputs. in_features: names of those used, fine to coarse. width: C.
        num_levels: L, at least as many as features. temperature: of the sine position embedding. offset: added to the
            cells' numbers, which count from 1: -0.5 is a cell's centre.
    """

    @configurable
    def __init__(
        self,
        *,
        shapes: dict[str, ShapeSpec],
        in_features: list[str],
        width: int,
        temperature: float,
        num_levels: int,
        offset: float = -0.5,
    ):
        super().__init__()
        _check_features(in_features, shapes, num_levels, f"1 to MODEL.DETR.NUM_LEVELS = {num_levels}")
        _check_width(width, "MultiLevelNeck")
        self.in_features, self.num_levels, self.width = in_features, num_levels, width
        self.temperature, self.offset = temperature, offset
        channels = [shapes[name].channels for name in in_features]
        self.projections = nn.ModuleList(_project(count, width, 1) for count in channels)
        for level in range(len(channels), num_levels):
            self.projections.append(_project(channels[-1] if level == len(channels) else width, width, 3))
        self.level_embedding = nn.Parameter(torch.randn(num_levels, width))

    @classmethod
    def from_config(cls, cfg, shapes: dict[str, ShapeSpec]):
        node = cfg.MODEL.DETR
        return {**neck_arguments(cfg, shapes), "num_levels": node.NUM_LEVELS, "offset": node.NECK.POSITION_OFFSET}

    def forward(self, features: dict[str, Tensor], images: ImageBatch) -> Memory:
        """Backbone features, {name: (B, channels, height, width)}, to memory that is not encoded yet, with levels."""
        maps = self._maps(features)
        sizes = [(x.shape[-2], x.shape[-1]) for x in maps]
        masks = [resize_mask(images.mask, size) for size in sizes]
        positions = [
            image_positions(size, mask, self.width, x.device, self.temperature, self.offset) + embedding
            for x, size, mask, embedding in zip(maps, sizes, masks, self.level_embedding, strict=True)
        ]
        return _join_levels(maps, masks, torch.cat(positions, dim=1).to(maps[0].dtype))

    def _maps(self, features: dict[str, Tensor]) -> list[Tensor]:
        """L maps (B, C, height, width)."""
        inputs = [features[name] for name in self.in_features]
        maps = [project(x) for project, x in zip(self.projections, inputs, strict=False)]
        for level in range(len(inputs), self.num_levels):
            maps.append(self.projections[level](inputs[-1] if level == len(inputs) else maps[-1]))
        return maps


def _project(channels: int, width: int, kernel_size: int) -> nn.Sequential:
    """1x1, or 3x3 of stride 2, with Xavier weights and zero bias as published."""
    return nn.Sequential(_convolution(channels, width, kernel_size), nn.GroupNorm(GROUPS, width))
