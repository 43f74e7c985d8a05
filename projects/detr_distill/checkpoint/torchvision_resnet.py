"""torchvision's ImageNet ResNets under detectron2's names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch
import torchvision
from torch import Tensor

from ..errors import CheckpointError

PREFIX = "torchvision://"
DEFAULT_WEIGHTS = "IMAGENET1K_V1"


def rename_resnet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a torchvision ResNet (18 to 152) under the names of ``build_resnet_backbone``, without prefix.

    The classifier is left out. The detectron2 model needs ``RESNETS.STRIDE_IN_1X1`` False, and the input that
    torchvision trained on: RGB, ``PIXEL_MEAN`` [123.675, 116.28, 103.53], ``PIXEL_STD`` [58.395, 57.12, 57.375].
    """
    return {rename_parameter(name): value for name, value in weights.items() if not name.startswith("fc.")}


def rename_parameter(name: str) -> str:
    """``layer1.0.bn1.weight`` as ``res2.0.conv1.norm.weight``."""
    name = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name)
    name = re.sub(r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}.", name)
    name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
    return re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)


def weights_url(address: str) -> str:
    """Where torchvision keeps the weights of an address.

    Args:
        address: ``torchvision://resnet50`` or, for another set of weights, ``torchvision://resnet50/IMAGENET1K_V2``.

    Raises:
        CheckpointError: torchvision has no such model or weights.
    """
    name, _, version = address.removeprefix(PREFIX).partition("/")
    known = [model for model in torchvision.models.list_models() if re.fullmatch(r"resnet\d+", model)]
    if name not in known:
        raise CheckpointError(f"MODEL.WEIGHTS {address}: torchvision://NAME takes one of {', '.join(known)}.")
    choices = torchvision.models.get_model_weights(name)
    version = version or DEFAULT_WEIGHTS
    if version not in choices.__members__:
        versions = " and ".join(member.name for member in choices)
        raise CheckpointError(f"MODEL.WEIGHTS {address}: {name} has {versions}, not {version}.")
    return choices[version].url


def torchvision_cache(url: str) -> str:
    """Where torchvision itself would have put a file that it downloaded."""
    return os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
