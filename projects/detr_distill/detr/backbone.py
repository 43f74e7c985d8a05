"""Backbones: detectron2's ResNets as the DETR family uses them, a small one for small images; and how one is built."""

from __future__ import annotations

import math

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone, build_resnet_backbone
from torch import Tensor, nn

from ..errors import ConfigError
from ..registry import look_up


def build_backbone(cfg) -> Backbone:
    """The backbone of ``MODEL.BACKBONE.NAME``, as detectron2's function of this name builds it.

    Raises:
        ConfigError: the name is unknown; lists those that are known.
    """
    builder = look_up(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    return builder(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))


def padding_multiple(wanted: int, backbone: Backbone) -> int:
    """Images are padded to a multiple of this, in pixels: of what the configuration wants and the backbone needs."""
    return math.lcm(wanted, max(backbone.size_divisibility, 1))


@BACKBONE_REGISTRY.register()
def build_detr_resnet_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """detectron2's ResNet; ``MODEL.RESNETS.RES5_DILATION: 2`` gives DETR's "DC5" backbone (2005.12872) [P].

    detectron2's own dilation also dilates the 3x3 convolution that carries the last stage's stride, and knows no basic
    blocks (R18, R34). DETR's weights were trained with torchvision's form [C], which follows from the stride alone:
    what comes after the removed stride looks twice as far. The same rule is applied to basic blocks, which torchvision
    does not dilate [R].
    """
    if cfg.MODEL.RESNETS.RES5_DILATION == 1:
        return build_resnet_backbone(cfg, input_shape)
    if cfg.MODEL.RESNETS.RES5_DILATION != 2:
        raise ConfigError(
            f"MODEL.RESNETS.RES5_DILATION is {cfg.MODEL.RESNETS.RES5_DILATION}. Known: 1, and 2 for a DC5 backbone."
        )
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.RESNETS.RES5_DILATION = 1
    backbone = build_resnet_backbone(plain, input_shape)
    _dilate_last_stage(backbone)
    return backbone


def _dilate_last_stage(backbone: Backbone) -> None:
    """Removes the stride of ``res5`` and dilates the convolutions that follow it, in the order of the forward pass."""
    first = backbone.res5[0]
    first.shortcut.stride = (1, 1)
    behind_stride = False
    for block in backbone.res5:
        for name in ("conv1", "conv2", "conv3"):
            convolution = getattr(block, name, None)
            if convolution is None:
                continue
            if behind_stride and convolution.kernel_size == (3, 3):
                convolution.dilation = convolution.padding = (2, 2)
            behind_stride = behind_stride or convolution.stride == (2, 2)
            convolution.stride = (1, 1)
    backbone._out_feature_strides["res5"] = backbone._out_feature_strides.get("res4", 16)


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
def build_conv_backbone(cfg, input_shape: ShapeSpec) -> ConvBackbone:
    """:class:`ConvBackbone` with the channels of ``MODEL.CONV_BACKBONE.CHANNELS``."""
    return ConvBackbone(input_shape.channels, list(cfg.MODEL.CONV_BACKBONE.CHANNELS))
