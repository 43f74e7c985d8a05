"""A ResNet with its normalisation folded is the same function with the same gradients, in fewer operators."""

from __future__ import annotations

from detr_distill.detr.layers import fused_convolution

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import ResNet
from helpers.builders import small_cfg

IMAGES = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))


def narrow_resnet(norm: str = "FrozenBN", freeze_at: int = 2):
    cfg = small_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_detr_resnet_backbone", freeze_at
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8, 32
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.RESNETS.NORM = 8, norm
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res5"]
    network = build_backbone(cfg)
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for buffer in (module.weight, module.running_var):
                buffer.uniform_(0.5, 1.2, generator=generator)
            for buffer in (module.bias, module.running_mean):
                buffer.uniform_(-0.5, 0.5, generator=generator)
    return network


def run(network, forward):
    network.zero_grad()
    maps = forward(IMAGES)
    sum(values.float().square().mean() for values in maps.values()).backward()
    return maps, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_maps_and_gradients_are_those_of_the_layers_one_by_one(norm):
    network = narrow_resnet(norm, freeze_at=2 if norm == "FrozenBN" else 0).eval()
    expected, expected_gradients = run(network, lambda images: ResNet.forward(network, images))
    found, gradients = run(network, network)
    assert list(found) == ["res3", "res5"] and gradients.keys() == expected_gradients.keys()
    assert not [name for name in gradients if norm == "FrozenBN" and name.startswith(("stem", "res2"))]
    for name, values in expected.items():
        assert torch.allclose(found[name], values, rtol=1e-4, atol=1e-4 * values.abs().max().item()), name
    for name, gradient in expected_gradients.items():
        assert torch.allclose(gradients[name], gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item()), name
        if norm == "FrozenBN":
            assert gradients[name].stride() == network.get_parameter(name).stride(), "the optimizer would have to copy"


def test_convolutions_take_their_activation_along_where_nothing_is_differentiated(monkeypatch):
    network, calls = narrow_resnet(), []
    real = fused_convolution.convolve_relu
    monkeypatch.setattr(
        "detr_distill.detr.backbones.folded.convolve_relu", lambda *a: calls.append(a[3] is not None) or real(*a)
    )
    expected = network(IMAGES)
    assert not calls, "torch's fused operators have no gradient"
    with torch.no_grad():
        found = network(IMAGES)
    assert calls.count(True) == 16 and calls.count(False) == 33, "16 blocks, each with a sum, and the stem"
    for name, values in expected.items():
        assert torch.allclose(found[name], values, rtol=1e-4, atol=1e-4 * values.abs().max().item()), name


def test_autocast_computes_in_its_type_and_parameters_learn_in_their_own():
    network = narrow_resnet()
    with torch.autocast("cpu", torch.bfloat16):
        maps, gradients = run(network, network)
    assert {values.dtype for values in maps.values()} == {torch.bfloat16}
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    expected = network(IMAGES)
    for name, values in maps.items():
        assert torch.allclose(values.float(), expected[name], rtol=0.1, atol=0.05 * expected[name].abs().max().item())


def test_what_is_exported_keeps_its_layers():
    network = narrow_resnet().eval()
    with torch.no_grad():
        traced = torch.jit.trace(network, IMAGES, check_trace=False, strict=False)
        assert torch.equal(traced(IMAGES)["res5"], ResNet.forward(network, IMAGES)["res5"])
    assert "batch_norm" in str(traced.inlined_graph)
