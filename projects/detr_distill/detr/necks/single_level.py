"""One level, as in DETR.

Letters: B images, C width.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ...registry import NECK_REGISTRY
from ...structures import ImageBatch, Memory
from ...structures.levels import to_tokens
from ..keys import POSITION_TEMPERATURE
from ..layers.position import image_positions
from .base import Neck, check_features, resize_mask


@NECK_REGISTRY.register()
class SingleLevelNeck(Neck):
    """One feature map through a 1x1 convolution, as in DETR (2005.12872) [P].

    It holds the convolution's parameters itself, which are called ``input_projection.weight`` and ``.bias`` in a
    detector.

    Args:
        shapes: of the backbone's outputs.

    Attributes:
        temperature: of the sine position embedding.
    """

    has_levels = False
    temperature: float = POSITION_TEMPERATURE

    @configurable
    def __init__(self, *, shapes: dict[str, ShapeSpec], **settings: Any):
        super().__init__(**settings)
        check_features(self.in_features, shapes, 1, "one")
        convolution = nn.Conv2d(shapes[self.in_features[0]].channels, self.width, kernel_size=1)
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, features: dict[str, Tensor], images: ImageBatch) -> Memory:
        """See the base class."""
        projected = F.conv2d(features[self.in_features[0]], self.weight, self.bias)
        size = (projected.shape[-2], projected.shape[-1])
        mask = resize_mask(images.mask, size)
        position = image_positions(size, mask, self.width, projected.device, self.temperature)
        flat_mask = None if mask is None else mask.flatten(1)
        return Memory(to_tokens(projected), position.to(projected.dtype), flat_mask, [size])
