"""The image sizes that timm's networks can take: no pixel is cut off, and a detector pads up to them."""

from __future__ import annotations

from detr_distill.detr.backbones.stages import grid_multiple
from detr_distill.detr.backbones.timm import TimmBackbone

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs
from helpers.detr.small_networks import SMALL, SWIN, detector_cfg, picture
from helpers.steps import encode_features
from torch import nn


@pytest.mark.parametrize(
    ("name", "multiple"), [(SMALL, 1), ("resnet14t", 1), ("test_convnext", 32), ("densenet121", 32), (SWIN, 4)]
)
def test_no_pixel_is_cut_off(name, multiple):
    """At a multiple of ``size_divisibility`` the last row and column reach the features, one pixel less is one cell."""
    ours = TimmBackbone(name=name, out_features=["stage4"]).eval()
    assert ours.size_divisibility == multiple
    size = 32 + multiple if multiple < 32 else 64
    image = picture(size, size).requires_grad_()
    ours(image)["stage4"].square().sum().backward()
    assert image.grad[..., -1, :].abs().sum() > 0 and image.grad[..., :, -1].abs().sum() > 0
    assert ours(image)["stage4"].shape[-1] == -(-size // 32)


def test_networks_that_cut_would_lose_pixels_otherwise():
    ours = TimmBackbone(name="test_convnext", out_features=["stage4"]).eval()
    image = picture(64, 67).requires_grad_()
    ours(image)["stage4"].square().sum().backward()
    assert image.grad[..., 64:].abs().sum() == 0


def test_strides_before_a_patch_count():
    pool = nn.AvgPool2d(2)
    assert grid_multiple(nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), pool, pool), 32) == 4  # a module counts once
    assert grid_multiple(nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), pool, nn.MaxPool2d(2)), 32) == 8
    assert grid_multiple(nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), nn.AvgPool2d(2, ceil_mode=True)), 32) == 1


@torch.no_grad()
def test_a_detector_pads_and_masks_what_the_backbone_needs():
    model = build_model(detector_cfg(SWIN, MODEL__TIMM__OUT_FEATURES=["stage2"], MODEL__DETR__IN_FEATURES=["stage2"]))
    (inputs,) = make_inputs(sizes=((41, 58),), counts=(1,))
    images = model.preprocess([inputs])
    assert images.tensor.shape[-2:] == (44, 60)
    assert (~images.mask).sum() == 41 * 58 and not images.mask[0, :41, :58].any()
    memory = encode_features(model, model.backbone(images.tensor), images)
    assert memory.shapes == [(6, 8)] and not memory.mask.any()  # each cell begins inside of the image
    cfg = detector_cfg("test_convnext", MODEL__DETR__SIZE_DIVISIBILITY=48)
    assert build_model(cfg).size_divisibility == 96
