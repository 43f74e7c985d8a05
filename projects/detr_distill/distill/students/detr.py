"""A DETR as a student, and read as a teacher."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import torch
from torch import nn

from ...detr import DetrDetector
from ...detr.detector import Finished, Started
from ...detr.preprocess import read_ground_truth
from ...detr.queries.base import Queries
from ...detr.supervision.matchings import Matchings
from ...structures import PREDICTIONS, DecoderOutput, QueryGroup
from ...structures.levels import from_maps, to_maps
from ..classes import ClassMap
from ..knowledge import Knowledge
from ..side import ASSIGNMENT, DECODING, HIDDEN, MAPS, MEMORY, ONE_TO_ONE, QUERIES
from .base import Capture, Groups, Maps, StudentOutput, StudentStep, student_for
from .two_halves import TwoHalvesStudent


@student_for(DetrDetector)
class DetrStudent(TwoHalvesStudent):
    """Maps are the levels of the neck, ``level0``, ``level1``, ...; queries are one group among others."""

    detector: DetrDetector

    @property
    def gives(self) -> frozenset[str]:
        own = {MAPS, MEMORY, QUERIES, DECODING, HIDDEN, ASSIGNMENT, ONE_TO_ONE, PREDICTIONS}
        return self.detector.decoder.captures | own

    @property
    def queries(self) -> Queries:
        return self.detector.queries

    @property
    def backbone(self) -> nn.Module:
        return self.detector.backbone

    @property
    def hidden_width(self) -> int:
        return self.queries.widths[0]

    @property
    def num_layers(self) -> int:
        return len(self.detector.decoder.layers)

    @property
    def part(self) -> str:
        return type(self.detector.decoder).__name__

    @property
    def feature_channels(self) -> Mapping[str, int]:
        return {f"level{level}": self._width for level in range(self.detector.input_projection.num_levels)}

    @property
    def memory_channels(self) -> Mapping[str, int]:
        return {f"memory{level}": self._width for level in range(self.detector.input_projection.num_levels)}

    @property
    def _width(self) -> int:
        return self.detector.input_projection.width

    def read_projection(self) -> nn.Module | None:
        return self.detector.decoder.read_projection()

    def start(self, batched_inputs: list[dict]) -> StudentStep:
        """See the base class; ``context`` is what the detector has by then."""
        started = self.detector.start(batched_inputs)
        height, width = started.images.tensor.shape[-2:]
        return StudentStep(batched_inputs, to_maps(started.memory), (height, width), started)

    def finish(
        self, step: StudentStep, groups: Groups, capture: Capture, matchings: Matchings, features: Maps | None = None
    ) -> StudentOutput:
        """See the base class."""
        assert step.ground_truth is not None
        started: Started = step.context
        if features is not None:
            started = dataclasses.replace(
                started, memory=dataclasses.replace(started.memory, tokens=from_maps(features))
            )
        finished = self.detector.finish(started, step.ground_truth, groups, capture)
        supervised = self.detector.supervise(finished, step.ground_truth, matchings)
        return StudentOutput(
            features=step.features if features is None else features,
            outputs=finished.outputs,
            memory=finished.memory,
            losses=lambda: self.detector.losses(supervised),
            step=step,
        )

    def select(self, context: Started, images: slice) -> Started:
        return Started(context.images.select(images), context.memory.select(images))

    def know(self, step: StudentStep, classes: ClassMap | None, capture: frozenset[str]) -> Knowledge:
        """Maps, queries, predictions, and the cost of its own matching with the ground truth."""
        assert classes is not None
        detector = self.detector
        truth = step.ground_truth or read_ground_truth(step.batched_inputs, detector.device)
        started = detector.start(step.batched_inputs)
        finished = detector.finish(started, capture=capture & detector.decoder.captures)
        truth = dataclasses.replace(truth, labels=classes.teacher_labels(truth.labels))
        output = finished.outputs["own"]
        return Knowledge(
            features=to_maps(started.memory),
            output=output,
            queries=finished.groups[0],
            label_cost=functools.cache(lambda: detector.criterion.matcher(output, truth)),
            memory=finished.memory,
            ground_truth=truth,
            decode=lambda group: self._decode(finished, group, capture),
        )

    @torch.no_grad()
    def _decode(self, finished: Finished, group: QueryGroup, capture: frozenset[str]) -> DecoderOutput:
        return self.detector.decode(finished.memory, [group], capture & self.detector.decoder.captures)[group.name]
