"""The moving average of a module's weights: a teacher, or what is evaluated and shipped in the module's place."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class MovingAverage:
    """Keeps one module's weights as the exponential moving average of another's.

    After every optimizer step ``average = decay * average + (1 - decay) * source``; buffers, such as the running means
    of batch normalisation, are copied. With the ramp, the decay of step n is ``min(decay, (1 + n) / (10 + n))``: the
    first weights, which nothing has trained yet, are soon forgotten.

    Args:
        average: receives the weights; it may lack some of the source's. source: is trained.
        decay: below 1. ramp_up: see above.

    Attributes:
        follows_optimizer: whether somebody tells it of the optimizer's steps, see protocols.py.
    """

    def __init__(self, average: nn.Module, source: nn.Module, decay: float, ramp_up: bool):
        self.average, self.source = average, source
        self.decay, self.ramp_up = decay, ramp_up
        self.follows_optimizer = False

    @torch.no_grad()
    def restart(self) -> None:
        """Makes the average equal to the source."""
        self._blend(1.0)

    @torch.no_grad()
    def after_optimizer_step(self, optimizer: torch.optim.Optimizer, iteration: int) -> None:
        """Moves the average towards the source; to be called after every optimizer step.

        A step that loss scaling skips is none: where the optimizer is fused it runs and says so on the device.

        Args:
            iteration: of the run, from 0.
        """
        self.follows_optimizer = True
        decay = min(self.decay, (1 + iteration) / (10 + iteration)) if self.ramp_up else self.decay
        skipped: Tensor | None = vars(optimizer).get("found_inf")
        self._blend(1 - decay if skipped is None else (1 - decay) * (1 - skipped))

    def _blend(self, share: float | Tensor) -> None:
        """``share`` of the source, the rest of the average."""
        for mine, its in _matching(self.average.named_parameters(), self.source.named_parameters()):
            mine.lerp_(its.to(mine.dtype), share)
        for mine, its in _matching(self.average.named_buffers(), self.source.named_buffers()):
            mine.copy_(its)


def _matching(
    mine: Iterator[tuple[str, Tensor]], theirs: Iterator[tuple[str, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tensors of the average, each with the source's of the same name; the source may have more."""
    found = dict(theirs)
    return ((value, found[name]) for name, value in mine)
