"""detectron2's ResNets as the DETR family uses them."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone, build_resnet_backbone

from ...config.ranges import Words
from .folded import FoldedResNet


@BACKBONE_REGISTRY.register()
def build_detr_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """detectron2's ResNet, folded; ``MODEL.RESNETS.RES5_DILATION: 2`` gives DETR's "DC5" backbone (2005.12872) [P].

    detectron2's own dilation also dilates the 3x3 convolution that carries the last stage's stride, and knows no basic
    blocks (R18, R34). DETR's weights were trained with torchvision's form [C], which follows from the stride alone:
    what comes after the removed stride looks twice as far. The same rule is applied to basic blocks, which torchvision
    does not dilate [R].
    """
    Words(1, 2).check("MODEL.RESNETS.RES5_DILATION", cfg.MODEL.RESNETS.RES5_DILATION)
    if cfg.MODEL.RESNETS.RES5_DILATION == 1:
        return FoldedResNet.of(build_resnet_backbone(cfg, input_shape))
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.RESNETS.RES5_DILATION = 1
    backbone = FoldedResNet.of(build_resnet_backbone(plain, input_shape))
    _dilate_last_stage(backbone)
    return backbone


def _dilate_last_stage(backbone: Backbone) -> None:
    """Removes the stride of ``res5`` and dilates the convolutions that follow it, in the order of the forward pass."""
    first = backbone.res5[0]
    first.shortcut.stride = (1, 1)
    behind_stride = False
    for block in backbone.res5:
        # A basic block has two, a bottleneck three.
        convolutions = [child for name, child in block.named_children() if name in ("conv1", "conv2", "conv3")]
        for convolution in convolutions:
            if behind_stride and convolution.kernel_size == (3, 3):
                convolution.dilation = convolution.padding = (2, 2)
            behind_stride = behind_stride or convolution.stride == (2, 2)
            convolution.stride = (1, 1)
    backbone._out_feature_strides["res5"] = backbone._out_feature_strides.get("res4", 16)
