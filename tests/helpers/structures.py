"""The structure of a shipped configuration's training step: what is left when nothing is done more often than needed.

A step of 101 layers finds no mistake that one of 50 does not. So configurations that differ in depth, number of layers,
lengths or schedules alone share one step, of the smaller form; all of them are built as they are.
"""

from __future__ import annotations

from pathlib import Path

from detr_distill.engine import build_config

from detectron2.config import CfgNode
from helpers.builders import ROOT
from helpers.make_golden import NO_DOWNLOAD

CONFIGS = [file for file in sorted((ROOT / "configs").rglob("*.yaml")) if not file.name.startswith("Base-")]
# ResNets of these depths have basic blocks, the others bottlenecks.
BASIC_BLOCKS = (18, 34)
QUERIES, WIDTH = 48, 64
# SMCA's third layer is the first that sees all levels.
ENCODER_LAYERS, DECODER_LAYERS = 3, 2
SWIN = "swin_tiny_patch4_window7_224"

SMALLEST = {
    "rtdetr_v2_r": "configs/transformers/rtdetr_v2_r18.json",
    "dfine_": "configs/transformers/dfine_n.json",
}


# A file teaches them that no repository holds: of predictions (tests/test_photos.py trains them), or a ViT's weights
# (tests/distill/teachers/test_foundation.py builds it with a small one).
TAUGHT_BY_FILES = {
    *("photos/from_file", "photos/maps_from_file", "photos/detrdistill_from_file", "photos/unlabeled"),
    "transformers/rtdetr_v2_r18_foundation",
}
# Folders of transformers, too; tests/hugging_face/test_recipes.py builds them with small ones.
TAUGHT_BY_FOLDERS = {
    "transformers/rtdetr_v2_r50_r18": "rt_detr_v2",
    "transformers/dfine_l_n": "d_fine",
    "transformers/rtdetr_v2_r50_to_deformable_r50": "rt_detr_v2",
}


def short_name(file: Path) -> str:
    return str(file.relative_to(ROOT / "configs").with_suffix(""))


BUILDABLE = [file for file in CONFIGS if short_name(file) not in TAUGHT_BY_FILES | TAUGHT_BY_FOLDERS.keys()]


def fewer_of_all(cfg: CfgNode) -> list:
    """Overrides of a detector's configuration: fewer of what is alike."""
    model, detr = cfg.MODEL, cfg.MODEL.DETR
    basic = model.RESNETS.DEPTH in BASIC_BLOCKS
    values = {
        "RESNETS.DEPTH": 18 if basic else 50,
        # Detectron2 has basic blocks of 64 channels and more.
        "RESNETS.RES2_OUT_CHANNELS": 64,
        "RESNETS.WIDTH_PER_GROUP": model.RESNETS.WIDTH_PER_GROUP if basic else WIDTH // 4,
        "TIMM.NAME": SWIN if "swin" in model.TIMM.NAME else model.TIMM.NAME,
        "TRANSFORMERS.CONFIG": smallest_of_its_family(model.TRANSFORMERS.CONFIG),
        "DETR.ENCODER.NUM_LAYERS": min(detr.ENCODER.NUM_LAYERS, ENCODER_LAYERS),
        "DETR.DECODER.NUM_LAYERS": min(detr.DECODER.NUM_LAYERS, DECODER_LAYERS),
        "DETR.FFN_DIM": min(detr.FFN_DIM, 4 * WIDTH),
        "DETR.NUM_QUERIES": QUERIES,
        "DETR.GROUP_QUERIES.NUM_GROUPS": 2,
        "DETR.HYBRID_QUERIES.NUM_QUERIES": QUERIES + 12,
        "RPN.POST_NMS_TOPK_TRAIN": 200,
        "ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
        "ROI_BOX_HEAD.FC_DIM": min(model.ROI_BOX_HEAD.FC_DIM, WIDTH),
        "FPN.OUT_CHANNELS": min(model.FPN.OUT_CHANNELS, WIDTH),
        "DISTILL.LABEL_MAP_ENCODER.WIDTH": min(model.DISTILL.LABEL_MAP_ENCODER.WIDTH, WIDTH // 4),
        # What to start from, and when what changes.
        "WEIGHTS": "",
        "DISTILL.SCHEDULE.STUDENT_FROM": 0.0,
        "DISTILL.SCHEDULE.STOP_AT": 0.0,
        "DISTILL.SCHEDULE.STEPS": (),
        "DISTILL.SCHEDULE.FACTORS": (),
    }
    return [item for key, value in values.items() for item in (f"MODEL.{key}", value)]


def smallest_of_its_family(file: str) -> str:
    """The description of the smallest network of transformers that is built like the one of this description."""
    return next((small for family, small in SMALLEST.items() if Path(file).name.startswith(family)), file)


def structure_of(file: Path) -> tuple[CfgNode, str]:
    """The configuration of the step on the CPU, and a text that is equal for configurations that share it."""
    cfg = build_config(str(file), ["MODEL.DEVICE", "cpu", *NO_DOWNLOAD])
    cfg.merge_from_list(fewer_of_all(cfg))
    node, structure = cfg.MODEL.DISTILL.TEACHER, cfg.MODEL.clone()
    if not node.CONFIG_FILE:
        return cfg, structure.dump()
    teacher = build_config(str(ROOT / node.CONFIG_FILE), node.OPTS)
    node.OPTS = [*node.OPTS, *fewer_of_all(teacher)]
    teacher.merge_from_list(fewer_of_all(teacher))
    structure.DISTILL.TEACHER.CONFIG_FILE = structure.DISTILL.TEACHER.WEIGHTS = ""
    structure.DISTILL.TEACHER.OPTS = []
    return cfg, f"{structure.dump()}\n{teacher.MODEL.dump()}"
