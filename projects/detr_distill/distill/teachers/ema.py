"""A teacher that is the moving average of its student, as in OD-DETR (2406.05791)."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import nn

from ...averaging import MovingAverage
from ...config.keys import key
from ...config.ranges import Range
from ...errors import ConfigError
from ...iteration import needed_iteration
from ...registry import TEACHER_REGISTRY
from ..classes import same_classes
from ..knowledge import Knowledge
from ..side import ReadThrough
from ..students.base import Student, StudentStep, student_of
from .base import Teacher


@TEACHER_REGISTRY.register()
class EmaTeacher(ReadThrough, Teacher):
    """The student's exponential moving average; it needs no weights of its own.

    See :class:`MovingAverage`. Source: OD-DETR teaches a DETR by its own average [P]; ``decay`` and its ramp are
    customary values [R].

    The average is part of ``state_dict``, so that a resumed run goes on exactly, has no gradient and hence no place in
    the optimizer or in what processes exchange, and is never in training mode. Loaded weights that hold no average
    start it anew from the student.

    Args:
        student: any detector that can teach.
    """

    reader: Student

    decay: float = key(0.9997, "of `EmaTeacher`, the moving average of the student, a step", Range(0, below=1))
    ramp_up: bool = key(True, "at step n the decay is at most `(1 + n) / (10 + n)`")

    @configurable
    def __init__(self, *, student: Student, **settings: Any):
        super().__init__(**settings)
        self.average = student.detecting_copy().eval().requires_grad_(False)
        self.classes = same_classes(student.num_classes)
        self.reader = student_of(self.average)
        self._mover = MovingAverage(self.average, student.detector, self.decay, self.ramp_up)
        self._seen: int | None = None  # iteration of the last look
        self.follows_optimizer = False
        self.register_load_state_dict_post_hook(_start_where_absent)

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student) -> dict[str, Any]:
        given = cfg.MODEL.DISTILL.TEACHER
        for name in ("CONFIG_FILE", "WEIGHTS", "OPTS", "CLASS_NAMES"):
            if given[name]:
                raise ConfigError(
                    f"MODEL.DISTILL.TEACHER.{name} is {given[name]!r}, but EmaTeacher is the student's own average and "
                    "reads no other network. Remove the key, or set TEACHER.NAME FrozenDetector."
                )
        return {**cls.read_keys(cfg), "student": student}

    @property
    def detector(self) -> nn.Module:
        return self.average

    def train(self, mode: bool = True) -> EmaTeacher:
        """The average stays in eval mode whatever ``mode`` says."""
        super().train(mode)
        self.average.eval()
        return self

    @torch.no_grad()
    def forward(self, step: StudentStep, capture: frozenset[str]) -> Knowledge:
        """Looks at the student's images, and a DETR at the ground truth too; not at the student's features.

        Raises:
            ConfigError: a second iteration has come and nothing told of the optimizer's steps, so it would not move.
        """
        iteration = needed_iteration(step.iteration, "MODEL.DISTILL.TEACHER.NAME EmaTeacher")
        if not self.follows_optimizer and self._seen not in (None, iteration):
            raise ConfigError(
                "MODEL.DISTILL.TEACHER.NAME EmaTeacher: the student has been trained, and the average was not told. "
                "After optimizer.step() call model.teacher.after_optimizer_step(optimizer, iteration), or once "
                "detr_distill.follow_optimizer(model, optimizer, ...) before the loop; detectron2's trainer does it by "
                "itself."
            )
        self._seen = iteration
        return self.reader.know(step, self.classes, capture)

    def restart(self) -> None:
        """Makes the average equal to the student."""
        self._mover.restart()

    def after_optimizer_step(self, optimizer: torch.optim.Optimizer, iteration: int) -> None:
        """Moves the average towards the student; to be called after every optimizer step."""
        self.follows_optimizer = True
        self._mover.after_optimizer_step(optimizer, iteration)


def _start_where_absent(teacher: EmaTeacher, incompatible: Any) -> None:
    """After weights were loaded: those of a plain detector, or of a run without this teacher, hold no average."""
    own = tuple(teacher.state_dict())
    if any(name.endswith(own) for name in incompatible.missing_keys):
        teacher.restart()
