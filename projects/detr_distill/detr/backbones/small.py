"""A small backbone for small images."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from ...config.keys import Key, declare
from ...config.ranges import COUNT

CHANNELS = Key(
    (16, 32, 64),
    "`build_conv_backbone`: channels of its stages, each at half the resolution of the one before",
    COUNT,
)
declare(__name__, {"MODEL.CONV_BACKBONE.CHANNELS": CHANNELS})


class ConvBackbone(Backbone):
    """A small backbone for small images: each stage halves the resolution with two 3x3 convolutions.

    Args:
        in_channels: of the image. channels: of each stage; stage n is called ``stage<n>``, from 1.
    """

    def __init__(self, in_channels: int, channels: list[int]):
        super().__init__()
        self.stages = nn.ModuleList()
        for width in channels:
            self.stages.append(nn.Sequential(*_convolution(in_channels, width, 2), *_convolution(width, width, 1)))
            in_channels = width
        self._out_features = [f"stage{n + 1}" for n in range(len(channels))]
        self._out_feature_channels = dict(zip(self._out_features, channels, strict=True))
        self._out_feature_strides = {name: 2 ** (n + 1) for n, name in enumerate(self._out_features)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, in_channels, height, width) to {name: (B, channels, height / stride, width / stride)}."""
        features = {}
        for name, stage in zip(self._out_features, self.stages, strict=True):
            features[name] = images = stage(images)
        return features


def _convolution(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


@BACKBONE_REGISTRY.register()
def build_conv_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ConvBackbone:
    """:class:`ConvBackbone` with the channels of ``MODEL.CONV_BACKBONE.CHANNELS``."""
    return ConvBackbone(input_shape.channels, list(cfg.MODEL.CONV_BACKBONE.CHANNELS))
