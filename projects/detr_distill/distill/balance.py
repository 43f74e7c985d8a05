"""Steering the weight of the distillation losses so that they make up a wanted share of the total."""

from __future__ import annotations

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn

from ..errors import ConfigError


class ShareBalance(nn.Module):
    """A common factor of the distillation losses, found in the first iterations of a run and kept from then on.

    The factor makes ``mean distillation / mean total`` equal to the target over the iterations seen so far. It is part
    of checkpoints: a resumed run goes on with it. SSSD (2303.05015) chooses lambda by this share, 45 % over the first
    1,000 iterations, in trial runs [P]; steering it in the run itself is ours [R].

    Args:
        target_share: in (0, 1). iterations: of the search. lowest, highest: bounds of the factor.
    """

    factor: Tensor
    sums: Tensor

    def __init__(self, target_share: float, iterations: int, lowest: float, highest: float):
        super().__init__()
        if not 0 < target_share < 1:
            raise ConfigError(f"MODEL.DISTILL.BALANCE.TARGET_SHARE is {target_share}. Give a share between 0 and 1.")
        if not 0 < lowest <= highest:
            raise ConfigError(
                f"MODEL.DISTILL.BALANCE.RANGE is [{lowest}, {highest}]. Give two factors above 0, in order."
            )
        self.ratio = target_share / (1 - target_share)
        self.iterations, self.lowest, self.highest = iterations, lowest, highest
        self.register_buffer("factor", torch.ones(()))
        self.register_buffer("sums", torch.zeros(2))

    def forward(self, distilled: dict[str, Tensor], others: dict[str, Tensor], iteration: int) -> dict[str, Tensor]:
        """The distillation losses times the factor."""
        if iteration < self.iterations:
            self._update(distilled, others)
        factor = self.factor.clone()
        return {name: value * factor for name, value in distilled.items()}

    @torch.no_grad()
    def _update(self, distilled: dict[str, Tensor], others: dict[str, Tensor]) -> None:
        step = torch.stack([sum(losses.values()).float() for losses in (distilled, others)])  # type: ignore[union-attr]
        if comm.get_world_size() > 1:
            dist.all_reduce(step)
        self.sums += step
        own, other = self.sums.unbind()
        self.factor.copy_((self.ratio * other / own.clamp(min=1e-12)).clamp(self.lowest, self.highest))
