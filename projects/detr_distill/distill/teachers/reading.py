"""What a trained detector knows of a batch."""

from __future__ import annotations

import dataclasses
from functools import singledispatch
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import nn

from ...convolutional.detections import _detect, as_output
from ...detr import DetrDetector
from ...structures import PREDICTIONS, DecoderOutput, QueryGroup
from ..classes import ClassMap
from ..knowledge import Knowledge
from ..students.base import start_student
from ..students.classes import count_classes


@singledispatch
def read_knowledge(
    detector: nn.Module, batched_inputs: list[dict], classes: ClassMap | None, capture: frozenset[str]
) -> Knowledge:
    """What a trained detector knows of a batch; of one that nothing else is known of, the maps that its head reads.

    Args:
        detector: in eval mode. batched_inputs: detectron2 dicts with ``image`` in the detector's own channel order, for
            a DETR with ``instances``. classes: how its class list relates to the student's.
        capture: what to keep beside, see structures/tensors.py.
    """
    return Knowledge(start_student(detector, batched_inputs).features)


@read_knowledge.register
def _read_detr(
    detector: DetrDetector, batched_inputs: list[dict], classes: ClassMap | None, capture: frozenset[str]
) -> Knowledge:
    assert classes is not None
    own = start_student(detector, batched_inputs)
    memory, targets = own.context
    memory = dataclasses.replace(memory, tokens=detector.encoder(memory))
    queries = detector.queries(memory)

    @torch.no_grad()
    def decode(group: QueryGroup) -> DecoderOutput:
        return detector.decode(memory, [group], capture)[group.name]

    output = decode(queries)
    targets = dataclasses.replace(targets, labels=classes.teacher_labels(targets.labels))
    cost = detector.criterion.matcher(output, targets)
    return Knowledge(
        own.features,
        output,
        queries,
        label_cost=cost,
        memory_shapes=memory.shapes,
        memory=memory,
        targets=targets,
        decode=decode,
    )


@read_knowledge.register(DenseDetector)
@read_knowledge.register(GeneralizedRCNN)
def _read_convolutional(
    detector: nn.Module, batched_inputs: list[dict], classes: ClassMap | None, capture: frozenset[str]
) -> Knowledge:
    return read_detections(detector, batched_inputs, capture)


def read_detections(detector: Any, batched_inputs: list[dict], capture: frozenset[str]) -> Knowledge:
    """A trained convolutional detector's maps and, where they are wanted, its detections.

    Non-maximum suppression reads the device: a number of detections that is not known beforehand cannot wait [R].

    Args:
        detector: in eval mode. batched_inputs: detectron2 dicts with ``image``.
        capture: its detections are wanted where it holds PREDICTIONS.
    """
    step = start_student(detector, batched_inputs)
    if PREDICTIONS not in capture:
        return Knowledge(features=step.features)
    found = _detect(detector, step)
    return Knowledge(
        features=step.features,
        output=as_output(found, count_classes(detector)),
        counts=[len(instances) for instances in found],
    )
