"""One level, as in DETR.

Letters: B images, C width.
"""

from __future__ import annotations

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ...registry import NECK_REGISTRY
from ...structures import ImageBatch, Memory
from ..layers.position import image_positions
from .base import _check_features, neck_arguments, resize_mask


@NECK_REGISTRY.register()
class SingleLevelNeck(nn.Conv2d):
    """One feature map through a 1x1 convolution, as in DETR (2005.12872) [P].

    It *is* the convolution, so that its parameters are called ``input_projection.weight`` and ``.bias`` in a detector.

    Args:
        shapes: channels of the backbone's outputs. in_features: the name of one of them. width: C.
        temperature: of the sine position embedding.

    Attributes:
        num_levels: levels that deformable attention can sample; 0: their extent is not computed.
    """

    num_levels = 0

    @configurable
    def __init__(self, *, shapes: dict[str, ShapeSpec], in_features: list[str], width: int, temperature: float):
        _check_features(in_features, shapes, 1, "one")
        super().__init__(shapes[in_features[0]].channels, width, kernel_size=1)
        self.in_feature = in_features[0]
        self.temperature = temperature

    @classmethod
    def from_config(cls, cfg, shapes: dict[str, ShapeSpec]):
        return neck_arguments(cfg, shapes)

    def forward(self, features: dict[str, Tensor], images: ImageBatch) -> Memory:  # type: ignore[override]
        """Backbone features, {name: (B, channels, height, width)}, to memory that is not encoded yet."""
        projected = super().forward(features[self.in_feature])
        size = (projected.shape[-2], projected.shape[-1])
        mask = resize_mask(images.mask, size)
        position = image_positions(size, mask, self.out_channels, projected.device, self.temperature)
        flat_mask = None if mask is None else mask.flatten(1)
        return Memory(projected.flatten(2).transpose(1, 2), position.to(projected.dtype), flat_mask, [size])
