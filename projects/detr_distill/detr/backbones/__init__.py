"""``MODEL.BACKBONE.NAME``: from images to feature maps."""

from .pyramid import build_conv_fpn_backbone, build_retinanet_timm_fpn_backbone, build_timm_fpn_backbone
from .resnet import build_detr_resnet_backbone
from .small import build_conv_backbone
from .timm import TimmBackbone
from .torchvision import TorchvisionBackbone

__all__ = [
    "TimmBackbone",
    "TorchvisionBackbone",
    "build_conv_backbone",
    "build_conv_fpn_backbone",
    "build_detr_resnet_backbone",
    "build_retinanet_timm_fpn_backbone",
    "build_timm_fpn_backbone",
]
