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
from ..config.ranges import PERIOD, Range
from ..errors import ConfigError
from ..iteration import needed_iteration

logger = logging.getLogger(__name__)


NODE = "MODEL.DISTILL.BALANCE"

SMOOTHING = 25  # steps over which the losses' ratio is averaged, and in which a share that was missed is made good
TOLD_AT = (100, 1000)  # iterations at which a factor at a bound is told, beside the last that is steered

declare(
    __name__,
    {
        f"{NODE}.TARGET_SHARE": Key(
            0.0,
            "mean of `distill_share`, the share of the distillation losses in the total, over the iterations in which "
            "a common factor of theirs is steered (within 0.01 from 200 iterations on, `SCHEDULE` apart, where the "
            "losses do not scatter too widely: docs/methods.md); 0: weights "
            "stay as configured",
            Range(0, below=1),
        ),
        f"{NODE}.ITERATIONS": Key(
            0,
            "iterations from the start in which the factor is steered; then it stays, and the share goes its own way; "
            "0: the whole run",
            PERIOD,
        ),
        f"{NODE}.RANGE": Key(
            (0.01, 100.0),
            "bounds of the factor, which multiplies the losses with their weights; `metrics.json` has it as "
            "`distill_factor`",
        ),
    },
)


class ShareBalance(nn.Module):
    """A common factor of the distillation losses that gives them a share of the total.

    ``f = a / (1 - a) * mean(others / distilled)``, a geometric mean over about the last ``SMOOTHING`` steps, so that
    the factor follows the losses' course and not each batch. ``a`` is the target plus what the steps so far have
    missed, spread over as many: a mean lags behind the course, which alone would leave the share off the target for as
    long as the losses have a trend. So the mean share of the steps is the target, and that of any stretch is near
    it. The state is part of checkpoints: a resumed run goes on with it. SSSD (2303.05015) chooses lambda by this share,
    45 % over the first 1,000 iterations, in trial runs [P]; steering it in the run itself is ours [R].

    Args:
        target_share: in (0, 1). iterations: in which the factor is steered; 0: always. bounds: of the factor, the
            lowest and the highest. run: iterations of the whole training; 0: not known.

    Raises:
        ConfigError: bounds that are not two factors in order.
    """

    factor: Tensor
    ratio: Tensor
    missed: Tensor
    steps: Tensor

    def __init__(self, target_share: float, iterations: int, bounds: Sequence[float], run: int = 0):
        super().__init__()
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
            raise ConfigError(f"MODEL.DISTILL.BALANCE.RANGE is {list(bounds)}. Give two factors above 0, in order.")
        self.target = target_share
        self.iterations, (self.lowest, self.highest) = iterations, bounds
        self.last = min(filter(None, (iterations, run)), default=0) - 1  # iteration that is steered; -1: not known
        self.register_buffer("factor", torch.ones(()))
        self.register_buffer("ratio", torch.zeros(()))  # of the other losses to those of distillation, a logarithm
        self.register_buffer("missed", torch.zeros(()))  # of the target, summed over the steps
        self.register_buffer("steps", torch.zeros(()))  # that had something to distil

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ShareBalance | None:
        """As ``MODEL.DISTILL.BALANCE`` says; None where no share is wanted."""
        node = cfg.MODEL.DISTILL.BALANCE
        return cls(node.TARGET_SHARE, node.ITERATIONS, node.RANGE, cfg.SOLVER.MAX_ITER) if node.TARGET_SHARE else None

    def forward(
        self, distilled: dict[str, Tensor], others: dict[str, Tensor], iteration: int | None
    ) -> dict[str, Tensor]:
        """The distillation losses times the factor.

        Raises:
            ConfigError: the iteration is unknown.
        """
        iteration = needed_iteration(iteration, NODE)
        if not self.iterations or iteration < self.iterations:
            self._update(distilled, others)
            if iteration == self.last or iteration in TOLD_AT:
                self._tell(iteration)
        factor = self.factor.clone()
        return {name: value * factor for name, value in distilled.items()}

    def recorded_values(self) -> dict[str, Tensor]:
        """What the trainer records beside the losses."""
        return {"distill_factor": self.factor}

    def _tell(self, iteration: int) -> None:
        factor = self.factor.item()
        if not self.lowest < factor < self.highest:
            logger.warning(
                f"MODEL.DISTILL.BALANCE: at iteration {iteration} the factor is {factor:.6g}, a bound of RANGE, and "
                f"TARGET_SHARE {self.target} is not reached while it stays there. Widen RANGE, or change the losses' "
                "own weights."
            )

    @torch.no_grad()
    def _update(self, distilled: dict[str, Tensor], others: dict[str, Tensor]) -> None:
        step = torch.stack([torch.as_tensor(sum(losses.values())).float() for losses in (distilled, others)])
        if comm.get_world_size() > 1:
            dist.all_reduce(step)
        own, other = step.unbind()
        finite = (own + other).isfinite()  # of a step that the trainer leaves out nothing is kept
        known = (own > 0) & (other > 0) & finite
        self.steps += known
        ratio = self.ratio.lerp((other / own).log(), (1 / self.steps).clamp(min=1 / SMOOTHING))
        self.ratio.copy_(torch.where(known, ratio, self.ratio))
        aim = self.target + self.missed / SMOOTHING
        self.factor.copy_((aim / (1 - aim) * self.ratio.exp()).clamp(self.lowest, self.highest))
        share = self.factor * own / (self.factor * own + other).clamp(min=1e-12)
        # What cannot be made good, where a bound is reached or there is nothing to distil, is not remembered for ever.
        most = SMOOTHING * min(self.target, 1 - self.target) / 2
        self.missed.add_(torch.where(finite, self.target - share, 0.0)).clamp_(-most, most)
