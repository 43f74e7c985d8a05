"""The digits' detectors, as small as they can be."""

from __future__ import annotations

from detr_distill.config.build import build_config

from detectron2.modeling import build_model
from helpers.builders import ROOT, randomise

STUDENTS = (
    "adamixer_student",
    "anchor_student",
    "conditional_student",
    "dab_student",
    "deformable_plain_student",
    "deformable_student",
    "detr_student",
    "dino_student",
    "dn_deformable_student",
    "smca_student",
)
TINY = {
    "MODEL__DEVICE": "cpu",
    "MODEL__DETR__NUM_CLASSES": 5,
    "MODEL__DETR__NUM_QUERIES": 9,
    "MODEL__DETR__DECODER__NUM_LAYERS": 2,
    "MODEL__DETR__FFN_DIM": 24,
    "DATASETS__TRAIN": (),
}


def digits_cfg(name, **keys):
    """The configuration of a shipped digits detector with few queries, layers and classes."""
    words = [word for key, value in {**TINY, **keys}.items() for word in (key.replace("__", "."), value)]
    return build_config(str(ROOT / f"configs/digits/{name}.yaml"), words)


def convolutional(name, keys=()):
    """A convolutional detector of the digits, with random weights of which many detect something."""
    thresholds = ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.4", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.1"]
    cfg = build_config(str(ROOT / f"configs/digits/{name}_student.yaml"), ["MODEL.DEVICE", "cpu", *thresholds, *keys])
    found = build_model(cfg).eval()
    anchors = {name: value.clone() for name, value in found.state_dict().items() if "anchor_generator" in name}
    randomise(found, spread=0.08 if name == "faster_rcnn" else 0.04).load_state_dict(anchors, strict=False)
    if name != "faster_rcnn":
        found.head.cls_score.bias.data.zero_()
    return found
