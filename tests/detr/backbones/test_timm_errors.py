"""What timm and torchvision do not offer is named in words."""

from __future__ import annotations

import sys

from detr_distill.detr.backbones.timm import TimmBackbone
from detr_distill.detr.backbones.torchvision import TorchvisionBackbone
from detr_distill.errors import ConfigError

import pytest
from detectron2.modeling import build_model
from helpers.detr.small_networks import SMALL, SWIN, detector_cfg


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "swin_tiny"}, "MODEL.TIMM.NAME swin_tiny is not .* Near: swin_tiny_patch4_window7_224"),
        ({"name": "resnet50.foo"}, r"resnet50.foo is not .* Near: resnet50\.\w+"),
        ({"name": "xyzzy"}, "xyzzy is not a model of timm .* lists them all"),
        ({"out_features": ["res5"]}, r"MODEL.TIMM.OUT_FEATURES is \['res5'\]. Name one or more of stage1, stage2"),
        ({"out_features": []}, r"OUT_FEATURES is \[\]"),
        ({"output_stride": 4}, "MODEL.TIMM.OUTPUT_STRIDE is 4. Known: 32"),
        ({"name": SWIN, "output_stride": 16}, "OUTPUT_STRIDE 16 .*'output_stride'"),
        ({"name": "vgg11", "drop_path": 0.1}, "DROP_PATH 0.1 .*'drop_path_rate'"),
        ({"name": "maxvit_rmlp_pico_rw_256"}, "takes images of one size"),
        ({"freeze_at": 6}, "MODEL.BACKBONE.FREEZE_AT is 6, .* with 4 stages"),
        ({"name": "hrnet_w18_small", "freeze_at": 1}, "MODEL.BACKBONE.FREEZE_AT is 1"),
    ],
)
def test_what_timm_does_not_offer_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        TimmBackbone(**{"name": SMALL, "out_features": ["stage4"], **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet51"}, "MODEL.TORCHVISION.NAME resnet51 is not a ResNet of torchvision. Near: resnet50"),
        ({"output_stride": 16}, "resnet18 has no dilated form"),
        ({"output_stride": 64}, "MODEL.TORCHVISION.OUTPUT_STRIDE is 64"),
        ({"out_features": ["layer4"]}, "MODEL.TORCHVISION.OUT_FEATURES is"),
    ],
)
def test_what_torchvision_does_not_offer_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        TorchvisionBackbone(**{"name": "resnet18", "out_features": ["stage4"], **options})


def test_without_timm_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ConfigError, match=r"MODEL.BACKBONE.NAME asks for .* timm, which cannot be imported .*: pip install timm"
    ):
        build_model(detector_cfg())
