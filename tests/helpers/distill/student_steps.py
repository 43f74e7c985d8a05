"""A student's two halves, one after the other, outside of a whole model."""

from __future__ import annotations

import dataclasses

from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.detr.supervision.matchings import Matchings
from detr_distill.distill.students import Student, StudentOutput, StudentStep, student_of

from torch import nn


def start_step(detector: nn.Module, inputs: list[dict]) -> tuple[Student, StudentStep]:
    """The detector as a student, and the first half of its step with the ground truth."""
    student = student_of(detector)
    return student, dataclasses.replace(student.start(inputs), ground_truth=read_ground_truth(inputs, "cpu"))


def whole_step(
    detector: nn.Module, inputs: list[dict], capture: frozenset[str] = frozenset()
) -> tuple[StudentStep, StudentOutput]:
    """Both halves on the detector's own maps, its matchings solved."""
    student, step = start_step(detector, inputs)
    matchings = Matchings()
    output = student.finish(step, [], capture, matchings)
    matchings.solve()
    return step, output
