"""Small networks of timm as backbones: their names, weights of a classifier in a file, and a detector on one."""

from __future__ import annotations

import timm
import torch
from helpers.builders import randomise, small_cfg
from timm.models import swin_transformer

STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN = "swin_small_test"
SMALL = "test_resnet"


def swin_small_test(pretrained=False, **options):
    """A registered Swin that is small enough to be built many times."""
    sizes = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 2), "window_size": 7}
    return swin_transformer.swin_tiny_patch4_window7_224(pretrained, **sizes, **options)


swin_small_test.__module__ = swin_transformer.__name__
timm.models.register_model(swin_small_test)


def picture(height=64, width=96, channels=3):
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))


def random_weights(path, network):
    """Random weights of a classifier as a file."""
    torch.save(randomise(network).state_dict(), path)
    return str(path)


def assert_close(found, expected, tolerance):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def detector_cfg(name=SMALL, **keys):
    return small_cfg(
        **{
            "MODEL__BACKBONE__NAME": "TimmBackbone",
            "MODEL__BACKBONE__FREEZE_AT": 0,
            "MODEL__TIMM__NAME": name,
            "MODEL__DETR__IN_FEATURES": ["stage4"],
            **keys,
        }
    )
