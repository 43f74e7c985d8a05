"""The course of the distillation loss over a run: its factor, and the share of its gradient that the student feels.

Both multiply and nothing is skipped, so that every parameter has a gradient in every step and all processes agree.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..config.keys import Key, declare
from ..config.ranges import NOT_NEGATIVE
from ..errors import ConfigError
from ..iteration import needed_iteration, resolve_iteration
from ..structures import DecoderOutput
from .students.base import StudentOutput

NODE = "MODEL.DISTILL.SCHEDULE"
LEARNING_RATE_DROP = "lr_drop"
STEPPED = ("WarmupMultiStepLR",)  # schedules of the learning rate that read SOLVER.STEPS

declare(
    __name__,
    {
        f"{NODE}.STUDENT_FROM": Key(
            0.0,
            "before this iteration the distillation losses train adapters alone; here and below, a number below 1 is a "
            "fraction of `SOLVER.MAX_ITER`",
            NOT_NEGATIVE,
        ),
        f"{NODE}.STOP_AT": Key(0.0, "from this iteration on they count nothing; 0: never", NOT_NEGATIVE),
        f"{NODE}.STEPS": Key((), 'iterations, fractions, or `"lr_drop"` for `SOLVER.STEPS[0]`'),
        f"{NODE}.FACTORS": Key((), "what multiplies the distillation losses from each of these steps on", NOT_NEGATIVE),
    },
)


@dataclass(frozen=True)
class Schedule:
    """Iterations count from 0.

    Attributes:
        student_from: before this iteration the loss trains adapters alone (LGD, 2109.11496) [P].
        stop_at: from this iteration on the loss counts nothing; None: it counts to the end.
        steps, factors: from iteration ``steps[i]`` on the loss counts ``factors[i]`` times (SSSD, 2303.05015) [P].
    """

    student_from: int = 0
    stop_at: int | None = None
    steps: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Schedule:
        """Reads ``MODEL.DISTILL.SCHEDULE``; see docs/configs.md for the forms of an iteration.

        Raises:
            ConfigError: a step that is no iteration of the run, steps out of order, or other than one factor a step.
        """
        node = cfg.MODEL.DISTILL.SCHEDULE
        steps = tuple(_step(value, cfg) for value in node.STEPS)
        if len(steps) != len(node.FACTORS):
            raise ConfigError(
                f"MODEL.DISTILL.SCHEDULE.STEPS is {list(node.STEPS)} and FACTORS is {list(node.FACTORS)}. "
                "Give one factor for each step."
            )
        if list(steps) != sorted(steps):
            raise ConfigError(f"MODEL.DISTILL.SCHEDULE.STEPS are iterations {list(steps)}. Give them in order.")
        return cls(
            student_from=resolve_iteration(node.STUDENT_FROM, cfg.SOLVER.MAX_ITER),
            stop_at=resolve_iteration(node.STOP_AT, cfg.SOLVER.MAX_ITER) if node.STOP_AT else None,
            steps=steps,
            factors=tuple(float(value) for value in node.FACTORS),
        )

    @property
    def is_constant(self) -> bool:
        """Every iteration is like any other."""
        return self == Schedule()

    def factor(self, iteration: int | None) -> float:
        """What multiplies the loss; of an unknown iteration where all are alike.

        Raises:
            ConfigError: they are not, and it is unknown.
        """
        if self.is_constant:
            return 1.0
        iteration = needed_iteration(iteration, NODE)
        if self.stop_at is not None and iteration >= self.stop_at:
            return 0.0
        passed = sum(iteration >= step for step in self.steps)
        return self.factors[passed - 1] if passed else 1.0

    def student_share(self, iteration: int | None) -> float:
        """What multiplies the loss's gradient with respect to the student; see :meth:`factor` for the error."""
        if self.is_constant:
            return 1.0
        return float(needed_iteration(iteration, NODE) >= self.student_from)


def _step(value: float | str, cfg: CfgNode) -> int:
    """An entry of STEPS as an iteration."""
    if value == LEARNING_RATE_DROP:
        if not cfg.SOLVER.STEPS or cfg.SOLVER.LR_SCHEDULER_NAME not in STEPPED:
            raise ConfigError(
                f"MODEL.DISTILL.SCHEDULE.STEPS names '{LEARNING_RATE_DROP}', but SOLVER.STEPS is "
                f"{list(cfg.SOLVER.STEPS)} and SOLVER.LR_SCHEDULER_NAME {cfg.SOLVER.LR_SCHEDULER_NAME}, which drops "
                "at none of them. Give an iteration, or a fraction of the run below 1."
            )
        return cfg.SOLVER.STEPS[0]
    if isinstance(value, str):
        raise ConfigError(
            f"MODEL.DISTILL.SCHEDULE.STEPS holds {value!r}. Give an iteration, a fraction of the run below 1, or "
            f"'{LEARNING_RATE_DROP}' (SOLVER.STEPS[0])."
        )
    NOT_NEGATIVE.check("An entry of MODEL.DISTILL.SCHEDULE.STEPS", value)
    return resolve_iteration(value, cfg.SOLVER.MAX_ITER)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, share: float) -> Tensor:
        ctx.share = share
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.share, None


def scale_gradient(values: Tensor, share: float) -> Tensor:
    """The values themselves, whose gradient is multiplied by ``share``."""
    return values if share == 1 else _ScaleGradient.apply(values, share)


def scale_student(student: StudentOutput, share: float) -> StudentOutput:
    """What a student gave, feeling ``share`` of the gradient that comes back."""
    if share == 1:
        return student
    memory = student.memory
    if memory is not None:
        memory = dataclasses.replace(memory, tokens=scale_gradient(memory.tokens, share))
    return dataclasses.replace(
        student,
        memory=memory,
        features={name: scale_gradient(values, share) for name, values in student.features.items()},
        outputs={name: _scale_output(output, share) for name, output in student.outputs.items()},
    )


def _scale_output(output: DecoderOutput, share: float) -> DecoderOutput:
    def scale(values: Any) -> Any:
        if isinstance(values, Tensor):
            return scale_gradient(values, share)
        if isinstance(values, tuple):
            return tuple(scale(entry) for entry in values)
        if dataclasses.is_dataclass(values) and not isinstance(values, type):
            return dataclasses.replace(
                values, **{field.name: scale(getattr(values, field.name)) for field in dataclasses.fields(values)}
            )
        return values

    return scale(output)
