"""A convolution, a sum and ReLU as one operator, where torch has one and nothing is differentiated."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

Pair = tuple[int, int]
logger = logging.getLogger(__name__)


def fuses(values: Tensor) -> bool:
    """Whether :func:`convolve_relu` runs on maps like these, as things stand."""
    if torch.is_grad_enabled() or torch.are_deterministic_algorithms_enabled():
        return False
    kind = values.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else values.dtype
    return _works(values.device, dtype)


def convolve_relu(
    values: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """``relu(conv(values) + added)``, channels last, without gradient: oneDNN's on a CPU, cuDNN's on CUDA.

    Args:
        values: (B, channels, height, width). added: of the result's shape, or None.
    """
    if values.is_cuda:
        settings = stride, padding, dilation, groups
        if added is None:
            return torch.cudnn_convolution_relu(values, weight, bias, *settings)
        return torch.cudnn_convolution_add_relu(values, weight, added, 1.0, bias, *settings)
    operator, settings = torch.ops.mkldnn._convolution_pointwise, (padding, stride, dilation, groups)
    if added is None:
        return operator(values, weight, bias, *settings, "relu", [], "")
    return operator.binary(values, added, weight, bias, *settings, "add", 1.0, "relu", [], "")


@functools.cache
def _works(device: torch.device, dtype: torch.dtype) -> bool:
    """Tries one small convolution: libraries without the operator, or without one for the type, say so."""
    if device.type not in ("cpu", "cuda"):
        return False
    try:
        with torch.no_grad():
            values = torch.ones(1, 8, 4, 4, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
            weight, bias = values.new_ones(8, 8, 1, 1), values.new_full((8,), -8.0)
            once, (stride, padding) = (1, 1), ((1, 1), (0, 0))
            for added, expected in ((None, 0.0), (values, 1.0)):
                result = convolve_relu(values, weight, bias, added, stride, padding, once, 1)
                if not bool((result == expected).all()):
                    raise RuntimeError(f"it gives {result.flatten()[0].item()} in place of {expected}")
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        logger.info("Convolution and activation run apart on %s in %s: %s", device, dtype, str(error).splitlines()[0])
        return False
    return True
