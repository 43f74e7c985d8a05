"""detectron2's convolutional detectors as students, and read as teachers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn

from ...convolutional.detections import as_output, detect_dense, detect_regions
from ...convolutional.predictions import dense_output, listening, region_output
from ...detr.boxes import to_corners
from ...detr.supervision.matchings import Matchings
from ...errors import ConfigError
from ...structures import PREDICTIONS, GroundTruth
from ...structures.transfer import constant
from ..classes import ClassMap
from ..knowledge import Knowledge
from .base import Capture, Groups, Maps, Student, StudentOutput, StudentStep, student_for

Context = tuple[ImageList, list[Instances]]


@contextlib.contextmanager
def event_storage(iteration: int | None) -> Iterator[None]:
    """Within, there is an event storage for detectron2's heads: the trainer's, or one that is thrown away."""
    try:
        get_event_storage()
    except AssertionError:
        with EventStorage(iteration or 0):
            yield
    else:
        yield


class ConvolutionalStudent(Student):
    """What the two kinds share: they read the maps that the head names, and decode no query groups."""

    keeps = frozenset({PREDICTIONS})
    detector: Any

    @property
    def backbone(self) -> nn.Module:
        return self.detector.backbone

    @property
    def head_features(self) -> list[str]:
        """Names of the maps that the head reads, fine to coarse."""
        return list(self.detector.backbone.output_shape())

    @property
    def feature_channels(self) -> Mapping[str, int]:
        shapes = self.detector.backbone.output_shape()
        return {name: shapes[name].channels for name in self.head_features}

    @property
    def feature_strides(self) -> Mapping[str, int]:
        shapes = self.detector.backbone.output_shape()
        return {name: shapes[name].stride for name in self.head_features}

    def start(self, batched_inputs: list[dict]) -> StudentStep:
        """See the base class; ``context`` is what detectron2's detectors take: images, and objects where there are."""
        images = self.detector.preprocess_image(batched_inputs)
        # A teacher may be asked about images without labels.
        instances = [x["instances"].to(self.detector.device) for x in batched_inputs if "instances" in x]
        features = self.detector.backbone(images.tensor)
        height, width = images.tensor.shape[-2:]
        maps = {name: features[name] for name in self.head_features}
        return StudentStep(batched_inputs, maps, (height, width), (images, instances))

    def label(self, step: StudentStep, truth: GroundTruth) -> StudentStep:
        """See the base class; the objects also become detectron2's instances, in pixels of the step's images."""
        images, instances = step.context
        found = []
        for image in range(len(instances), len(images)):
            height, width = images.image_sizes[image]
            own = slice(truth.counts[image])
            corners = to_corners(truth.boxes[image, own].float()) * constant((width, height) * 2, truth.boxes.device)
            found.append(Instances((height, width), gt_boxes=Boxes(corners), gt_classes=truth.labels[image, own]))
        return dataclasses.replace(super().label(step, truth), context=(images, [*instances, *found]))

    def select(self, context: Context, images: slice) -> Context:
        batch, instances = context
        return ImageList(batch.tensor[images], batch.image_sizes[images]), instances[images]

    def know(self, step: StudentStep, classes: ClassMap | None, capture: frozenset[str]) -> Knowledge:
        """Maps and, where they are wanted, detections.

        Non-maximum suppression reads the device: a number of detections that is not known beforehand cannot wait [R].
        """
        own = self.start(step.batched_inputs)
        if PREDICTIONS not in capture:
            return Knowledge(features=own.features)
        found = self._detect(own)
        output = as_output(found, self.num_classes)
        return Knowledge(features=own.features, output=output, counts=[len(instances) for instances in found])

    def _detect(self, step: StudentStep) -> list[Instances]:
        """Detections after non-maximum suppression, best first, in pixels of the step's images."""
        raise NotImplementedError


@student_for(DenseDetector)
class DenseStudent(ConvolutionalStudent):
    """RetinaNet and FCOS."""

    detector: DenseDetector

    @property
    def head_features(self) -> list[str]:
        return list(self.detector.head_in_features)

    @property
    def num_classes(self) -> int:
        return self.detector.num_classes

    def finish(
        self, step: StudentStep, groups: Groups, capture: Capture, matchings: Matchings, features: Maps | None = None
    ) -> StudentOutput:
        """See the base class."""
        images, instances = step.context
        read = step.features if features is None else features
        maps = list(read.values())
        with event_storage(step.iteration):
            predictions = self.detector.head(maps)
            outputs = {"own": dense_output(self.detector, predictions, maps, images)} if PREDICTIONS in capture else {}
            if len(instances) < len(images):  # the others have no labels
                labelled = slice(len(instances))
                images, _ = self.select(step.context, labelled)
                maps = [values[labelled] for values in maps]
                predictions = [[values[labelled] for values in kind] for kind in predictions]
            losses = self.detector.forward_training(images, maps, predictions, instances)
        return StudentOutput(read, outputs, losses=lambda: losses, step=step)

    def _detect(self, step: StudentStep) -> list[Instances]:
        return detect_dense(self.detector, step.context[0], list(step.features.values()))


@student_for(GeneralizedRCNN)
class RegionStudent(ConvolutionalStudent):
    """Faster, Mask and Cascade R-CNN."""

    samples_by_labels = True
    detector: GeneralizedRCNN

    @property
    def num_classes(self) -> int:
        return self.detector.roi_heads.num_classes

    def finish(
        self, step: StudentStep, groups: Groups, capture: Capture, matchings: Matchings, features: Maps | None = None
    ) -> StudentOutput:
        """See the base class."""
        images, instances = step.context
        read = step.features if features is None else features
        heads, maps = self.detector.roi_heads, read
        if len(instances) < len(images):  # regions are sampled by the objects: the other images have maps alone
            if PREDICTIONS in capture:
                raise ConfigError(
                    f"DATALOADER.UNLABELED_PER_BATCH: a {self.name} samples its regions by the labels, so that "
                    "OverlapMatcher finds none on images without. Set it to 0, or leave OverlapMatcher out."
                )
            labelled = slice(len(instances))
            images, _ = self.select(step.context, labelled)
            maps = {name: values[labelled] for name, values in read.items()}
        with event_storage(step.iteration):
            if self.detector.proposal_generator is None:
                given = [x["proposals"].to(self.detector.device) for x in step.batched_inputs[: len(instances)]]
                proposals, losses = given, {}
            else:
                proposals, losses = self.detector.proposal_generator(images, maps, instances)
            with listening(heads, PREDICTIONS in capture) as kept:
                regions, head_losses = heads(images, maps, proposals, instances)
        outputs = {"own": region_output(heads.box_predictor, *kept[0], regions)} if kept else {}
        losses = {**head_losses, **losses}
        return StudentOutput(read, outputs, losses=lambda: losses, step=step)

    def _detect(self, step: StudentStep) -> list[Instances]:
        return detect_regions(self.detector, step.context[0], step.features, step.batched_inputs)
