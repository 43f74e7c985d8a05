"""Running any detector as a student: its own forward, with extra query groups and with its inner tensors kept.

A detector is reached through ``run_student``, which dispatches on its class; register a function for a new one:
``@run_student.register(MyDetector)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, singledispatch

from torch import Tensor, nn

from ..detr import DetrDetector
from ..detr.assignment import Cost
from ..errors import ConfigError
from ..structures import DecoderOutput, Memory, Pairs, QueryGroup


@dataclass
class StudentOutput:
    """What a student's training forward gives.

    Attributes:
        features: name -> (B, C, height, width). outputs: query group name -> decoder output.
        memory: encoder output, None for a detector without one.
        costs: matchings to be solved together with those of the step.
        finish: from the solved matchings of ``costs`` to the detection losses.
    """

    features: dict[str, Tensor]
    outputs: dict[str, DecoderOutput] = field(default_factory=dict)
    memory: Memory | None = None
    costs: list[Cost] = field(default_factory=list)
    finish: Callable[[list[Pairs]], dict[str, Tensor]] = lambda pairs: {}


@singledispatch
def run_student(
    detector: nn.Module, batched_inputs: list[dict], groups: list[QueryGroup], capture: frozenset[str]
) -> StudentOutput:
    """The training forward of a detector.

    Args:
        detector: the student. batched_inputs: detectron2 dicts with ``image`` and ``instances``.
        groups: query groups to decode beside the detector's own. capture: attention maps to keep.

    Raises:
        ConfigError: no function is registered for the detector's class.
    """
    raise ConfigError(_not_a_student(type(detector)))


def check_student(architecture: type[nn.Module]) -> type[nn.Module]:
    """The class itself when it can be a student; raises ConfigError before it is built otherwise."""
    if run_student.dispatch(architecture) is run_student.dispatch(object):
        raise ConfigError(_not_a_student(architecture))
    return architecture


def _not_a_student(architecture: type) -> str:
    known = sorted(cls.__name__ for cls in run_student.registry if cls is not object)
    return (
        f"MODEL.DISTILL.STUDENT_ARCHITECTURE: {architecture.__name__} cannot be a student, no training forward is "
        f"registered for it. Known: {', '.join(known)}. Add one with "
        f"detr_distill.distill.students.run_student.register({architecture.__name__})."
    )


@run_student.register
def _run_detr(
    detector: DetrDetector, batched_inputs: list[dict], groups: list[QueryGroup], capture: frozenset[str]
) -> StudentOutput:
    images = detector.preprocess(batched_inputs)
    targets = detector.targets(batched_inputs, images)
    features = detector.backbone(images.tensor)
    memory = detector.encode(features, images)
    groups = [*detector.query_groups(memory, targets), *groups]
    outputs = detector.decode(memory, groups, capture)
    supervised = detector.supervised(outputs, groups, memory, targets)
    costs = detector.costs(supervised)
    return StudentOutput(features, outputs, memory, costs, finish=partial(detector.losses, supervised))
