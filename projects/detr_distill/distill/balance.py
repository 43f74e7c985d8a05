"""Steering the weight of the distillation losses so that they make up a wanted share of the total."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from ..config.keys import Key, declare
from ..config.ranges import COUNT, Range
from ..errors import ConfigError
from ..iteration import needed_iteration

logger = logging.getLogger(__name__)


NODE = "MODEL.DISTILL.BALANCE"

declare(
    __name__,
    {
        f"{NODE}.TARGET_SHARE": Key(
            0.0,
            "share of the distillation losses in the total that a common factor is steered to; 0: weights stay as "
            "configured",
            Range(0, below=1),
        ),
        f"{NODE}.ITERATIONS": Key(1000, "iterations in which the factor is steered; then it stays", COUNT),
        f"{NODE}.RANGE": Key(
            (0.01, 100.0),
            "bounds of the factor, which multiplies the losses with their weights; `metrics.json` has it as "
            "`distill_factor`",
        ),
    },
)


class ShareBalance(nn.Module):
    """A common factor of the distillation losses, found in the first iterations of a run and kept from then on.

    The factor makes ``mean distillation / mean total`` equal to the target over the iterations seen so far. It is part
    of checkpoints: a resumed run goes on with it. SSSD (2303.05015) chooses lambda by this share, 45 % over the first
    1,000 iterations, in trial runs [P]; steering it in the run itself is ours [R].

    Args:
        target_share: in (0, 1). iterations: of the search. bounds: of the factor, the lowest and the highest.

    Raises:
        ConfigError: bounds that are not two factors in order.
    """

    factor: Tensor
    sums: Tensor

    def __init__(self, target_share: float, iterations: int, bounds: Sequence[float]):
        super().__init__()
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
            raise ConfigError(f"MODEL.DISTILL.BALANCE.RANGE is {list(bounds)}. Give two factors above 0, in order.")
        self.ratio = target_share / (1 - target_share)
        self.iterations, (self.lowest, self.highest) = iterations, bounds
        self.register_buffer("factor", torch.ones(()))
        self.register_buffer("sums", torch.zeros(2))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ShareBalance | None:
        """As ``MODEL.DISTILL.BALANCE`` says; None where no share is wanted."""
        node = cfg.MODEL.DISTILL.BALANCE
        return cls(node.TARGET_SHARE, node.ITERATIONS, node.RANGE) if node.TARGET_SHARE else None

    def forward(
        self, distilled: dict[str, Tensor], others: dict[str, Tensor], iteration: int | None
    ) -> dict[str, Tensor]:
        """The distillation losses times the factor.

        Raises:
            ConfigError: the iteration is unknown.
        """
        iteration = needed_iteration(iteration, NODE)
        if iteration < self.iterations:
            self._update(distilled, others)
        if iteration == self.iterations:
            self._tell()
        factor = self.factor.clone()
        return {name: value * factor for name, value in distilled.items()}

    def recorded_values(self) -> dict[str, Tensor]:
        """What the trainer records beside the losses."""
        return {"distill_factor": self.factor}

    def _tell(self) -> None:
        factor = self.factor.item()
        if factor in (self.lowest, self.highest):
            logger.warning(
                f"MODEL.DISTILL.BALANCE: the factor ended at {factor}, a bound of RANGE, so TARGET_SHARE is not "
                "reached. Widen RANGE, or change the losses' own weights."
            )

    @torch.no_grad()
    def _update(self, distilled: dict[str, Tensor], others: dict[str, Tensor]) -> None:
        step = torch.stack([torch.as_tensor(sum(losses.values())).float() for losses in (distilled, others)])
        if comm.get_world_size() > 1:
            dist.all_reduce(step)
        self.sums += step
        own, other = self.sums.unbind()
        self.factor.copy_((self.ratio * other / own.clamp(min=1e-12)).clamp(self.lowest, self.highest))
