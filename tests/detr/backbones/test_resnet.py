"""DC5 backbones: torchvision's form where it has one, and the same rule for basic blocks."""

from __future__ import annotations

from detr_distill.checkpoint.torchvision_resnet import rename_resnet
from detr_distill.detr.backbones.build import padding_multiple
from detr_distill.errors import ConfigError

import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone, build_model
from helpers.builders import randomise, small_cfg


def build(depth, dilation):
    cfg = small_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_detr_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    cfg.MODEL.RESNETS.RES5_DILATION = dilation
    return build_backbone(cfg).eval()


@torch.no_grad()
def test_dilated_bottlenecks_equal_torchvision():
    reference = torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True]).eval()
    randomise(reference)
    ours = build(50, 2)
    weights = rename_resnet(reference.state_dict())
    ours.load_state_dict({key: value for key, value in weights.items() if key in ours.state_dict()}, strict=True)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.Sequential(*list(reference.children())[:-2])(image)
    found = ours(image)["res5"]
    assert found.shape[-2:] == (4, 6) and ours.output_shape()["res5"].stride == 16
    assert torch.allclose(found / expected.abs().max(), expected / expected.abs().max(), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("depth", [18, 34])
def test_dilated_basic_blocks_are_the_strided_ones_between_the_cells(depth):
    """Every second cell of the dilated stage is what the strided stage computes."""
    strided, dilated = build(depth, 1), randomise(build(depth, 2))
    strided.load_state_dict(dilated.state_dict())
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    coarse, fine = strided(image)["res5"], dilated(image)["res5"]
    assert fine.shape[-2:] == (4, 6)
    assert torch.allclose(fine[..., ::2, ::2], coarse, atol=1e-4 * coarse.abs().max().item())


def test_other_dilations_are_refused():
    with pytest.raises(ConfigError, match="RES5_DILATION is 4"):
        build(50, 4)


def test_an_unknown_backbone_is_named_with_those_that_are_known():
    cfg = small_cfg()
    cfg.MODEL.BACKBONE.NAME = "TimBackbone"
    with pytest.raises(
        ConfigError, match=r"MODEL.BACKBONE.NAME names 'TimBackbone'.*TimmBackbone.*build_conv_backbone"
    ):
        build_model(cfg)


def test_images_are_padded_for_both_the_configuration_and_the_backbone():
    backbone = build(18, 1)
    assert (
        backbone.size_divisibility == 0 and padding_multiple(1, backbone) == 1 and padding_multiple(24, backbone) == 24
    )
    backbone.__class__ = type("Padded", (type(backbone),), {"size_divisibility": 32})
    assert padding_multiple(1, backbone) == 32 and padding_multiple(24, backbone) == 96
