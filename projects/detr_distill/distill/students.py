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
from functools import partial, singledispatch
from typing import Any

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import ImageList
from torch import Tensor, nn

from ..detr import DetrDetector
from ..detr.assignment import Cost
from ..errors import ConfigError
from ..pairs import Pairs
from ..structures import PREDICTIONS, DecoderOutput, Memory, QueryGroup
from .dense_predictions import dense_output, listening, region_output
from .levels import from_maps, select_rows, to_maps


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
        groups: query groups to decode beside the detector's own. capture: what to keep beside, see structures.py.

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


@start_student.register
def _start_detr(detector: DetrDetector, batched_inputs: list[dict]) -> StudentStep:
    images = detector.preprocess(batched_inputs)
    # Before the network runs: a copy to the device waits for the work that was queued ahead of it.
    targets = detector.targets(batched_inputs, images)
    memory = detector.input_projection(detector.backbone(images.tensor), images)
    height, width = images.tensor.shape[-2:]
    return StudentStep(batched_inputs, to_maps(memory), (height, width), (memory, targets))


@run_student.register
def _run_detr(
    detector: DetrDetector, step: StudentStep, groups: list[QueryGroup], capture: frozenset[str]
) -> StudentOutput:
    memory, targets = step.context
    memory = dataclasses.replace(memory, tokens=from_maps(step.features))
    memory = dataclasses.replace(memory, tokens=detector.encoder(memory))
    groups = [*detector.query_groups(memory, targets), *groups]
    outputs = detector.decode(memory, groups, capture)
    supervised = detector.supervised(outputs, groups, memory, targets)
    costs = detector.costs(supervised)
    finish = partial(detector.losses, supervised)
    return StudentOutput(step.features, outputs, memory, costs, finish, step)


@start_student.register(DenseDetector)
@start_student.register(GeneralizedRCNN)
def _start_convolutional(detector: Any, batched_inputs: list[dict]) -> StudentStep:
    images = detector.preprocess_image(batched_inputs)
    # A teacher may be asked about images without labels.
    instances = [x["instances"].to(detector.device) for x in batched_inputs if "instances" in x]
    features = detector.backbone(images.tensor)
    names = getattr(detector, "head_in_features", features)
    height, width = images.tensor.shape[-2:]
    return StudentStep(batched_inputs, {name: features[name] for name in names}, (height, width), (images, instances))


@run_student.register
def _run_dense(
    detector: DenseDetector, step: StudentStep, groups: list[QueryGroup], capture: frozenset[str]
) -> StudentOutput:
    images, instances = step.context
    features = list(step.features.values())
    predictions = detector.head(features)
    outputs = {"own": dense_output(detector, predictions, features, images)} if PREDICTIONS in capture else {}
    losses = detector.forward_training(images, features, predictions, instances)
    return StudentOutput(step.features, outputs, finish=lambda pairs: losses, step=step)


@run_student.register
def _run_rcnn(
    detector: GeneralizedRCNN, step: StudentStep, groups: list[QueryGroup], capture: frozenset[str]
) -> StudentOutput:
    images, instances = step.context
    if detector.proposal_generator is None:
        proposals, losses = [x["proposals"].to(detector.device) for x in step.batched_inputs], {}
    else:
        proposals, losses = detector.proposal_generator(images, step.features, instances)
    heads: Any = detector.roi_heads
    with listening(heads, PREDICTIONS in capture) as kept:
        regions, head_losses = heads(images, step.features, proposals, instances)
    outputs = {"own": region_output(heads.box_predictor, *kept[0], regions)} if kept else {}
    losses = {**head_losses, **losses}
    return StudentOutput(step.features, outputs, finish=lambda pairs: losses, step=step)


@select_images.register
def _select_detr(detector: DetrDetector, step: StudentStep, images: slice) -> StudentStep:
    memory, targets = step.context
    return _select(step, images, (select_rows(memory, images), select_rows(targets, images)))


@select_images.register(DenseDetector)
@select_images.register(GeneralizedRCNN)
def _select_convolutional(detector: Any, step: StudentStep, images: slice) -> StudentStep:
    batch, instances = step.context
    part = ImageList(batch.tensor[images], batch.image_sizes[images])
    return _select(step, images, (part, instances[images]))


def _select(step: StudentStep, images: slice, context: Any) -> StudentStep:
    features = {name: values[images] for name, values in step.features.items()}
    return dataclasses.replace(step, batched_inputs=step.batched_inputs[images], features=features, context=context)


@feature_channels.register
def _detr_channels(detector: DetrDetector) -> dict[str, int]:
    width: int = detector.queries.widths[0]  # type: ignore[index, assignment]
    levels: int = detector.input_projection.num_levels  # type: ignore[assignment]
    return {f"level{index}": width for index in range(max(1, levels))}


@feature_channels.register(DenseDetector)
@feature_channels.register(GeneralizedRCNN)
def _convolutional_channels(detector: Any) -> dict[str, int]:
    shapes = detector.backbone.output_shape()
    return {name: shapes[name].channels for name in getattr(detector, "head_in_features", shapes)}
