"""A detector of transformers as a student, and read as a teacher."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import torch

from ...detr.preprocess import read_ground_truth
from ...detr.queries.base import QueryForm
from ...detr.supervision.matcher import HungarianMatcher
from ...detr.supervision.matchings import Matchings
from ...hugging_face.detector import TransformersStudent
from ...hugging_face.halves import Halfway, Network
from ...hugging_face.images import stretch
from ...structures import PREDICTIONS, DecoderOutput, GroundTruth, QueryGroup
from ...structures.transfer import copy_to
from ..classes import ClassMap
from ..knowledge import Knowledge
from ..side import ASSIGNMENT, DECODING, EDGES, HIDDEN, MAPS, MEMORY, ONE_TO_ONE, QUERIES, ReadThrough, Side
from .base import Capture, Groups, Maps, StudentOutput, StudentStep, student_for
from .two_halves import TwoHalvesStudent

LARGEST = 20.0  # of a box's logits, whose sigmoid is 1 by then


class NetworkSide(Side):
    """What a student or a teacher gives that a network of transformers runs.

    Maps are what the encoder reads, ``level0``, ...; what it makes of them is the memory.
    """

    def __init__(self, network: Network):
        self.network = network

    @property
    def gives(self) -> frozenset[str]:
        of_queries = {QUERIES, DECODING} if self.queries is not None else set()
        of_edges = {EDGES} if self.edge_bins else set()
        return frozenset({MAPS, MEMORY, HIDDEN, ASSIGNMENT, PREDICTIONS, *of_queries, *of_edges})

    @property
    def name(self) -> str:
        return type(self.network.detector).__name__

    @property
    def queries(self) -> QueryForm | None:
        return self.network.query_form

    @property
    def hidden_width(self) -> int:
        return self.network.width

    @property
    def num_layers(self) -> int:
        return self.network.num_layers

    @property
    def edge_bins(self) -> tuple[float, ...]:
        return self.network.edge_bins

    @property
    def feature_channels(self) -> Mapping[str, int]:
        return {f"level{level}": width for level, width in enumerate(self.network.level_channels)}

    @property
    def memory_channels(self) -> Mapping[str, int]:
        return {f"memory{level}": width for level, width in enumerate(self.network.level_channels)}

    def know(self, half: Halfway, matcher: HungarianMatcher, truth: GroundTruth | None) -> Knowledge:
        """What the network, in eval mode, knows of a batch as a teacher.

        Args:
            half: of its first half. matcher: gives the cost of its own matching. truth: with labels in its own
                classes, -1 for one that it does not know; None: nobody has labelled the images.
        """
        network = self.network
        with network.every_layer():
            decoded = network.finish(half, lambda own: [own])
        output, queries = decoded.outputs["own"], None
        if network.query_form is not None:
            # The library marks a place without a cell by the largest number there is, which no map of others can take.
            own = decoded.groups[0]
            queries = dataclasses.replace(own, position=own.position.clamp(-LARGEST, LARGEST))

        @torch.no_grad()
        def decode(group: QueryGroup) -> DecoderOutput:
            assert decoded.decode is not None
            with network.every_layer():
                return decoded.decode(group)

        return Knowledge(
            features=dict(zip(self.feature_channels, half.maps, strict=True)),
            output=output,
            queries=queries,
            label_cost=None if truth is None else functools.cache(lambda: matcher(output, truth)),
            memory=decoded.memory,
            ground_truth=truth,
            decode=None if decoded.decode is None else decode,
        )


@student_for(TransformersStudent)
class TransformersRunner(ReadThrough, TwoHalvesStudent):
    """A network of transformers with this project's criterion; see :class:`NetworkSide`."""

    detector: TransformersStudent
    reader: NetworkSide

    def __init__(self, detector: TransformersStudent):
        super().__init__(detector)
        self.reader = NetworkSide(detector.network)

    @property
    def gives(self) -> frozenset[str]:
        return super().gives | {ONE_TO_ONE}

    def start(self, batched_inputs: list[dict]) -> StudentStep:
        """See the base class; ``context`` is what the detector has by then."""
        half = self.detector.start(batched_inputs)
        height, width = half.images.tensor.shape[-2:]
        maps = dict(zip(self.feature_channels, half.maps, strict=True))
        return StudentStep(batched_inputs, maps, (height, width), half)

    def place(self, step: StudentStep) -> StudentStep:
        """Stretched images have stretched objects."""
        size, truth = self.detector.size, step.ground_truth
        if size is None or truth is None or truth.corners is None:
            return step
        height, width = size
        factors = truth.corners.new_tensor([(width / w, height / h, width / w, height / h) for h, w in truth.sizes])
        corners = truth.corners * factors[:, None, :]
        sizes = (size,) * len(truth.sizes)
        truth = dataclasses.replace(truth, corners=corners, sizes=sizes, masks=(None,) * len(sizes))
        return dataclasses.replace(step, ground_truth=truth)

    def shown_by_maps(self, step: StudentStep) -> StudentStep:
        """Stretched, where the detector stretches; 0 to 255 still."""
        size = self.detector.size
        if size is None:
            return step
        seen = [_stretched(entry, size, self.detector.device) for entry in step.batched_inputs]
        return dataclasses.replace(step, batched_inputs=seen)

    def finish(
        self, step: StudentStep, groups: Groups, capture: Capture, matchings: Matchings, features: Maps | None = None
    ) -> StudentOutput:
        """See the base class."""
        assert step.ground_truth is not None
        features = step.features if features is None else features
        half = dataclasses.replace(step.context, maps=list(features.values()))
        decoded = self.detector.finish(half, step.ground_truth, groups)
        supervised = self.detector.supervise(decoded, step.ground_truth, matchings)
        return StudentOutput(
            features=features,
            outputs=decoded.outputs,
            memory=decoded.memory,
            losses=lambda: self.detector.losses(supervised),
            step=step,
        )

    def select(self, context: Halfway, images: slice) -> Halfway:
        return context.select(images)

    def know(self, step: StudentStep, classes: ClassMap | None, capture: frozenset[str]) -> Knowledge:
        """Maps, predictions, and the cost of its own matching with the ground truth."""
        assert classes is not None
        detector = self.detector
        truth = step.ground_truth or read_ground_truth(step.batched_inputs, detector.device)
        half = detector.start(step.batched_inputs)
        truth = dataclasses.replace(truth, labels=classes.teacher_labels(truth.labels))
        return self.reader.know(half, detector.criterion.matcher, truth)


def _stretched(entry: dict, size: tuple[int, int], device: torch.device) -> dict:
    """An entry of a batch with its image in another size (height, width), and where the image's file lies in it."""
    image = copy_to(entry["image"], device)
    seen = {**entry, "image": stretch(image, size)}
    if "placement" in entry:
        factors = size[1] / image.shape[2], size[0] / image.shape[1]
        seen["placement"] = tuple(place * factors[n % 2] for n, place in enumerate(entry["placement"]))
    return seen
