"""Functions by which detectors were reached before :class:`Student`; they go on working where they can."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from torch import nn

from ...errors import ConfigError
from .base import StudentStep, student_of

if TYPE_CHECKING:
    from ..teachers.base import Teacher


def start_student(detector: nn.Module, batched_inputs: list[dict]) -> StudentStep:
    """Now ``student_of(detector).start(batched_inputs)``."""
    _warn("start_student()", "student_of(detector).start()")
    return student_of(detector).start(batched_inputs)


def feature_channels(detector: nn.Module) -> Mapping[str, int]:
    """Now ``student_of(detector).feature_channels``."""
    _warn("feature_channels()", "student_of(detector).feature_channels")
    return student_of(detector).feature_channels


def count_classes(detector: nn.Module) -> int:
    """Now ``student_of(detector).num_classes``."""
    _warn("count_classes()", "student_of(detector).num_classes")
    return student_of(detector).num_classes


def network_of(teacher: Teacher) -> nn.Module:
    """Now ``teacher.detector``, which is None for a teacher that asks no detector."""
    _warn("network_of()", "teacher.detector")
    return teacher if teacher.detector is None else teacher.detector


def run_student(*arguments: Any) -> NoReturn:
    """Gone: matchings go to the step's ledger, which it did not take."""
    raise ConfigError(
        "run_student() and select_images() are methods now: write a Student (start, finish, select) and register it "
        "with student_for() of detr_distill.distill.students (docs/extending.md)."
    )


def select_images(*arguments: Any) -> NoReturn:
    """Gone, as :func:`run_student`."""
    run_student()


def _register(architecture: type) -> NoReturn:
    raise ConfigError(
        f"{architecture.__name__} is registered for a function of detr_distill.distill.students; these have become one "
        "class. Write a Student (start, finish, select) and register it with student_for() (docs/extending.md)."
    )


for _function in (start_student, feature_channels, count_classes, run_student, select_images):
    vars(_function)["register"] = _register


def _warn(earlier: str, now: str) -> None:
    warnings.warn(f"{earlier} of detr_distill.distill is now {now}.", FutureWarning, stacklevel=3)
