"""A teacher that is the moving average of its student, as in OD-DETR (2406.05791)."""

from __future__ import annotations

import copy

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ...errors import ConfigError
from ...iteration import current_iteration
from ...registry import TEACHER_REGISTRY
from ..classes import match_classes
from ..students.classes import count_classes
from .frozen import FrozenDetector


@TEACHER_REGISTRY.register()
class EmaTeacher(FrozenDetector):
    """The student's exponential moving average; it needs no weights of its own.

    After every optimizer step ``average = decay * average + (1 - decay) * student``; buffers, such as the running
    means of batch normalisation, are copied. Source: OD-DETR teaches a DETR by its own average [P]; ``decay`` and its
    ramp, ``min(decay, (1 + n) / (10 + n))`` at step n, are customary values [R].

    The average is part of ``state_dict``, so that a resumed run goes on exactly, has no gradient and hence no place in
    the optimizer or in what processes exchange, and is never in training mode. Loaded weights that hold no average
    start it anew from the student.

    Args:
        student: any detector that can teach. num_classes: that it predicts.
        decay: in [0, 1). ramp_up: a smaller decay in the first steps.
    """

    @configurable
    def __init__(self, *, student: nn.Module, num_classes: int, decay: float, ramp_up: bool = True):
        average = copy.deepcopy(student)
        if hasattr(average, "training_groups"):
            average.training_groups = nn.ModuleDict()  # of the training step alone
        super().__init__(detector=average, classes=match_classes(None, None, num_classes, num_classes))
        self.average = average
        self.decay, self.ramp_up = decay, ramp_up
        # The student is a module of its own beside its teacher: a list is not searched for parameters.
        self._student = [student]
        self.register_load_state_dict_post_hook(_start_where_absent)

    @classmethod
    def from_config(cls, cfg, student=None):
        node, given = cfg.MODEL.DISTILL.EMA_TEACHER, cfg.MODEL.DISTILL.TEACHER
        for key in ("CONFIG_FILE", "WEIGHTS", "OPTS", "CLASS_NAMES"):
            if given[key]:
                raise ConfigError(
                    f"MODEL.DISTILL.TEACHER.{key} is {given[key]!r}, but EmaTeacher is the student's own average and "
                    "reads no other network. Remove the key, or set TEACHER.NAME FrozenDetector."
                )
        return {
            "student": student,
            "num_classes": count_classes(student),
            "decay": node.DECAY,
            "ramp_up": node.RAMP_UP,
        }

    def _apply(self, fn, recurse: bool = True):
        # The average is a submodule, which the base class of all modules moves.
        return nn.Module._apply(self, fn, recurse)

    @torch.no_grad()
    def restart(self) -> None:
        """Makes the average equal to the student."""
        self._blend(1.0)

    @torch.no_grad()
    def after_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Moves the average towards the student; the trainer calls it after every optimizer step.

        A step that loss scaling skips is none: where the optimizer is fused it runs and says so on the device.
        """
        iteration = current_iteration()
        decay = min(self.decay, (1 + iteration) / (10 + iteration)) if self.ramp_up else self.decay
        skipped = getattr(optimizer, "found_inf", None)
        self._blend(1 - decay if skipped is None else (1 - decay) * (1 - skipped))

    def _blend(self, share: float | Tensor) -> None:
        """``share`` of the student, the rest of the average."""
        for mine, its in self._matching("named_parameters"):
            mine.lerp_(its.to(mine.dtype), share)
        for mine, its in self._matching("named_buffers"):
            mine.copy_(its)

    def _matching(self, kind: str) -> list[tuple[Tensor, Tensor]]:
        theirs = dict(getattr(self._student[0], kind)())
        return [(mine, theirs[name]) for name, mine in getattr(self.average, kind)()]


def _start_where_absent(teacher: nn.Module, incompatible) -> None:
    """After weights were loaded: those of a plain detector, or of a run without this teacher, hold no average."""
    own = tuple(teacher.state_dict())
    if any(name.endswith(own) for name in incompatible.missing_keys):
        teacher.restart()  # type: ignore[operator]
