"""Every shipped configuration builds, trains a step and reaches every parameter."""

from __future__ import annotations

from pathlib import Path

from detr_distill.engine import build_config, build_optimizer

import pytest
import yaml
from detectron2.utils.events import EventStorage
from helpers.builders import ROOT, make_inputs
from helpers.make_golden import SIZES, build_untrained

ALL_FILES = sorted((ROOT / "configs").rglob("*.yaml"))
CONFIGS = [file for file in ALL_FILES if not file.name.startswith("Base-")]


def short_name(file: Path) -> str:
    return str(file.relative_to(ROOT / "configs").with_suffix(""))


def test_the_shipped_configurations_are_found():
    folders = {file.parent.name for file in CONFIGS}
    assert {"detr", "d3etr", "digits"} <= folders


@pytest.mark.parametrize("file", ALL_FILES, ids=short_name)
def test_all_keys_are_known(file):
    """Merging refuses unknown keys; a key of a file that did not arrive would be one that a base overrides."""
    cfg = build_config(str(file), [])
    own = yaml.safe_load(file.read_text())
    own.pop("_BASE_", None)

    def check(node, expected, path):
        for key, value in expected.items():
            if isinstance(value, dict):
                check(node[key], value, f"{path}{key}.")
            else:
                found = list(node[key]) if isinstance(value, list) else node[key]
                assert found == value, f"{path}{key}"

    check(cfg, own, "")


# Fewer of what is alike: one more group shows what ten would, 48 queries what nine hundred would.
FEWER = ("MODEL.DETR.GROUP_QUERIES.NUM_GROUPS", "2", "MODEL.DETR.HYBRID_QUERIES.NUM_QUERIES", "60")
FEWER += ("MODEL.DETR.NUM_QUERIES", "48")
# Files that differ in their schedule alone train the same step.
_steps: dict[str, tuple] = {}


def train_step(file: Path) -> tuple[dict, list[str], list[str], int]:
    """Losses of a step; the trainable parameters; those without a gradient; how many the optimizer has."""
    cfg = build_config(str(file), [])
    cfg.MODEL.WEIGHTS = ""
    key = f"{cfg.MODEL.dump()}\n{cfg.SOLVER.LR_FACTORS}"
    if key not in _steps:
        cfg, model = build_untrained(file, FEWER)
        with EventStorage():  # detectron2's own heads write to it
            losses = model(make_inputs(SIZES, num_classes=cfg.MODEL.DETR.NUM_CLASSES))
        sum(losses.values()).backward()
        trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
        without_gradient = [name for name, value in trainable.items() if value.grad is None]
        # This also checks that the learning-rate factors find what they name.
        groups = build_optimizer(cfg, model).param_groups
        optimized = sum(len(group["params"]) for group in groups)
        losses = {name: value.detach() for name, value in losses.items()}
        _steps[key] = losses, list(trainable), without_gradient, optimized
    return _steps[key]


@pytest.mark.parametrize("file", CONFIGS, ids=short_name)
def test_a_training_step_reaches_every_parameter(file):
    losses, trainable, without_gradient, optimized = train_step(file)
    assert losses and not [name for name, value in losses.items() if not value.isfinite()]
    assert trainable and not without_gradient
    assert optimized == len(trainable)


def test_every_run_has_a_folder_of_its_own():
    """Two configurations that write to one folder would refuse, or continue, each other's run."""
    owners: dict[str, list[str]] = {}
    for file in CONFIGS:
        owners.setdefault(build_config(str(file), []).OUTPUT_DIR, []).append(short_name(file))
    shared = {folder: names for folder, names in owners.items() if len(names) > 1 and folder != "./output"}
    assert not shared
