"""The levels of AdaMixer, which has no encoder.

Letters: B images, C width, L levels.
"""

from __future__ import annotations

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ...errors import ConfigError
from ...registry import NECK_REGISTRY
from ...structures import ImageBatch, Memory
from .base import GROUPS, _check_features, _check_width, _convolution, _join_levels, neck_arguments, resize_mask


@NECK_REGISTRY.register()
class AdaMixerNeck(nn.Module):
    """Several feature maps, each through a 1x1 convolution, and one group normalisation for all of them.

    Positions are zero: there is no encoder to read them. Source: AdaMixer (2203.16507) [P]; norm [C].

    Args:
        shapes: channels of the backbone's outputs. in_features: names of those used, fine to coarse. width: C.

    Attributes:
        num_levels: one a feature.
    """

    @configurable
    def __init__(self, *, shapes: dict[str, ShapeSpec], in_features: list[str], width: int):
        super().__init__()
        _check_features(in_features, shapes, len(shapes), "one or more")
        _check_width(width, "AdaMixerNeck")
        strides = [shapes[name].stride for name in in_features]
        if any(2 * fine != coarse for fine, coarse in zip(strides[:-1], strides[1:], strict=True)):  # type: ignore[operator]
            raise ConfigError(
                f"MODEL.DETR.IN_FEATURES is {list(in_features)}, of strides {strides}; AdaMixer wants each level at "
                "twice the stride of the one before. Name neighbouring features, fine to coarse."
            )
        self.in_features, self.num_levels = in_features, len(in_features)
        channels = [shapes[name].channels for name in in_features]
        self.projections = nn.ModuleList(_convolution(count, width, 1) for count in channels)
        self.norm = nn.GroupNorm(GROUPS, width)

    @classmethod
    def from_config(cls, cfg, shapes: dict[str, ShapeSpec]):
        arguments = neck_arguments(cfg, shapes)
        return {name: arguments[name] for name in ("shapes", "in_features", "width")}

    def forward(self, features: dict[str, Tensor], images: ImageBatch) -> Memory:
        """Backbone features, {name: (B, channels, height, width)}, to memory that is not encoded."""
        inputs = (features[name] for name in self.in_features)
        maps = [self.norm(project(x)) for project, x in zip(self.projections, inputs, strict=True)]
        masks = [resize_mask(images.mask, (x.shape[-2], x.shape[-1])) for x in maps]
        return _join_levels(maps, masks, maps[0].new_zeros(1, 1, 1))
