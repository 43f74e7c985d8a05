"""Whether deformable attention runs as Triton's kernels or as PyTorch's operators.

The choice is the process's, set when a detector is built, as the device is: it says how the machine computes and not
what, and every part that samples points follows it without passing it on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import ConfigError
from .kernel_trial import tried

# Of `MODEL.DETR.DEFORMABLE_KERNEL`.
KERNELS = ("auto", "pytorch", "triton")
_chosen = "auto"


def choose_deformable_kernel(kernel: str) -> None:
    """Sets the form that runs from now on.

    Args:
        kernel: of ``KERNELS``; "auto": Triton on CUDA where it works, else PyTorch. Another device than CUDA, float64,
            and graphs that are traced, compiled or exported take PyTorch in any case.

    Raises:
        ConfigError: "triton" where it cannot be imported.
    """
    global _chosen
    if kernel == "triton":
        try:
            import triton  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f'MODEL.DETR.DEFORMABLE_KERNEL is "triton", which cannot be imported here ({error}). Install triton, '
                'which PyTorch brings along on Linux, or set the key to "auto" or "pytorch".'
            ) from error
    _chosen = kernel


def find_triton_form(values: Tensor, sampling_locations: Tensor) -> Callable[..., Tensor] | None:
    """The Triton form where it is to run on these arguments, else None; asks the tensors' metadata alone.

    Raises:
        ConfigError: "triton" was chosen, and the values' gradient is wanted under
            ``torch.use_deterministic_algorithms``; "auto" gives that gradient to PyTorch, which has rules of its own.
    """
    if _chosen == "pytorch" or torch.compiler.is_compiling() or torch.jit.is_tracing() or not values.is_cuda:
        return None
    if torch.float64 in (values.dtype, sampling_locations.dtype):
        return None
    if values.requires_grad and torch.is_grad_enabled() and torch.are_deterministic_algorithms_enabled():
        if _chosen == "triton":
            raise ConfigError(
                'MODEL.DETR.DEFORMABLE_KERNEL is "triton", whose gradients are not the same bit for bit from run to '
                'run, and torch.use_deterministic_algorithms asks for that. Set the key to "auto" or "pytorch".'
            )
        return None
    if _chosen == "auto" and not triton_works(values.device):
        return None
    from .deformable_triton import attend_with_triton

    return attend_with_triton


@functools.cache
@tried("Deformable attention uses PyTorch's operators, which take several times as long")
def triton_works(device: torch.device) -> None:
    """Tries a single point, once."""
    from .deformable_triton import attend_with_triton

    with torch.inference_mode(False), torch.enable_grad():
        values = torch.zeros(1, 1, 1, 16, device=device, requires_grad=True)
        points = torch.zeros(1, 1, 1, 1, 1, 2, device=device)
        torch.autograd.grad(attend_with_triton(values, [(1, 1)], points, points[..., 0]).sum(), values)
