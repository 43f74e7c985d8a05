"""Every family of detectors made small, and distilling pairs of them.

A family is the first shipped configuration of a registered decoder with a kind of queries: a new detector takes part as
soon as it has a configuration.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from detr_distill.config.build import build_config
from detr_distill.structures import CROSS_ATTENTION, FACTORS, SAMPLED_ATTENTION, SELF_ATTENTION

import torch
from detectron2.modeling import build_model
from helpers.builders import ROOT, make_inputs, randomise
from torch import nn

FILES = [
    file
    for folder in ("digits", "detr")
    for file in sorted((ROOT / "configs" / folder).glob("*.yaml"))
    if not file.name.startswith("Base-")
]
STAGES = ["stage1", "stage2", "stage3"]
SMALL = {
    "BACKBONE.NAME": "build_conv_backbone",
    "CONV_BACKBONE.CHANNELS": [8, 8, 8],
    "DETR.NUM_CLASSES": 5,
    "DETR.NUM_QUERIES": 6,
    "DETR.HIDDEN_DIM": 32,
    "DETR.NUM_HEADS": 2,
    "DETR.FFN_DIM": 24,
    "DETR.DROPOUT": 0.0,
    "DETR.DECODER.NUM_LAYERS": 2,
    "DETR.DECODER.NUM_POINTS": 2,
    "DETR.ADAMIXER.IN_POINTS": 4,
    "DETR.ADAMIXER.OUT_POINTS": 6,
}
# Another width, depth, and number of heads and queries than the student.
LARGER = {
    "DETR__HIDDEN_DIM": 64,
    "DETR__NUM_HEADS": 4,
    "DETR__NUM_QUERIES": 9,
    "DETR__DECODER__NUM_LAYERS": 3,
}


@cache
def families() -> dict[str, str]:
    """A configuration file for each pair of decoder and queries, "decoder/queries": file."""
    found: dict[str, str] = {}
    for file in FILES:
        cfg = build_config(str(file), [])
        if cfg.MODEL.META_ARCHITECTURE == "DetrDetector":
            found.setdefault(f"{cfg.MODEL.DETR.DECODER.NAME}/{cfg.MODEL.DETR.QUERIES.NAME}", str(file))
    return found


NAMES = sorted(families())
ADAMIXER, CONDITIONAL, DAB, DEFORMABLE, TWO_STAGE, DETR = (
    next(name for name in NAMES if name.startswith(start))
    for start in (
        "AdaMixerDecoder/", "ConditionalDecoder/", "DabDecoder/AnchorBox",
        "DeformableDecoder/", "DeformableBoxDecoder/", "DetrDecoder/",
    )
)  # fmt: skip


def family_cfg(name: str, **keys):
    """The small configuration of a family on the CPU; ``keys`` override below ``MODEL`` with ``__`` for ``.``."""
    cfg = build_config(families()[name], ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    cfg.DATASETS.TRAIN = ()
    node = cfg.MODEL.DETR
    node.IN_FEATURES = STAGES[-min(len(node.IN_FEATURES), 2) :]
    node.NUM_LEVELS = min(node.NUM_LEVELS, 2)
    node.ENCODER.NUM_LAYERS = min(node.ENCODER.NUM_LAYERS, 1)
    for key, value in {**SMALL, **{key.replace("__", "."): value for key, value in keys.items()}}.items():
        cfg.merge_from_list([f"MODEL.{key}", value])
    return cfg


@cache
def detector(name: str) -> nn.Module:
    """A family's detector, to be looked at."""
    return build_model(family_cfg(name))


def distiller(
    folder: Path, teacher: str, student: str, teacher_keys=None, datasets=None, unlabeled=0, **keys
) -> nn.Module:
    """A randomised student of one family with a teacher of another and every loss that both can use.

    ``datasets`` names the training sets of teacher and student; ``unlabeled`` images of a batch have no labels.
    """
    configurations = [family_cfg(teacher, **(teacher_keys or {})), family_cfg(student)]
    for cfg, dataset in zip(configurations, datasets or (), strict=False):
        cfg.DATASETS.TRAIN = (dataset,)
    teacher_cfg, cfg = configurations
    network = randomise(build_model(teacher_cfg), seed=1)
    (folder / "teacher.yaml").write_text(teacher_cfg.dump())
    torch.save({"model": network.state_dict()}, folder / "teacher.pth")
    shared = shared_captures(teacher, student)
    cfg.MODEL.META_ARCHITECTURE = "DistillDetector"
    cfg.DATALOADER.UNLABELED_PER_BATCH = unlabeled
    node = cfg.MODEL.DISTILL
    node.TEACHER.CONFIG_FILE, node.TEACHER.WEIGHTS = str(folder / "teacher.yaml"), str(folder / "teacher.pth")
    node.LOSSES = ["PredictionLoss", "AttentionLoss"] + ["SampledAttentionLoss"] * (SAMPLED_ATTENTION in shared)
    node.ATTENTION_LOSS.SELF_WEIGHT = float(SELF_ATTENTION in shared)
    node.ATTENTION_LOSS.CROSS_WEIGHT = float(CROSS_ATTENTION in shared)
    for key, value in keys.items():
        cfg.merge_from_list(["MODEL." + key.replace("__", "."), value])
    model = build_model(cfg).train()
    randomise(model.student, seed=2)
    return model


def shared_captures(*names: str) -> frozenset[str]:
    """What all of these can keep, maps in place of what they are made of."""
    return frozenset.intersection(*(detector(name).decoder.captures for name in names)) - set(FACTORS.values())


def step(model, counts=(2, 3)):
    """Losses of a training step after the backward pass, and {matcher's name: (student, knowledge, match)}."""
    seen = {}
    handles = [
        matcher.register_forward_hook(lambda module, args, match: seen.update({match.name: (*args[:2], match)}))
        for matcher in model.matchers.values()
    ]
    losses = model(make_inputs(counts=counts))
    sum(losses.values()).backward()
    for handle in handles:
        handle.remove()
    return losses, seen
