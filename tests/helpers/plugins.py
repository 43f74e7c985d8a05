"""A module of a user's own, with a loss that has a key, and runs that use it."""

from __future__ import annotations

import sys
from pathlib import Path

from detr_distill.data import build_digits

import pytest
import torch
import yaml
from detectron2.modeling import build_model
from helpers.builders import small_cfg
from helpers.registrations import forgotten_afterwards

MODULE = '''
from detr_distill.config.keys import key
from detr_distill.config.ranges import NOT_NEGATIVE
from detr_distill.distill.losses.base import DistillLoss
from detr_distill.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register()
class SizeLoss(DistillLoss):
    """The mean square of the student's maps, over a margin."""

    margin: float = key(0.5, "mean square that costs nothing", NOT_NEGATIVE)

    def forward(self, student, knowledge, matches):
        sizes = [values.square().mean() for values in student.features.values()]
        return {"loss_distill_size": self.weight * (sum(sizes) - self.margin)}
'''
NODE = "MODEL.DISTILL.SIZE_LOSS"
# Of a module that leaves a file where it is imported.
MARK = "from pathlib import Path\nPath(__file__).with_suffix('.imported').touch()\n"


@pytest.fixture(name="folder")
def current_folder(tmp_path, monkeypatch):
    """The current folder; what a test imports from it, and what that registers, is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    with forgotten_afterwards():
        yield tmp_path
    for name in set(sys.modules) - before:
        if str(vars(sys.modules[name]).get("__file__")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(name="pictures", scope="module")
def six_pictures(tmp_path_factory):
    """An entry of DATASETS.REGISTER: six pictures of digits."""
    made = build_digits(tmp_path_factory.mktemp("pictures"), "val", 6)
    return ["six_digits", str(made / "annotations/instances.json"), str(made / "images")]


def run_settings(pictures, **keys) -> dict:
    """A run of two iterations whose student learns from a label encoder by the module's loss."""
    cfg = small_cfg(
        MODEL__META_ARCHITECTURE="DistillDetector", MODEL__DISTILL__TEACHER__NAME="LabelEncoder",
        MODEL__DISTILL__MATCHERS=[], MODEL__DETR__NUM_CLASSES=10, SOLVER__IMS_PER_BATCH=2, SOLVER__MAX_ITER=2,
        SOLVER__LR_SCHEDULER_NAME="WarmupMultiStepLR", SOLVER__STEPS=(), TEST__EVAL_PERIOD=0, DATASETS__TEST=(),
    )  # fmt: skip
    settings = yaml.safe_load(cfg.dump())
    settings["DATASETS"].update(TRAIN=[pictures[0]], REGISTER=[pictures])
    settings["MODEL"]["DISTILL"].update(LOSSES=["SizeLoss"], SIZE_LOSS={"MARGIN": 0.25})
    return {**settings, "OUTPUT_DIR": "run", **keys}


def write_run(file: Path, pictures, **keys) -> list[str]:
    """Writes the run's own file; returns the command line."""
    file.write_text(yaml.safe_dump(run_settings(pictures, **keys)))
    return ["--config-file", str(file), "--num-gpus", "0"]


def save_detector(folder: Path) -> None:
    """A plain detector's file and weights."""
    cfg = small_cfg()
    (folder / "teacher.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, folder / "teacher.pth")
