"""Parameters that stay as they are in the first iterations of a run."""

from __future__ import annotations

import re
from collections.abc import Sequence

from detectron2.config import CfgNode
from torch import nn

from ..config.ranges import NOT_NEGATIVE
from ..errors import ConfigError
from ..iteration import resolve_iteration


class ParameterFreeze:
    """Drops the gradients of chosen parameters before the step, until an iteration.

    The backward pass runs as always, so that all processes exchange the same gradients; a parameter without a gradient
    is left alone by the optimizer, momentum and weight decay included. Source: LGD (2109.11496) [C].

    Args:
        frozen: (parameters, iteration from which they train) pairs.
    """

    def __init__(self, frozen: list[tuple[list[nn.Parameter], int]]):
        self.frozen = frozen

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> ParameterFreeze:
        """Reads ``SOLVER.FREEZE``.

        Raises:
            ConfigError: a malformed pair, or an expression that is found in no trainable parameter's name.
        """
        return cls([_resolve(pair, model, cfg.SOLVER.MAX_ITER) for pair in cfg.SOLVER.FREEZE])

    def __call__(self, iteration: int) -> None:
        """Before the step of an iteration, counted from 0."""
        for parameters, until in self.frozen:
            if iteration < until:
                for parameter in parameters:
                    parameter.grad = None


def _resolve(pair: Sequence, model: nn.Module, max_iter: int) -> tuple[list[nn.Parameter], int]:
    try:
        expression, until = pair
        pattern, until = re.compile(expression), float(until)
    except (TypeError, ValueError, re.error) as error:
        raise ConfigError(
            f"SOLVER.FREEZE holds {pair!r} ({error}). Expected [regular expression, iteration] pairs, for example "
            '[["backbone.bottom_up", 20000]]; below 1 the iteration is a fraction of SOLVER.MAX_ITER.'
        ) from error
    NOT_NEGATIVE.check(f'SOLVER.FREEZE: the iteration of "{expression}"', until)
    parameters = [value for name, value in model.named_parameters() if value.requires_grad and pattern.search(name)]
    if not parameters:
        raise ConfigError(
            f'SOLVER.FREEZE: "{expression}" is found in no trainable parameter. Correct the expression or remove the '
            "pair."
        )
    return parameters, resolve_iteration(until, max_iter)
