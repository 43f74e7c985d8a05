"""timm's and torchvision's networks: their own features, and one set of weights under three libraries."""

from __future__ import annotations

from detr_distill.checkpoint.torchvision_resnet import rename_resnet
from detr_distill.detr.backbones.timm import TimmBackbone
from detr_distill.detr.backbones.torchvision import TorchvisionBackbone

import pytest
import timm
import torch
import torchvision
from detectron2.modeling import build_backbone
from helpers.builders import small_cfg
from helpers.detr.small_networks import SMALL, STAGES, SWIN, assert_close, picture, random_weights

# With activations inside the normalisation, without batch normalisation, channels last.
NETWORKS = [SMALL, "test_efficientnet", "test_convnext", SWIN]


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_features_are_timms_own(name, tmp_path):
    # As trained on larger images, where the windows of the last stage shift as well.
    options = {"img_size": 448, "strict_img_size": False} if name == SWIN else {}
    file = random_weights(tmp_path / "weights.pth", timm.create_model(name))
    ours = TimmBackbone(name=name, out_features=STAGES, pretrained=file).eval()
    stem = len(timm.create_model(SMALL).feature_info) - 4 if name in (SMALL, "test_efficientnet") else 0
    theirs = timm.create_model(
        name,
        features_only=True,
        out_indices=range(stem, stem + 4),
        pretrained=True,
        pretrained_cfg_overlay={"file": file},
        **options,
    ).eval()
    image = picture(60, 92) if name == SWIN else picture()  # no multiple of the window
    expected = [x.permute(0, 3, 1, 2) if name == SWIN else x for x in theirs(image)]
    found = ours(image)
    assert list(found) == STAGES
    for (key, feature), reference in zip(found.items(), expected, strict=True):
        assert_close(feature, reference, 1e-6)
        spec = ours.output_shape()[key]
        assert feature.shape == (1, spec.channels, -(-image.shape[2] // spec.stride), -(-image.shape[3] // spec.stride))
    assert [ours.output_shape()[key].stride for key in STAGES] == [4, 8, 16, 32]


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory):
    """Random weights of torchvision's ResNet-50 and a file of them."""
    source = torchvision.models.resnet50()
    file = random_weights(tmp_path_factory.mktemp("weights") / "resnet50.pth", source)
    return source.state_dict(), file


@pytest.mark.parametrize("stride", [32, 16])
@torch.no_grad()
def test_three_libraries_agree_on_a_resnet(stride, resnet50):
    """One file of torchvision's weights, plain and as DC5, whose weights are those of the plain network."""
    weights, file = resnet50
    cfg = small_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_detr_resnet_backbone"
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.RES5_DILATION = 32 // stride
    reference = build_backbone(cfg).eval()
    weights = rename_resnet(weights)
    reference.load_state_dict({key: weights[key] for key in reference.state_dict()})
    expected = reference(picture())
    for backbone in (TimmBackbone, TorchvisionBackbone):
        ours = backbone(name="resnet50", out_features=STAGES, output_stride=stride, pretrained=file).eval()
        found = ours(picture())
        for name, other in zip(STAGES, expected, strict=True):
            assert_close(found[name], expected[other], 1e-5)
            assert ours.output_shape()[name] == reference.output_shape()[other]
        assert ours.output_shape()["stage4"].stride == stride


def test_output_norm_normalises_the_channels():
    ours = TimmBackbone(name=SMALL, out_features=["stage2", "stage4"], output_norm=True)
    for feature in ours(picture()).values():
        assert torch.allclose(feature.mean(1), torch.zeros(()), atol=1e-5)
        assert torch.allclose(feature.var(1, unbiased=False), torch.ones(()), atol=1e-2)
