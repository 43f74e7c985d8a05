"""A detector in two halves, with its inner tensors kept: the interface, and what passes through it."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from ...detr.supervision.criterion import SetCriterion
from ...detr.supervision.matchings import Matchings
from ...errors import ConfigError
from ...structures import DecoderOutput, GroundTruth, Memory, QueryGroup
from ...structures.levels import memory_maps
from ..classes import ClassMap
from ..knowledge import Knowledge
from ..side import MAPS, Side

Maps = dict[str, Tensor]  # (B, C, height, width) by name
Groups = list[QueryGroup]
Capture = frozenset[str]


@dataclass
class StudentStep:
    """A training batch, half way through the student.

    Attributes:
        batched_inputs: detectron2 dicts with ``image`` and ``instances``.
        features: name -> (B, C, height, width), the maps that the head reads, fine to coarse.
        image_size: (height, width) of the padded batch, in pixels.
        context: what the detector's second half needs beside the features.
        ground_truth: of the images; None before it was read. iteration: from 0; None where nobody said which it is.
    """

    batched_inputs: list[dict]
    features: dict[str, Tensor] = field(default_factory=dict)
    image_size: tuple[int, int] = (0, 0)
    context: Any = None
    ground_truth: GroundTruth | None = None
    iteration: int | None = None

    def select(self, images: slice) -> StudentStep:
        """The part of some of the images; the context stays as it is."""
        return dataclasses.replace(
            self,
            batched_inputs=self.batched_inputs[images],
            features={name: values[images] for name, values in self.features.items()},
            ground_truth=None if self.ground_truth is None else self.ground_truth.select(images),
        )


@dataclass
class StudentOutput:
    """What a student's training forward gives.

    Attributes:
        features: name -> (B, C, height, width). outputs: query group name -> decoder output; of a convolutional
            detector its predictions as the group ``own``, where a matcher asks for them.
        memory: encoder output, None for a detector without one.
        losses: the detection losses, once the step's matchings are solved.
        step: the batch that this came from.
    """

    features: dict[str, Tensor]
    outputs: dict[str, DecoderOutput] = field(default_factory=dict)
    memory: Memory | None = None
    losses: Callable[[], dict[str, Tensor]] = dict
    step: StudentStep | None = None

    @cached_property
    def maps(self) -> dict[str, Tensor]:
        """All maps by name: the features, and of an encoder's memory ``memory0``, ``memory1``, ..."""
        return {**self.features, **memory_maps(self.memory)}

    def select(self, images: slice) -> StudentOutput:
        """What some of the images gave, as losses read it."""
        return StudentOutput(
            features={name: values[images] for name, values in self.features.items()},
            outputs={name: output.select(images) for name, output in self.outputs.items()},
            memory=None if self.memory is None else self.memory.select(images),
            step=None if self.step is None else self.step.select(images),
        )


