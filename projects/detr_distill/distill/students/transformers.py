"""A detector of transformers as a student, and read as a teacher."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping

from torch import nn

from ...detr.preprocess import read_ground_truth
from ...detr.supervision.criterion import SetCriterion
from ...detr.supervision.matchings import Matchings
from ...hugging_face.detector import Started, TransformersStudent
from ...structures import PREDICTIONS
from ..classes import ClassMap
from ..knowledge import Knowledge
from ..side import ASSIGNMENT, HIDDEN, MAPS, MEMORY, ONE_TO_ONE
from .base import Capture, Groups, Maps, Student, StudentOutput, StudentStep, student_for


@student_for(TransformersStudent)
class TransformersRunner(Student):
    """Maps are what the encoder reads, ``level0``, ...; what it makes of them is the memory."""

    detector: TransformersStudent

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({MAPS, MEMORY, HIDDEN, ASSIGNMENT, ONE_TO_ONE, PREDICTIONS})

    @property
    def name(self) -> str:
        return type(self.detector.model).__name__

    @property
    def hidden_width(self) -> int:
        return self.detector.network.width

    @property
    def num_layers(self) -> int:
        return self.detector.network.num_layers

    @property
    def criterion(self) -> SetCriterion:
        return self.detector.criterion

    @property
    def num_classes(self) -> int:
        return self.detector.criterion.num_classes

    @property
    def feature_channels(self) -> Mapping[str, int]:
        return {f"level{level}": width for level, width in enumerate(self.detector.network.level_channels)}

    @property
    def memory_channels(self) -> Mapping[str, int]:
        return {name.replace("level", "memory"): width for name, width in self.feature_channels.items()}

    def start(self, batched_inputs: list[dict]) -> StudentStep:
        """See the base class; ``context`` is what the detector has by then."""
        started = self.detector.start(batched_inputs)
        height, width = started.images.tensor.shape[-2:]
        maps = dict(zip(self.feature_channels, started.maps, strict=True))
        return StudentStep(batched_inputs, maps, (height, width), started)

    def finish(
        self, step: StudentStep, groups: Groups, capture: Capture, matchings: Matchings, features: Maps | None = None
    ) -> StudentOutput:
        """See the base class."""
        assert step.ground_truth is not None
        features = step.features if features is None else features
        started = dataclasses.replace(step.context, maps=list(features.values()))
        decoded = self.detector.finish(started, step.ground_truth, groups)
        supervised = self.detector.supervise(decoded, step.ground_truth, matchings)
        return StudentOutput(
            features=features,
            outputs=decoded.outputs,
            memory=decoded.memory,
            losses=lambda: self.detector.losses(supervised),
            step=step,
        )

    def select(self, context: Started, images: slice) -> Started:
        batch = context.images
        part = dataclasses.replace(
            batch,
            tensor=batch.tensor[images],
            mask=None if batch.mask is None else batch.mask[images],
            sizes=batch.sizes[images],
        )
        return Started(part, [values[images] for values in context.maps])

    def know(self, step: StudentStep, classes: ClassMap | None, capture: frozenset[str]) -> Knowledge:
        """Maps, predictions, and the cost of its own matching with the ground truth."""
        assert classes is not None
        detector = self.detector
        truth = step.ground_truth or read_ground_truth(step.batched_inputs, detector.device)
        started = detector.start(step.batched_inputs)
        with detector.network.every_layer():
            decoded = detector.finish(started)
        truth = dataclasses.replace(truth, labels=classes.teacher_labels(truth.labels))
        output = decoded.outputs["own"]
        return Knowledge(
            features=dict(zip(self.feature_channels, started.maps, strict=True)),
            output=output,
            label_cost=functools.cache(lambda: detector.criterion.matcher(output, truth)),
            memory=decoded.memory,
            ground_truth=truth,
        )

    def detecting_copy(self) -> nn.Module:
        detector = copy.deepcopy(self.detector)
        detector.training_groups = nn.ModuleDict()
        return detector
