"""Feature pyramids (1612.03144) on timm's networks and on the small one, for detectron2's own detectors."""

from __future__ import annotations

import math

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

from .small import ConvBackbone
from .timm import TimmBackbone


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """p2 to p6, as Faster R-CNN takes them, where ``MODEL.FPN.IN_FEATURES`` are ``stage1`` to ``stage4``."""
    return _pyramid(cfg, TimmBackbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """p3 to p7, as RetinaNet and FCOS take them, where ``MODEL.FPN.IN_FEATURES`` are ``stage2`` to ``stage4``."""
    bottom_up = TimmBackbone(cfg, input_shape)
    last = cfg.MODEL.FPN.IN_FEATURES[-1]
    channels = bottom_up.output_shape()[last].channels
    return _pyramid(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS, in_feature=last))


@BACKBONE_REGISTRY.register()
def build_conv_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """A pyramid on :class:`ConvBackbone` for small images, with one level more than ``MODEL.FPN.IN_FEATURES``."""
    bottom_up = ConvBackbone(input_shape.channels, list(cfg.MODEL.CONV_BACKBONE.CHANNELS))
    top_block = LastLevelMaxPool()
    # The block takes p5 for the last level of every pyramid.
    top_block.in_feature = f"p{round(math.log2(bottom_up.output_shape()[cfg.MODEL.FPN.IN_FEATURES[-1]].stride))}"
    return _pyramid(cfg, bottom_up, top_block)


def _pyramid(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    node = cfg.MODEL.FPN
    return FPN(bottom_up, node.IN_FEATURES, node.OUT_CHANNELS, node.NORM, top_block, node.FUSE_TYPE)
