"""Running any detector as a student: its own training forward in two halves, with its inner tensors kept.

A detector is reached through functions that dispatch on its class: ``start_student`` runs it up to the feature maps
that its head reads, ``run_student`` runs the rest from given maps, ``feature_channels`` names those maps, and
``select_images`` takes some of a step's images for a second run. Register all four for a new one, as in
``@start_student.register(MyDetector)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

from torch import Tensor, nn

from ...detr.supervision.assignment import Cost
from ...errors import ConfigError
from ...structures import DecoderOutput, Memory, Pairs, QueryGroup


@dataclass
class StudentStep:
    """A training batch, half way through the student.

    Attributes:
        batched_inputs: detectron2 dicts with ``image`` and ``instances``.
        features: name -> (B, C, height, width), the maps that the head reads, fine to coarse.
        image_size: (height, width) of the padded batch, in pixels.
        context: what the detector's second half needs beside the features.
    """

    batched_inputs: list[dict]
    features: dict[str, Tensor] = field(default_factory=dict)
    image_size: tuple[int, int] = (0, 0)
    context: Any = None


@dataclass
class StudentOutput:
    """What a student's training forward gives.

    Attributes:
        features: name -> (B, C, height, width). outputs: query group name -> decoder output; of a convolutional
            detector its predictions as the group ``own``, where a matcher asks for them.
        memory: encoder output, None for a detector without one.
        costs: matchings to be solved together with those of the step.
        finish: from the solved matchings of ``costs`` to the detection losses.
        step: the batch that this came from.
    """

    features: dict[str, Tensor]
    outputs: dict[str, DecoderOutput] = field(default_factory=dict)
    memory: Memory | None = None
    costs: list[Cost] = field(default_factory=list)
    finish: Callable[[list[Pairs]], dict[str, Tensor]] = lambda pairs: {}
    step: StudentStep | None = None


@singledispatch
def start_student(detector: nn.Module, batched_inputs: list[dict]) -> StudentStep:
    """The first half of a detector's training forward: the images' feature maps.

    Args:
        detector: the student. batched_inputs: detectron2 dicts with ``image`` and ``instances``.

    Raises:
        ConfigError: no function is registered for the detector's class.
    """
    raise ConfigError(_not_a_student(type(detector), missing="start_student"))


@singledispatch
def run_student(
    detector: nn.Module, step: StudentStep, groups: list[QueryGroup], capture: frozenset[str]
) -> StudentOutput:
    """The second half: from ``step.features``, which may be another network's, to detections and losses.

    Args:
        detector: the student. step: of :func:`start_student`.
        groups: query groups to decode beside the detector's own. capture: what to keep beside, see structures/.

    Raises:
        ConfigError: no function is registered for the detector's class.
    """
    raise ConfigError(_not_a_student(type(detector), missing="run_student"))


@singledispatch
def select_images(detector: nn.Module, step: StudentStep, images: slice) -> StudentStep:
    """The part of a step that belongs to some of its images."""
    raise ConfigError(_not_a_student(type(detector), missing="select_images"))


@singledispatch
def feature_channels(detector: nn.Module) -> dict[str, int]:
    """Names and channels of the maps that :func:`start_student` gives, in order."""
    raise ConfigError(_not_a_student(type(detector), missing="feature_channels"))


def network_of(teacher: nn.Module) -> nn.Module:
    """The detector that a teacher asks, or the teacher itself where there is none."""
    detector = getattr(teacher, "detector", None)
    return teacher if detector is None else detector


def check_student(architecture: type[nn.Module]) -> type[nn.Module]:
    """The class itself when it can be a student; raises ConfigError before it is built otherwise.

    A class that overrides ``forward`` would not be run as its author wrote it, so it must be registered itself.
    """
    known = next((cls for cls in architecture.__mro__ if cls in run_student.registry), object)
    if known is object:
        raise ConfigError(_not_a_student(architecture, missing="run_student"))
    if architecture.forward is not known.forward:  # type: ignore[attr-defined]
        raise ConfigError(_not_a_student(architecture, f"overrides the forward() of {known.__name__}"))
    return architecture


def _not_a_student(architecture: type, reason: str = "", missing: str = "") -> str:
    known = sorted(cls.__name__ for cls in run_student.registry if cls is not object)
    return (
        f"MODEL.DISTILL.STUDENT_ARCHITECTURE: {architecture.__name__} cannot be a student here, it "
        f"{reason or f'has no {missing}() registered'}. Known, with their subclasses: {', '.join(known)}. Register "
        f"start_student, run_student, feature_channels and select_images of detr_distill.distill.students for "
        f"{architecture.__name__} (docs/extending.md)."
    )


def _select(step: StudentStep, images: slice, context: Any) -> StudentStep:
    features = {name: values[images] for name, values in step.features.items()}
    return dataclasses.replace(step, batched_inputs=step.batched_inputs[images], features=features, context=context)
