"""Stores the losses of the small configurations on a fixed batch; test_configs.py compares them with the code's.

    python tests/make_golden.py

Run it only after a change that is meant to move the losses, and say in the commit why they moved.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from unittest import mock

from detr_distill.distill import frozen, label_map
from detr_distill.engine import build_config

import torch
from builders import ROOT, make_inputs, randomise
from detectron2.config import CfgNode
from detectron2.modeling import build_model

NO_DOWNLOAD = ["MODEL.TIMM.PRETRAINED", "", "MODEL.TORCHVISION.PRETRAINED", ""]
GOLDEN = Path(__file__).parent / "golden"
SMALL = (
    "adamixer_student",
    "conditional_student",
    "conditional_teacher",
    "d3etr_conditional",
    "d3etr_deformable",
    "dab_student",
    "deformable_plain_student",
    "deformable_student",
    "detr_student",
    "detrdistill_conditional",
    "detrdistill_deformable",
    "ema_conditional",
    "fgd_conditional",
    "fitnet_conditional",
    "kd_detr_conditional",
    "mgd_conditional",
)
# One wide and one high, so that both are padded.
SIZES = ((64, 96), (96, 64))


@contextlib.contextmanager
def teachers_without_weights():
    """Lets frozen teachers keep their random start, so that no trained weights are needed."""
    with (
        mock.patch.object(frozen, "load_strict", lambda *_arguments: None),
        mock.patch.object(frozen, "find_weights", lambda _cfg: ""),
        mock.patch.object(label_map, "load_part", lambda *_arguments: None),
        mock.patch.object(label_map, "find_weights", lambda _cfg: "step1"),
    ):
        yield


def build_untrained(config_file: Path, overrides: tuple[str, ...] = ()) -> tuple[CfgNode, torch.nn.Module]:
    """A configuration and its model in training mode, on the CPU, random from seed 0."""
    cfg = build_config(str(config_file), ["MODEL.DEVICE", "cpu", *NO_DOWNLOAD, *overrides])
    torch.manual_seed(0)
    with teachers_without_weights():
        return cfg, build_model(cfg).train()


def golden_losses(name: str) -> dict[str, float]:
    """Losses of one training step of ``configs/digits/<name>.yaml``.

    Every parameter is drawn anew from a seed of its own: the values depend neither on the shipped teacher nor on how a
    layer is initialised.
    """
    cfg, model = build_untrained(ROOT / "configs" / "digits" / f"{name}.yaml")
    student = getattr(model, "student", model)
    randomise(student, seed=1)
    if student is not model:
        randomise(model.teacher.detector, seed=2)
        randomise(model.matchers, seed=3)
        randomise(model.losses, seed=4)
    torch.manual_seed(0)
    losses = model(make_inputs(SIZES, num_classes=cfg.MODEL.DETR.NUM_CLASSES))
    return {key: value.item() for key, value in sorted(losses.items())}


def main() -> None:
    torch.set_num_threads(1)
    GOLDEN.mkdir(exist_ok=True)
    for name in SMALL:
        (GOLDEN / f"{name}.json").write_text(json.dumps(golden_losses(name), indent=2) + "\n")
        print(GOLDEN / f"{name}.json")


if __name__ == "__main__":
    main()