class Student(Side, ABC):
    """Runs a detector of one kind; registered for its class by :func:`student_for`.

    The detector itself is left as it is, so that its checkpoint is the plain detector's.

    Args:
        detector: with its parameters and buffers, in training or in eval mode.

    Attributes:
        keeps: what can be kept of the second half beside its usual output, see structures/.
        samples_by_labels: its predictions in training are of regions that it chooses by the objects.
    """

    keeps: ClassVar[frozenset[str]] = frozenset()
    samples_by_labels: ClassVar[bool] = False

    def __init__(self, detector: nn.Module):
        self.detector = detector

    @property
    def gives(self) -> frozenset[str]:
        return self.keeps | {MAPS}

    @property
    def name(self) -> str:
        return type(self.detector).__name__

    @property
    def backbone(self) -> nn.Module | None:
        """The part that a frozen teacher may bring into the form that runs fastest; None: nothing is known of one."""
        return None

    @property
    def criterion(self) -> SetCriterion | None:
        """What assigns objects to queries, one each, and compares them; None for a detector of another kind."""
        return None

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """K: the classes that the detector predicts."""

    @property
    @abstractmethod
    def feature_channels(self) -> Mapping[str, int]:
        """Names and channels of the maps that :meth:`start` gives, in order."""

    @property
    def feature_strides(self) -> Mapping[str, int]:
        """Strides of these maps in pixels, of those for which it is known."""
        return {}

    @abstractmethod
    def start(self, batched_inputs: list[dict]) -> StudentStep:
        """The first half of the detector's training forward: up to the maps that its head reads."""

    def place(self, step: StudentStep) -> StudentStep:
        """The step with its objects' corners in the pixels of :attr:`StudentStep.image_size`, where losses look."""
        return step

    def label(self, step: StudentStep, truth: GroundTruth) -> StudentStep:
        """The step with objects for all of its images, those included that nobody has labelled."""
        return dataclasses.replace(step, ground_truth=truth)

    def shown_by_maps(self, step: StudentStep) -> StudentStep:
        """The step with its images as the maps show them, for a teacher whose maps are to lie on them."""
        return step

    @abstractmethod
    def finish(
        self, step: StudentStep, groups: Groups, capture: Capture, matchings: Matchings, features: Maps | None = None
    ) -> StudentOutput:
        """The second half, to predictions and detection losses.

        Args:
            step: of :meth:`start`, with its ground truth. groups: query groups to decode beside the detector's own.
            capture: what to keep beside, see structures/. matchings: the ledger of the step.
            features: another network's maps for the head to read, of the names and shapes of ``step.features``.
        """

    @abstractmethod
    def select(self, context: Any, images: slice) -> Any:
        """What belongs to some of the images of :attr:`StudentStep.context`."""

    def know(self, step: StudentStep, classes: ClassMap | None, capture: frozenset[str]) -> Knowledge:
        """What the detector, trained and in eval mode, knows of a batch as a teacher: its maps at least.

        Args:
            step: with images in the detector's own channel order. classes: how its class list relates to the
                student's. capture: what to keep beside, see structures/.
        """
        return Knowledge(features=self.start(step.batched_inputs).features)

    def detecting_copy(self) -> nn.Module:
        """A copy of the detector without what training alone needs."""
        return copy.deepcopy(self.detector)


def take_images(student: Student, step: StudentStep, images: slice) -> StudentStep:
    """The part of a step that belongs to some of its images, with that of its context."""
    return dataclasses.replace(step.select(images), context=student.select(step.context, images))


_STUDENTS: dict[type[nn.Module], type[Student]] = {}


def student_for(*architectures: type[nn.Module]) -> Callable[[type[Student]], type[Student]]:
    """Decorates the :class:`Student` of some detectors' classes; raises ConfigError where it lacks a method."""

    def register(student: type[Student]) -> type[Student]:
        _check_complete(student)
        _STUDENTS.update(dict.fromkeys(architectures, student))
        return student

    return register


def _check_complete(student: type) -> None:
    if not (isinstance(student, type) and issubclass(student, Student)):
        raise ConfigError(f"student_for(): {student!r} is no Student. Let it inherit from {__name__}.Student.")
    undefined = ", ".join(f"{name}()" for name in sorted(student.__abstractmethods__))
    if undefined:
        raise ConfigError(f"{student.__name__} does not define {undefined}; see {__name__}.Student.")


def student_of(detector: nn.Module) -> Student:
    """The detector as a student, or to be read as a teacher.

    Raises:
        ConfigError: no :class:`Student` is registered for its class.
    """
    return find_student(type(detector))[1](detector)


def find_student(architecture: type[nn.Module]) -> tuple[type[nn.Module], type[Student]]:
    """The nearest class for which a :class:`Student` is registered, and that."""
    for base in architecture.__mro__:
        if base in _STUDENTS:
            return base, _STUDENTS[base]
    raise ConfigError(_not_a_student(architecture, "no Student is registered for it"))


def known_students() -> list[str]:
    """Names of the detectors that can be students, and teachers by their maps."""
    return sorted(architecture.__name__ for architecture in _STUDENTS)


def check_student(architecture: type[nn.Module]) -> type[nn.Module]:
    """The class itself when it can be a student; raises ConfigError before it is built otherwise.

    A class that overrides ``forward`` would not be run as its author wrote it, so it must be registered itself.
    """
    known, _ = find_student(architecture)
    if architecture.forward is not known.forward:
        raise ConfigError(_not_a_student(architecture, f"it overrides the forward() of {known.__name__}"))
    return architecture


def _not_a_student(architecture: type, reason: str) -> str:
    name, known = architecture.__name__, ", ".join(known_students())
    return (
        f"MODEL.DISTILL.STUDENT_ARCHITECTURE: {name} cannot be a student here, {reason}. Known, with their subclasses: "
        f"{known}. Write a Student for {name} and register it with student_for() (docs/extending.md)."
    )
