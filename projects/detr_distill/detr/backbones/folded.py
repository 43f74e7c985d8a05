"""detectron2's ResNet with its frozen normalisation folded into the convolutions, anew in every forward pass.

Parameters and buffers stay as they are, and so do checkpoints. Letters: B images.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...structures.constants import is_graph
from ..layers.fused_convolution import convolve_relu, fuses

Folded = dict[nn.Module, tuple[Tensor, Tensor | None]]  # weight and bias of convolutions


class FoldedResNet(ResNet):
    """A ResNet that runs a convolution and the frozen normalisation behind it as one; maps lie channels last.

    Where nothing is differentiated the activation, and the sum with the shortcut, are part of the convolution too.
    """

    @classmethod
    def of(cls, network: ResNet) -> FoldedResNet:
        """The same modules under the same names."""
        stages = [list(stage) for stage in network.stages]
        folded = cls(network.stem, stages, out_features=network._out_features)
        folded._out_feature_strides.update(network._out_feature_strides)
        return folded

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, height, width) to the maps of the stages that are asked for."""
        if is_graph():
            return super().forward(x)
        convolutions = [module for module in self.modules() if type(module) is Conv2d and module.activation is None]
        folded = fold(convolutions)
        x = self._run_stem(x.contiguous(memory_format=torch.channels_last), folded)
        outputs = {"stem": x}
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            for block in stage:
                x = _run_block(block, x, folded)
            outputs[name] = x
        return {name: outputs[name] for name in self._out_features}

    def _run_stem(self, x: Tensor, folded: Folded) -> Tensor:
        if type(self.stem) is not BasicStem:
            return self.stem(x)
        return F.max_pool2d(_convolve(self.stem.conv1, x, folded, relu=True), kernel_size=3, stride=2, padding=1)


def _run_block(block: nn.Module, x: Tensor, folded: Folded) -> Tensor:
    """A residual block; one of another kind than detectron2's plain ones runs itself."""
    if type(block) not in (BasicBlock, BottleneckBlock):
        return block(x)
    shortcut = x if block.shortcut is None else _convolve(block.shortcut, x, folded)
    path = [block.conv1, block.conv2, *([block.conv3] if type(block) is BottleneckBlock else [])]
    for convolution in path[:-1]:
        x = _convolve(convolution, x, folded, relu=True)
    return _convolve(path[-1], x, folded, relu=True, added=shortcut)


def _convolve(
    convolution: Conv2d, x: Tensor, folded: Folded, *, relu: bool = False, added: Tensor | None = None
) -> Tensor:
    """The convolution and its normalisation, then the sum with ``added``, then the activation."""
    weight, bias = folded[convolution]
    settings = convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    is_folded = convolution.norm is None or isinstance(convolution.norm, FrozenBatchNorm2d)
    if relu and is_folded and weight.dtype == _compute_type(x) and fuses(x):
        return convolve_relu(x.to(weight.dtype), weight, bias, added, *settings)
    x = F.conv2d(x, weight, bias, *settings)
    if not is_folded:
        x = convolution.norm(x)
    if added is not None:
        x += added
    return F.relu_(x) if relu else x


def fold(convolutions: Iterable[Conv2d]) -> Folded:
    """Weights and biases of convolutions with their frozen normalisation, in the type that autocast computes in.

    A convolution with another normalisation, or none, has its own.
    """
    normalised = [x for x in convolutions if isinstance(x.norm, FrozenBatchNorm2d)]
    folded = _as_they_are([x for x in convolutions if not isinstance(x.norm, FrozenBatchNorm2d)])
    if normalised:
        scales, shifts = _scales_and_shifts(normalised)
        for trained in (False, True):
            chosen = [i for i, x in enumerate(normalised) if x.weight.requires_grad == trained]
            weights = [normalised[index].weight for index in chosen]
            scaled = _ScaleWeights.apply([scales[index].view(-1, 1, 1, 1) for index in chosen], *weights)
            folded.update({normalised[i]: (weight, shifts[i]) for i, weight in zip(chosen, scaled, strict=True)})
    return folded


def _as_they_are(convolutions: list[Conv2d]) -> Folded:
    """Their own weights and biases; autocast would cast frozen ones in every step, one by one."""
    kept = {x: (x.weight, x.bias) for x in convolutions}
    cast = [
        x
        for x in convolutions
        if x.bias is not None
        and x.weight.dtype != _compute_type(x.weight)
        and not (x.weight.requires_grad and torch.is_grad_enabled())
    ]
    if cast:
        copies = _copies([part for x in cast for part in kept[x]], _compute_type(cast[0].weight))
        kept.update(zip(cast, zip(copies[::2], copies[1::2], strict=True), strict=True))
    return kept


@torch.no_grad()
def _scales_and_shifts(convolutions: list[Conv2d]) -> tuple[list[Tensor], list[Tensor]]:
    """What the normalisation behind each convolution multiplies by, float32, and adds."""
    norms = [x.norm for x in convolutions]
    spreads = torch._foreach_add([norm.running_var for norm in norms], norms[0].eps)
    scales = torch._foreach_mul([norm.weight for norm in norms], torch._foreach_rsqrt(spreads))
    moved = torch._foreach_mul([norm.running_mean for norm in norms], scales)
    shifts = torch._foreach_sub([norm.bias for norm in norms], moved)
    return list(scales), _copies(shifts, _compute_type(shifts[0]))


class _ScaleWeights(torch.autograd.Function):
    """Weights times scales, channels last, in the type that autocast computes in; two operators for all of them."""

    @staticmethod
    def forward(ctx: Any, scales: list[Tensor], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.scales, ctx.weights = scales, weights
        if not weights:
            return ()
        kind = _compute_type(weights[0])
        return tuple(_copies(torch._foreach_mul(weights, scales), kind, torch.channels_last))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        copies = [torch.empty_like(weight) for weight in ctx.weights]
        torch._foreach_copy_(copies, gradients)
        torch._foreach_mul_(copies, ctx.scales)
        return None, *copies


def _compute_type(values: Tensor) -> torch.dtype:
    kind = values.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else values.dtype


def _copies(
    values: Iterable[Tensor], kind: torch.dtype, layout: torch.memory_format = torch.preserve_format
) -> list[Tensor]:
    copies = [torch.empty_like(value, dtype=kind, memory_format=layout) for value in values]
    torch._foreach_copy_(copies, list(values))
    return copies
