"""Whether the kernels that compare attention without maps work on a device: they are tried once, against maps."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..detr.layers.kernel_trial import tried
from ..structures.attention import AttentionFactors
from . import divergence

KINDS = {"kl": divergence.kl, "mse": divergence.mse}
TOLERANCE = 1e-3  # of the largest value; a kernel that the machine has compiled wrongly is off by far more


@functools.cache
@tried("Attention is compared as maps, which takes more memory")
def attention_kernels_work(device: torch.device) -> None:
    """Compares divergences and gradients of two small attentions."""
    from .attention_fused import attention_divergence

    with torch.inference_mode(False), torch.enable_grad():
        for kind, compare in KINDS.items():
            student, teacher = _factors(device, 8, seed=0), _factors(device, 16, seed=1)
            found = attention_divergence(student, teacher, kind=kind, tiny=divergence.TINY)
            expected = compare(teacher.map(), student.map())
            pairs = zip(_with_gradients(found, student), _with_gradients(expected, student), strict=True)
            if not all(_close(ours, theirs) for ours, theirs in pairs):
                raise RuntimeError(f"its divergence '{kind}' is not that of the maps")


def _factors(device: torch.device, width: int, seed: int) -> AttentionFactors:
    """Two images, two heads, five queries and nine keys, of which the last is hidden in the second image."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(2, 2, count, width, generator=generator).to(device) for count in (5, 9))
    mask = torch.zeros(2, 1, 1, 9, dtype=torch.bool, device=device)
    mask[1, ..., -1] = True
    return AttentionFactors(query.requires_grad_(seed == 0), key.requires_grad_(seed == 0), mask)


def _with_gradients(found: Tensor, student: AttentionFactors) -> list[Tensor]:
    return [found.detach(), *torch.autograd.grad(found.sum(), [student.query, student.key])]


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max())
