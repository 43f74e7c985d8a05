"""Every small configuration trains in bfloat16: two steps of the trainer's own, with narrow networks."""

from __future__ import annotations

import math
from pathlib import Path

from detr_distill.engine.precision import Precision
from detr_distill.engine.step import StepTrainer
from detr_distill.protocols import follow_optimizer

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.builders import make_inputs
from helpers.golden_cases import DIGITS
from helpers.make_golden import teachers_without_weights
from helpers.structures import short_name, structure_of

SIZES = ((32, 48), (48, 32))
FILES = [file for file in sorted(DIGITS.glob("*.yaml")) if not file.stem.startswith("Base-")]
# Losses of the two steps of each structure, their types, and whether the second step had other weights.
_steps: dict[str, tuple[list[dict[str, float]], set[torch.dtype], bool]] = {}


def train(file: Path) -> tuple[list[dict[str, float]], set[torch.dtype], bool]:
    cfg, structure = structure_of(file)
    if structure not in _steps:
        cfg.MODEL.FPN.OUT_CHANNELS = 16
        torch.manual_seed(0)
        with teachers_without_weights():
            model = build_model(cfg).train()
        losses: list[dict[str, torch.Tensor]] = []
        model.register_forward_hook(lambda module, inputs, output: losses.append(output))
        batches = [make_inputs(SIZES, num_classes=cfg.MODEL.DETR.NUM_CLASSES, seed=seed) for seed in range(2)]
        trainable = [value for value in model.parameters() if value.requires_grad]
        before = [value.detach().clone() for value in trainable]
        optimizer = torch.optim.Adam(trainable, lr=1e-4)
        trainer = StepTrainer(model, batches, optimizer, precision=Precision("cpu", "bfloat16"))
        follow_optimizer(model, optimizer, lambda: trainer.iter)
        with EventStorage() as storage:
            for trainer.iter in range(2):
                storage.iter = trainer.iter
                trainer.run_step()  # refuses losses and gradients that are not finite
        moved = all(not torch.equal(old, new) for old, new in zip(before, trainable, strict=True) if new.grad.any())
        values = [{name: value.item() for name, value in step.items()} for step in losses]
        _steps[structure] = values, {value.dtype for step in losses for value in step.values()}, moved
    return _steps[structure]


def test_all_small_configurations_are_here():
    assert len(FILES) >= 47


@pytest.mark.parametrize("file", FILES, ids=short_name)
def test_two_steps_in_bfloat16(file):
    steps, types, moved = train(file)
    assert len(steps) == 2 and moved
    assert all(math.isfinite(value) for step in steps for value in step.values())
    assert types == {torch.float32}
