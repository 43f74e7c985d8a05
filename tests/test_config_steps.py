"""A training step of every structure that a shipped configuration has reaches every parameter."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.builders import make_inputs
from helpers.make_golden import SIZES, teachers_without_weights
from helpers.structures import BUILDABLE, short_name, structure_of

# Losses of each structure's step, its trainable parameters, and those without a gradient.
_steps: dict[str, tuple[dict, list[str], list[str]]] = {}


def train_step(file: Path) -> tuple[dict, list[str], list[str]]:
    cfg, structure = structure_of(file)
    if structure not in _steps:
        torch.manual_seed(0)
        with teachers_without_weights():
            model = build_model(cfg).train()
        with EventStorage():  # detectron2's own heads write to it
            losses = model(make_inputs(SIZES, num_classes=cfg.MODEL.DETR.NUM_CLASSES))
        sum(losses.values()).backward()
        trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
        without_gradient = [name for name, value in trainable.items() if value.grad is None]
        _steps[structure] = {key: value.item() for key, value in losses.items()}, list(trainable), without_gradient
    return _steps[structure]


@pytest.mark.parametrize("file", BUILDABLE, ids=short_name)
def test_a_training_step_reaches_every_parameter(file):
    losses, trainable, without_gradient = train_step(file)
    assert losses and not [name for name, value in losses.items() if not math.isfinite(value)]
    assert trainable and not without_gradient
