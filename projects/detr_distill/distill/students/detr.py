"""A DETR as a student."""

from __future__ import annotations

import dataclasses
from functools import partial

from ...detr import DetrDetector
from ...structures import QueryGroup
from ...structures.levels import from_maps, select_rows, to_maps
from .base import StudentOutput, StudentStep, _select, feature_channels, run_student, select_images, start_student


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


@select_images.register
def _select_detr(detector: DetrDetector, step: StudentStep, images: slice) -> StudentStep:
    memory, targets = step.context
    return _select(step, images, (select_rows(memory, images), select_rows(targets, images)))


@feature_channels.register
def _detr_channels(detector: DetrDetector) -> dict[str, int]:
    width: int = detector.queries.widths[0]  # type: ignore[index, assignment]
    levels: int = detector.input_projection.num_levels  # type: ignore[assignment]
    return {f"level{index}": width for index in range(max(1, levels))}
