"""A teacher that is the moving average of its student, as in OD-DETR (2406.05791)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

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

    After every optimizer step ``average = decay * average + (1 - decay) * student``; buffers, such as the running
    means of batch normalisation, are copied. Source: OD-DETR teaches a DETR by its own average [P]; ``decay`` and its
    ramp, ``min(decay, (1 + n) / (10 + n))`` at step n, are customary values [R].

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
        # The student is a module of its own beside its teacher, and a Student is no module.
        self._student = student
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

    @torch.no_grad()
    def restart(self) -> None:
        """Makes the average equal to the student."""
        self._blend(1.0)

    @torch.no_grad()
    def after_optimizer_step(self, optimizer: torch.optim.Optimizer, iteration: int) -> None:
        """Moves the average towards the student; to be called after every optimizer step.

        A step that loss scaling skips is none: where the optimizer is fused it runs and says so on the device.

        Args:
            iteration: of the run, from 0.
        """
        self.follows_optimizer = True
        decay = min(self.decay, (1 + iteration) / (10 + iteration)) if self.ramp_up else self.decay
        skipped: Tensor | None = vars(optimizer).get("found_inf")
        self._blend(1 - decay if skipped is None else (1 - decay) * (1 - skipped))

    def _blend(self, share: float | Tensor) -> None:
        """``share`` of the student, the rest of the average."""
        student = self._student.detector
        for mine, its in _matching(self.average.named_parameters(), student.named_parameters()):
            mine.lerp_(its.to(mine.dtype), share)
        for mine, its in _matching(self.average.named_buffers(), student.named_buffers()):
            mine.copy_(its)


def _matching(
    mine: Iterator[tuple[str, Tensor]], theirs: Iterator[tuple[str, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tensors of the average, each with the student's of the same name; the student may have more."""
    found = dict(theirs)
    return ((value, found[name]) for name, value in mine)


def _start_where_absent(teacher: EmaTeacher, incompatible: Any) -> None:
    """After weights were loaded: those of a plain detector, or of a run without this teacher, hold no average."""
    own = tuple(teacher.state_dict())
    if any(name.endswith(own) for name in incompatible.missing_keys):
        teacher.restart()
