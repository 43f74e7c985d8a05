"""Stores the losses of the small configurations on a fixed batch; test_configs.py compares them with the code's.

    python tests/make_golden.py [NAME ...]

Run it only after a change that is meant to move the losses, and say in the commit why they moved.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from unittest import mock

from detr_distill.distill.teachers import frozen
from detr_distill.distill.teachers.label_encoder import label_map
from detr_distill.engine import build_config

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.events import EventStorage
from helpers.builders import ROOT, make_inputs, randomise

NO_DOWNLOAD = ["MODEL.TIMM.PRETRAINED", "", "MODEL.TORCHVISION.PRETRAINED", ""]
GOLDEN = ROOT / "tests" / "golden"
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
    "detrdistill_adamixer",
    "detrdistill_conditional",
    "detrdistill_deformable",
    "ema_conditional",
    "fgd_conditional",
    "fitnet_conditional",
    "kd_detr_conditional",
    "lgd_retinanet",
    "mgd_conditional",
    "sssd_retinanet",
)


def feature_loss(**keys: object) -> tuple[str, dict[str, object]]:
    """A form of FeatureLoss as in configs/baselines; widths differ here, so that most need the 1x1 adapter."""
    return "fitnet_conditional", {f"FEATURE_LOSS.{key}": value for key, value in keys.items()}


# What no small configuration shows as it is: a file of configs/digits, and other keys below MODEL.DISTILL.
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "at_conditional": feature_loss(WEIGHT=1000.0, NORM="attention", ADAPTER_LAYERS=0, MEAN="sum"),
    # Random detectors agree on no box and are sure of no class.
    "conditional_to_retinanet": (
        "conditional_to_retinanet",
        {
            "OVERLAP_MATCHER.SCORE_THRESHOLD": 0.0,
            "OVERLAP_MATCHER.MIN_IOU": 0.1,
            "PREDICTION_LOSS.BOX_SCORE_THRESHOLD": 0.0,
        },
    ),
    "contrastive_conditional": (
        "detrdistill_conditional",
        {"LOSSES": ("QueryRelationLoss",), "QUERY_RELATION_LOSS.DIVERGENCE": "contrastive"},
    ),
    "detrdistill_published": (
        "detrdistill_conditional",
        {
            "PREDICTION_LOSS.DIVERGENCE": "kl",
            "PREDICTION_LOSS.NORMALIZER": "pairs",
            "PREDICTION_LOSS.PAIR_WEIGHT": "equal",
            "TARGET_AWARE_LOSS.WEIGHT": 1.0,
        },
    ),
    "cwd_conditional": feature_loss(WEIGHT=10.0, DIVERGENCE="kl", SOFTMAX="space", MEAN="sum"),
    "defeat_conditional": feature_loss(WEIGHT=1.5, MEAN="levels", FOREGROUND=True, BACKGROUND_WEIGHT=4.0),
    "pkd_conditional": feature_loss(WEIGHT=3.0, NORM="batch", MEAN="sum"),
    "retinanet_to_conditional": (
        "retinanet_to_conditional",
        {
            "TEACHER.OPTS": ("TEST.DETECTIONS_PER_IMAGE", 20, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
            "PREDICTION_LOSS.BOX_SCORE_THRESHOLD": 0.0,
        },
    ),
    "sampled_attention_deformable": (
        "d3etr_deformable",
        {
            "LOSSES": ("SampledAttentionLoss",),
            "TEACHER.CONFIG_FILE": "configs/digits/deformable_student.yaml",
            "TEACHER.OPTS": ("MODEL.DETR.DECODER.NUM_LAYERS", 3, "MODEL.DETR.DECODER.NUM_POINTS", 3),
        },
    ),
}
CASES = {**{name: (name, {}) for name in SMALL}, **VARIANTS}
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


def draw(module: torch.nn.Module, seed: int) -> None:
    """``randomise`` for any detector.

    The many convolutions of detectron2's own would make ever larger maps, and boxes that overlap nothing: there each is
    scaled so that its output is about as large as its input.
    """
    randomise(module, seed)
    if isinstance(module, DenseDetector):
        with torch.no_grad():
            for weight in (values for values in module.parameters() if values.dim() == 4):
                weight /= weight.flatten(1).norm(dim=1).mean()


def golden_losses(name: str) -> dict[str, float]:
    """Losses of one training step of a case.

    Every parameter is drawn anew from a seed of its own: the values depend neither on the shipped teacher nor on how a
    layer is initialised.
    """
    config, keys = CASES[name]
    overrides = [text for key, value in keys.items() for text in (f"MODEL.DISTILL.{key}", str(value))]
    cfg, model = build_untrained(ROOT / "configs" / "digits" / f"{config}.yaml", tuple(overrides))
    student = getattr(model, "student", model)
    draw(student, seed=1)
    if student is not model:
        draw(model.teacher.detector or model.teacher, seed=2)  # an encoder of labels has no detector
        randomise(model.matchers, seed=3)
        randomise(model.losses, seed=4)
    torch.manual_seed(0)
    with EventStorage():  # detectron2's own heads write to it
        losses = model(make_inputs(SIZES, num_classes=cfg.MODEL.DETR.NUM_CLASSES))
    return {key: value.item() for key, value in sorted(losses.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"those to write; none: all of {', '.join(CASES)}")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(CASES)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    GOLDEN.mkdir(exist_ok=True)
    for name in arguments.names or CASES:
        (GOLDEN / f"{name}.json").write_text(json.dumps(golden_losses(name), indent=2) + "\n")
        print(GOLDEN / f"{name}.json")


if __name__ == "__main__":
    main()
