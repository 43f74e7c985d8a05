"""detectron2's convolutional detectors as students."""

from __future__ import annotations

from typing import Any

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import ImageList

from ...convolutional.predictions import dense_output, listening, region_output
from ...structures import PREDICTIONS, QueryGroup
from .base import StudentOutput, StudentStep, _select, feature_channels, run_student, select_images, start_student


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


@select_images.register(DenseDetector)
@select_images.register(GeneralizedRCNN)
def _select_convolutional(detector: Any, step: StudentStep, images: slice) -> StudentStep:
    batch, instances = step.context
    part = ImageList(batch.tensor[images], batch.image_sizes[images])
    return _select(step, images, (part, instances[images]))


@feature_channels.register(DenseDetector)
@feature_channels.register(GeneralizedRCNN)
def _convolutional_channels(detector: Any) -> dict[str, int]:
    shapes = detector.backbone.output_shape()
    return {name: shapes[name].channels for name in getattr(detector, "head_in_features", shapes)}
