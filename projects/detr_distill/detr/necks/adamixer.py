"""The levels of AdaMixer, which has no encoder.

Letters: B images, C width, L levels.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ...errors import ConfigError
from ...registry import NECK_REGISTRY
from ...structures import ImageBatch, Memory
from ...structures.levels import visible_axes
from ...structures.transfer import constant
from .base import NORM_GROUPS, Neck, check_features, check_width, join_levels, projection, resize_mask


@NECK_REGISTRY.register()
class AdaMixerNeck(Neck):
    """Several feature maps, each through a 1x1 convolution, and one group normalisation for all of them.

    Positions are zero: there is no encoder to read them. ``valid_ratios`` know the images' sizes to the pixel, not to
    whole cells [C]. Source: AdaMixer (2203.16507) [P]; norm [C].

    Args:
        shapes: of the backbone's outputs.

    Attributes:
        num_levels: one a feature.
    """

    has_levels = True

    @configurable
    def __init__(self, *, shapes: dict[str, ShapeSpec], **settings: Any):
        super().__init__(**settings)
        check_features(self.in_features, shapes, len(shapes), "one or more")
        check_width(self.width, "AdaMixerNeck")
        strides = [shapes[name].stride for name in self.in_features]
        if any(2 * fine != coarse for fine, coarse in itertools.pairwise(strides)):
            raise ConfigError(
                f"MODEL.DETR.IN_FEATURES is {list(self.in_features)}, of strides {strides}; AdaMixer wants each level "
                "at twice the stride of the one before. Name neighbouring features, fine to coarse."
            )
        self.num_levels = len(self.in_features)
        self.strides = strides
        channels = [shapes[name].channels for name in self.in_features]
        self.projections = nn.ModuleList(projection(count, self.width, 1) for count in channels)
        self.norm = nn.GroupNorm(NORM_GROUPS, self.width)

    def forward(self, features: dict[str, Tensor], images: ImageBatch) -> Memory:
        """See the base class."""
        inputs = (features[name] for name in self.in_features)
        maps = [self.norm(project(x)) for project, x in zip(self.projections, inputs, strict=True)]
        masks = [resize_mask(images.mask, (x.shape[-2], x.shape[-1])) for x in maps]
        memory = join_levels(maps, masks, maps[0].new_zeros(1, 1, 1))
        assert memory.level_sizes is not None
        level_sizes = memory.level_sizes * constant(tuple(self.strides), memory.tokens.device).unsqueeze(1)
        return dataclasses.replace(memory, valid_ratios=_image_sizes(images).unsqueeze(1) / level_sizes)


def _image_sizes(images: ImageBatch) -> Tensor:
    """(B, 2): width and height of each image without padding, in pixels; B = 1 where none is padded."""
    if images.mask is None:
        height, width = images.tensor.shape[-2:]
        return constant(((width, height),), images.tensor.device)
    return torch.stack([axis.sum(1) for axis in visible_axes((~images.mask).float())], dim=-1)
