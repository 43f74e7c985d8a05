"""A frozen backbone in the form that runs fastest: the same function, fewer and faster passes over its maps."""

from __future__ import annotations

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn


@torch.no_grad()
def prepare_for_inference(backbone: nn.Module) -> nn.Module:
    """Folds fixed normalisation into the convolutions before it, and stores weights channels-last.

    In place, for a network that is not trained any more: its outputs stay as they are up to rounding. The maps come out
    channels-last as well, as oneDNN and tensor cores want them and as tokens are read from them.
    """
    for module in backbone.modules():
        if isinstance(module, Conv2d) and isinstance(module.norm, FrozenBatchNorm2d):
            _fold(module, module.norm)
    return backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _fold(convolution: Conv2d, norm: FrozenBatchNorm2d) -> None:
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    if convolution.bias is not None:
        shift = shift + convolution.bias * scale
    convolution.weight = nn.Parameter(convolution.weight * scale[:, None, None, None], requires_grad=False)
    convolution.bias = nn.Parameter(shift, requires_grad=False)
    convolution.norm = None
