"""A frozen teacher's backbone in its fast form is the same function."""

from __future__ import annotations

from detr_distill.distill.teachers.inference_form import prepare_for_inference

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from helpers.builders import randomise, small_cfg


def test_it_computes_the_same_maps():
    cfg = small_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res5"]
    backbone = randomise(build_backbone(cfg), seed=4).eval()
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in backbone.modules() if isinstance(module, FrozenBatchNorm2d)]
    for norm in norms:
        for buffer in (norm.weight, norm.running_var):
            buffer.uniform_(0.5, 1.5, generator=generator)
        for buffer in (norm.bias, norm.running_mean):
            buffer.uniform_(-0.5, 0.5, generator=generator)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = backbone(images)
        found = prepare_for_inference(backbone)(images)
    assert norms and not [module for module in backbone.modules() if isinstance(module, FrozenBatchNorm2d)]
    for name, values in expected.items():
        assert torch.allclose(found[name], values, rtol=1e-4, atol=1e-4 * values.abs().max().item()), name
        assert found[name].is_contiguous(memory_format=torch.channels_last)
