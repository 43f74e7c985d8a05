"""What a training loop asks of the modules of a model, whoever wrote loop and modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Recording(Protocol):
    """A module that has numbers of its own to record beside the losses."""

    def recorded_values(self) -> dict[str, Tensor]:
        """Scalars by name, on the device."""


@runtime_checkable
class FollowingOptimizer(Protocol):
    """A module that has something to do after each step of the optimizer.

    Attributes:
        follows_optimizer: whether somebody tells it of these steps.
    """

    follows_optimizer: bool

    def after_optimizer_step(self, optimizer: torch.optim.Optimizer, iteration: int) -> None:
        """Called after a step that was made.

        Args:
            iteration: of the run, from 0.
        """


class Distilling(Protocol):
    """A model around a detector, which alone is clipped, exported and shipped."""

    student: nn.Module


def student_in(model: nn.Module) -> nn.Module | None:
    """The detector inside a :class:`Distilling` model; None of any other."""
    return dict(model.named_children()).get("student")


def follow_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, iteration: Callable[[], int]) -> None:
    """Has an optimizer tell every :class:`FollowingOptimizer` of a model of each step that it makes.

    A step that loss scaling skips is not told. Call it once, before the loop.

    Args:
        iteration: says which iteration of the run is under way, from 0.
    """
    for module in model.modules():
        if isinstance(module, FollowingOptimizer):
            follow_steps(module, optimizer, iteration)


def follow_steps(module: FollowingOptimizer, optimizer: torch.optim.Optimizer, iteration: Callable[[], int]) -> None:
    """The same for one of them alone."""
    module.follows_optimizer = True
    optimizer.register_step_post_hook(lambda done, *_: module.after_optimizer_step(done, iteration()))
